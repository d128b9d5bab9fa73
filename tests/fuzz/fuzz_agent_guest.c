/* The guest's side against a host that sends anything: channel, sessions, jobs, streams and flow. Operations are
 * replaced by one that runs nothing: its output is a pipe that holds some bytes, its input /dev/null. Input: a script
 * (agent_script.h). */
#include <fcntl.h>
#include <signal.h>

#include "agent_play.h"

json_t *agent_operations(void) {
    return json_array();
}

static void on_done(struct job *job) {
    job_answer(job, json_object());
}

void agent_request(struct agent *agent, uint32_t id, json_t *request) {
    int fds[2];
    job_free_over(agent);
    struct job *job = json_object_get(request, "op") ? job_new(agent, id) : NULL;
    if (!job || pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return;
    check(write(fds[1], "0123456789", 10) == 10, "pipe");
    close(fds[1]);
    job->out[id % 2].fd = fds[0];
    job->in_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    job->in_left = 1000;
    job->on_done = on_done;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct rig rig;
    rig_open(&rig);
    rig_play(&rig, data, size);
    rig_close(&rig);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const texts[] = {
        "{\"op\":\"x\"}",    "{\"signal\":9}",     "input", "\x10\0\0",
        "{\"cancel\":true}", "{\"resize\":[2,3]}", "",      "{\"hello\":{\"min\":1,\"max\":1}}"};
    size_t len = script_add(ret, 0, AGENT_FRAME_JSON, 0, 0, "{\"hello\":{\"min\":1,\"max\":1}}");
    len = script_add(ret, len, AGENT_FRAME_JSON, 0, 1, "{\"op\":\"x\"}");
    for (unsigned i = 0; i < number % 9; i++)
        len = script_add(ret, len, (number * 7 + i * 3) % 4, i % 3, (uint8_t)((number + i) % 4),
                         texts[(number + i * 5) % 8]);
    return len;
}
