#include <string.h>

#include "cmocka_all.h"
#include "vm/cause.h"

static struct cause_facts facts(const char *console, const char *process) {
    return (struct cause_facts){.console = console, .vmm_log = "", .halted = "", .process = process, .memory_mib = 256};
}

#define PANIC "[    4.1] Kernel panic - not syncing: "

static void each_end_has_its_cause(void **state) {
    static const struct {
        const char *console, *process, *code, *words;
    } cases[] = {
        {"[ 3.0] Out of memory: Killed process 1 (init)\r\n" PANIC
         "Attempted to kill init! exitcode=0x9\r\n[ 4.2] Call\n",
         "exit status 0", "guest.oom", "256 MiB were too few (Kernel panic - not syncing: Attempted to kill init!"},
        {PANIC "Out of memory: system-wide panic_on_oom is enabled\n", "exit status 0", "guest.oom",
         "ran out of memory"},
        {PANIC "System is deadlocked on memory\n", "exit status 0", "guest.oom", "ran out of memory"},
        {PANIC "VFS: Unable to mount root fs on unknown-block(0,0)\n", "exit status 0", "guest.no-root", "root"},
        {PANIC "sysrq triggered crash\n", "exit status 0", "guest.panic", "sysrq triggered crash"},
        {"[ 9.0] oom-kill:constraint=CONSTRAINT_NONE\n[ 9.0] Out of memory: Killed process 99\n", "exit status 0",
         "guest.oom-kill", "short of memory"},
        {"[ 9.0] reboot: Power down\n", "exit status 0", "guest.power-off", "shut itself down"},
        {"[ 9.0] reboot: Restarting system\n", "exit status 0", "guest.reboot", "restarted itself"},
        {"hello\n", "killed by signal 9 (Killed)", "vmm.killed", "somebody on the host"},
        {"hello\n", "killed by signal 11 (Segmentation fault)", "vmm.crashed", "signal 11"},
        {"hello\n", "killed by signal 31 (Bad system call)", "vmm.sandbox", "sandbox"},
        {"hello\n", "exit status 1", "vmm.refused", "exit status 1"},
        {"[ 5.0] I/O error, dev vda, sector 8 op 0x1:(WRITE)\n[ 9.0] reboot: Power down\n", "exit status 0",
         "guest.disk-error", "dev vda"},
        {"hello\n", "exit status 0", "", ""},
        {"", "", "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cause_facts f = facts(cases[i].console, cases[i].process);
        struct cause cause = cause_find(&f);
        assert_string_equal(cause.code, cases[i].code);
        if (*cases[i].words)
            assert_non_null(strstr(cause.words, cases[i].words));
        assert_null(strchr(cause.words, '\n'));
    }
}

/* The kernel's own count is proof; a guest's words are not. */
static void the_host_knows_better(void **state) {
    struct cause_facts f = facts(PANIC "x\n", "killed by signal 9 (Killed)");
    f.oom_kills = 1;
    assert_string_equal(cause_find(&f).code, "host.oom");
    f.oom_kills = 0;
    f.disk_is_full = true;
    assert_string_equal(cause_find(&f).code, "host.disk-full");
    f = facts("Out of memory: Killed process 1 (init)\n" PANIC "Attempted to kill init!\n", "exit status 0");
    f.disk_is_full = true;
    assert_string_equal(cause_find(&f).code, "guest.oom");
    f = facts("", "exit status 1");
    f.vmm_log = "qemu-system-x86_64: write failed: No space left on device\n";
    assert_string_equal(cause_find(&f).code, "host.disk-full");
    f = facts("", "killed by signal 9 (Killed)");
    f.halted = "its VMM has stopped it: there is no space left for its disk";
    assert_string_equal(cause_find(&f).code, "host.disk-full");
    f.was_asked = true;
    assert_string_equal(cause_find(&f).code, "");
}

static void an_end_that_was_asked_for_needs_no_cause(void **state) {
    struct cause_facts f = facts("[ 9.0] reboot: Power down\n", "exit status 0");
    f.was_asked = true;
    assert_string_equal(cause_find(&f).code, "");
    f.process = "killed by signal 15 (Terminated)";
    assert_string_equal(cause_find(&f).code, "");
    f.console = PANIC "while it went down\n";
    assert_string_equal(cause_find(&f).code, "guest.panic");
}

static void a_guest_cannot_write_to_the_operators_terminal(void **state) {
    struct cause_facts f = facts("Kernel panic \x1b]0;owned\x07 \xff\n", "exit status 0");
    struct cause cause = cause_find(&f);
    assert_string_equal(cause.code, "guest.panic");
    assert_null(strpbrk(cause.words, "\x1b\x07\xff"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_end_has_its_cause),
        cmocka_unit_test(the_host_knows_better),
        cmocka_unit_test(an_end_that_was_asked_for_needs_no_cause),
        cmocka_unit_test(a_guest_cannot_write_to_the_operators_terminal),
    };
    return cmocka_run_group_tests_name("cause", tests, NULL, NULL);
}
