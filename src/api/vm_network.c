/* What the firewall stopped of one VM, for "show". */
#include "api/internal.h"

json_t *api_vm_network_json(struct api *api, const struct vm *vm) {
    struct network_stopped stopped[RULESET_REASONS];
    if (network_stopped(api->network, vm->tap, stopped, NULL) < 0)
        return json_null();
    json_t *reasons = json_object();
    uint64_t packets = 0;
    for (int i = RULESET_MEMBER + 1; i < RULESET_REASONS; i++) {
        enum ruleset_reason reason = (enum ruleset_reason)i;
        json_object_set_new(reasons, ruleset_reason_name(reason),
                            json_pack("{s:I, s:I, s:s}", "packets", (json_int_t)stopped[i].packets, "bytes",
                                      (json_int_t)stopped[i].bytes, "what", ruleset_reason_words(reason)));
        packets += stopped[i].packets;
    }
    return json_pack("{s:b, s:I, s:o}", "vm_to_vm", api->config->network.vm_to_vm, "stopped_packets",
                     (json_int_t)packets, "stopped", reasons);
}
