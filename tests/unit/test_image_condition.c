/* What decides whether a unit starts, without a file system: what every VM is. The rest is in tests/image/test_broken.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "image/condition.h"
#include "vm/machine.h"

/* Return: 'y' it starts, 'n' it does not, '?' nobody can tell. */
static char judge(const struct unit *unit) {
    const struct unit_condition *no, *unknown;
    assert_int_equal(condition_check(NULL, unit, &no, &unknown), 0);
    return no ? 'n' : unknown ? '?' : 'y';
}

static char judge_one(const char *type, const char *value) {
    struct unit unit = {.condition_count = 1};
    snprintf(unit.conditions[0].type, sizeof unit.conditions[0].type, "%s", type);
    unit.conditions[0].value = (char *)value;
    return judge(&unit);
}

/* What the controller changes of it must be changed here too. */
static void the_kernel_command_line_is_the_one_that_every_vm_gets(void **state) {
    char cmdline[MACHINE_CMDLINE_MAX];
    struct config_network network = {.address = {0xc0a80001, 16}, .dns = "192.0.2.53"};
    struct vm vm = {.id = "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28", .ip = 0xc0a80002};
    unsigned known = 0, words = 0;
    machine_cmdline(&network, &vm, cmdline);
    char *rest = cmdline;
    for (char *word; (word = strsep(&rest, " ")); words++) {
        char whole = judge_one("KernelCommandLine", word), other[256];
        assert_int_not_equal(whole, 'n');
        known += whole == 'y';
        snprintf(other, sizeof other, "!%s", word);
        assert_int_equal(judge_one("KernelCommandLine", other), whole == 'y' ? 'n' : '?');
        word[strcspn(word, "=")] = '\0';
        assert_int_equal(judge_one("KernelCommandLine", word), whole);
    }
    assert_true(words >= 9 && known == words - 2); /* but ip= and mc.vm= */
    static const char *const others[] = {"root=/dev/vdb", "ro", "roo", "console=ttyS", "desktop", ""};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(judge_one("KernelCommandLine", others[i]), 'n');
}

static void a_vm_is_what_it_is(void **state) {
    static const struct {
        const char *type, *value;
        char want;
    } cases[] = {
        {"Virtualization", "yes", 'y'},
        {"Virtualization", "!yes", 'n'},
        {"Virtualization", "vm", 'y'},
        {"Virtualization", "!vm", 'n'},
        {"Virtualization", "kvm", '?'},
        {"Virtualization", "qemu", '?'},
        {"Virtualization", "container", 'n'},
        {"Virtualization", "xen", 'n'},
        {"Virtualization", "!container", 'y'},
        {"Virtualization", "private-users", 'n'},
        {"Architecture", "native", 'y'},
        {"Architecture", "!x86-64", 'n'},
        {"FirstBoot", "true", 'n'},
        {"FirstBoot", "0", 'y'},
        {"FirstBoot", "perhaps", '?'},
        {"User", "@system", 'y'},
        {"User", "desktop", 'n'},
        {"Memory", ">=1G", '?'},
        {"Virtualization", "! yes", 'n'},
        {"Virtualization", "%v", '?'},
        {"PathExists", "relative", '?'},
        {"PathExists", "/run/x", '?'},
        {"PathExists", "!/proc/sys", '?'},
        {"PathExists", "/etc/*.conf", '?'},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (judge_one(cases[i].type, cases[i].value) != cases[i].want)
            fail_msg("%s=%s is not judged as %c", cases[i].type, cases[i].value, cases[i].want);
}

/* systemd.unit(5): of those with a "|" one must hold, of the others each; asserts are a list of their own. */
static void conditions_are_put_together_as_systemd_does(void **state) {
    static const struct {
        const char *values[4]; /* of Virtualization; a leading "A": an assert */
        char want;
    } cases[] = {
        {{NULL}, 'y'},          {{"vm", "no"}, 'n'},    {{"|no", "|vm"}, 'y'}, {{"|no", "|xen"}, 'n'},
        {{"|no", "|kvm"}, '?'}, {{"|vm", "|kvm"}, 'y'}, {{"|vm", "no"}, 'n'},  {{"|vm", "kvm"}, '?'},
        {{"kvm", "no"}, 'n'},   {{"|no", "A|vm"}, 'n'}, {{"vm", "Ano"}, 'n'},  {{"|vm", "Avm", "A|!vm", "A|yes"}, 'y'},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct unit unit = {0};
        for (; unit.condition_count < 4 && cases[i].values[unit.condition_count]; unit.condition_count++) {
            struct unit_condition *c = &unit.conditions[unit.condition_count];
            const char *value = cases[i].values[unit.condition_count];
            c->is_assert = *value == 'A';
            c->value = (char *)value + c->is_assert;
            snprintf(c->type, sizeof c->type, "Virtualization");
        }
        if (judge(&unit) != cases[i].want)
            fail_msg("case %zu is not judged as %c", i, cases[i].want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_kernel_command_line_is_the_one_that_every_vm_gets),
        cmocka_unit_test(a_vm_is_what_it_is),
        cmocka_unit_test(conditions_are_put_together_as_systemd_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
