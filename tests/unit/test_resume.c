/* What a guest is told that was away: when, and until it has been told. The agent is the test's own. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "cmocka_all.h"
#include "vm/hibernate.h"

static struct {
    char op[32]; /* that is under way; empty: none */
    struct agent_handler handler;
    void *userdata;
    bool is_away;
    char noted[200];
} fake;

int __wrap_agent_begin(struct agent *agent, json_t *request, int timeout_ms, const struct agent_handler *handler,
                       void *userdata, struct agent_job **ret_job, struct err *err);
int __wrap_agent_begin(struct agent *agent, json_t *request, int timeout_ms, const struct agent_handler *handler,
                       void *userdata, struct agent_job **ret_job, struct err *err) {
    assert_true(str_copy(fake.op, sizeof fake.op, json_string_value(json_object_get(request, "op"))));
    json_decref(request);
    if (fake.is_away) {
        fake.op[0] = '\0';
        return err_set(err, EAGAIN, "agent.not-ready", "it is away");
    }
    fake.handler = *handler;
    fake.userdata = userdata;
    return 0;
}

void __wrap_machine_note(struct machine *m, enum log_level level, const char *name, const char *reason);
void __wrap_machine_note(struct machine *m, enum log_level level, const char *name, const char *reason) {
    snprintf(fake.noted, sizeof fake.noted, "%s: %s", name, reason);
}

/* code: NULL where it did it. */
static void answer(const char *op, const char *code) {
    struct err err = {0};
    assert_string_equal(fake.op, op);
    fake.op[0] = '\0';
    if (code)
        err_set(&err, EIO, code, "it did not");
    json_t *ok = code ? NULL : json_pack("{s:I}", "changed_by_ms", (json_int_t)5000);
    fake.handler.done(fake.userdata, ok, code ? &err : NULL);
    json_decref(ok);
}

static struct machine machine(enum vm_state state, bool was_away) {
    memset(&fake, 0, sizeof fake);
    return (struct machine){.vm = {.state = state}, .was_away = was_away};
}

static void one_that_was_not_away_is_told_nothing(void **state) {
    struct machine m = machine(VM_STATE_RUNNING, false);
    resume_prepare(&m);
    assert_string_equal(fake.op, "");
}

/* It runs again, as it could not be hibernated. */
static void one_that_runs_is_told_once(void **state) {
    struct machine m = machine(VM_STATE_RUNNING, true);
    resume_prepare(&m);
    answer("clock.set", NULL);
    answer("random.seed", NULL);
    assert_string_equal(fake.noted, "guest-told: clock set, 5.0 s on, random numbers renewed");
    resume_prepare(&m);
    assert_string_equal(fake.op, "");
}

static void an_agent_that_goes_meanwhile_is_asked_again(void **state) {
    struct machine m = machine(VM_STATE_RESUMING, true);
    resume_prepare(&m);
    answer("clock.set", "agent.gone");
    assert_string_equal(fake.op, "");
    resume_prepare(&m);
    fake.is_away = true;
    answer("clock.set", NULL);
    assert_int_equal(m.preparing, PREPARE_NOT);
    fake.is_away = false;
    resume_prepare(&m);
    answer("clock.set", NULL);
    answer("random.seed", "agent.gone");
    assert_int_equal(m.preparing, PREPARE_NOT);
    resume_prepare(&m);
    answer("clock.set", NULL);
    answer("random.seed", NULL);
    assert_int_equal(m.preparing, PREPARE_DONE);
}

static void an_agent_that_cannot_do_it_is_not_waited_for(void **state) {
    struct machine m = machine(VM_STATE_RESUMING, true);
    resume_prepare(&m);
    answer("clock.set", "guest.bad-request");
    answer("random.seed", "agent.timeout");
    assert_int_equal(m.preparing, PREPARE_DONE);
    assert_string_equal(m.prepare_words, "clock not set (it did not), random numbers not renewed (it did not)");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_was_not_away_is_told_nothing),
        cmocka_unit_test(one_that_runs_is_told_once),
        cmocka_unit_test(an_agent_that_goes_meanwhile_is_asked_again),
        cmocka_unit_test(an_agent_that_cannot_do_it_is_not_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
