/* What a guest's agent may answer: any JSON, and mostly nearly what it should be. Taken in, judged, saved. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/collect/guest.h"
#include "doctor/snapshot_json.h"
#include "doctor_made.h"
#include "fuzz.h"

#define VM "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28"

static const char *const seeds[] = {
    "{\"network\":{\"links\":[{\"name\":\"eth0\",\"index\":2,\"up\":true,\"carrier\":true,\"mac\":\"02:fc:00:00:00:"
    "01\","
    "\"mtu\":1500,\"kind\":\"\",\"counters\":{\"rx_packets\":5}}],\"addresses\":[{\"link\":\"eth0\",\"address\":"
    "\"192.168.0.2\",\"prefix\":16}],\"routes\":[{\"family\":4,\"to\":\"default\",\"prefix\":0,\"via\":\"192.168.0.1\","
    "\"link\":\"eth0\",\"source\":\"\",\"metric\":0,\"type\":\"unicast\",\"table\":254}],\"neighbours\":[{\"address\":"
    "\"192.168.0.1\",\"mac\":\"02:00:00:00:00:01\",\"link\":\"eth0\",\"state\":\"stale\"}],\"listeners\":[{"
    "\"protocol\":"
    "\"tcp6\",\"address\":\"::\",\"port\":6080,\"queue\":3,\"pid\":9,\"program\":\"httpd\"}],\"sysctls\":{"
    "\"net.ipv4.icmp_echo_ignore_all\":1}},\"health\":{\"uptime_s\":7,\"oom_kills\":1}}",
    "{\"network\":{\"links\":[{\"name\":\"eth0\",\"index\":2,\"up\":false,\"carrier\":true,\"noarp\":true,\"mac\":"
    "\"02:fc:00:00:00:01\",\"kind\":\"\"}],\"addresses\":[],\"routes\":[],\"firewall\":{\"chains\":[{\"family\":"
    "\"inet\","
    "\"table\":\"f\",\"name\":\"in\",\"hook\":1,\"priority\":0,\"policy\":\"drop\",\"type\":\"filter\"},{\"family\":"
    "\"netdev\",\"table\":\"f\",\"name\":\"n\",\"hook\":0,\"priority\":-5,\"policy\":\"accept\",\"devices\":[\"eth0\"]}"
    "],"
    "\"rules\":[{\"family\":\"inet\",\"table\":\"f\",\"chain\":\"in\",\"handle\":4,\"expressions\":[{\"expr\":\"meta\","
    "\"key\":16,\"dreg\":1},{\"expr\":\"cmp\",\"op\":\"==\",\"value\":\"06\",\"sreg\":1},{\"expr\":\"payload\","
    "\"base\":"
    "\"transport\",\"offset\":2,\"len\":2,\"dreg\":8},{\"expr\":\"bitwise\",\"mask\":\"ffff\",\"xor\":\"0000\","
    "\"sreg\":8,"
    "\"dreg\":9},{\"expr\":\"range\",\"op\":\"==\",\"from\":\"0001\",\"to\":\"ffff\",\"sreg\":9},{\"expr\":"
    "\"immediate\","
    "\"verdict\":\"goto\",\"chain\":\"in\"}]}],\"more\":0,\"error\":null,\"iptables_legacy\":\"filter\\n\"}},\"units\":"
    "{"
    "\"units\":[{\"Id\":\"websockify.service\",\"LoadState\":\"loaded\",\"ActiveState\":\"failed\",\"SubState\":"
    "\"failed\","
    "\"Result\":\"exit-code\",\"UnitFileState\":\"enabled\",\"NRestarts\":\"5\"}]}}",
};

static void judge_all(const struct snapshot *s) {
    struct judgement j = made_judge(s);
    judgement_free(&j);
    json_t *saved = snapshot_to_json(s);
    struct snapshot *back = NULL;
    if (snapshot_from_json(saved, &back, NULL) < 0) /* what was taken in can be loaded again */
        abort();
    json_decref(saved);
    j = made_judge(back);
    judgement_free(&j);
    snapshot_free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *said = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    struct snapshot *s = said ? made_host() : NULL;
    if (!s)
        return 0;
    struct snap_vm *vm = SNAP_PUSH(s, vms, 4);
    *vm = (struct snap_vm){.ip = GUEST, .mac = guest_mac, .pid = 101, .port = 6080};
    str_copy(vm->id, sizeof vm->id, VM);
    str_copy(vm->tap, sizeof vm->tap, "tap1");
    str_copy(vm->type, sizeof vm->type, "browser");
    struct snap_guest *guest = SNAP_PUSH(s, guests, 4);
    str_copy(guest->tap, sizeof guest->tap, "tap1");
    guest->state = SNAP_GUEST_TOLD;
    guest_facts_take(s, guest, json_object_get(said, "network"), json_object_get(said, "health"),
                     json_object_get(said, "units"), "websockify.service");
    judge_all(s);
    json_decref(said);
    snapshot_free(s);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    const char *text = seeds[number % (sizeof seeds / sizeof *seeds)];
    size_t len = strlen(text) < size ? strlen(text) : size;
    memcpy(ret, text, len);
    return len;
}
