#include "doctor_case.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "doctor/doctor.h"
#include "doctor/report/report.h"

#define SEED_MAX ((size_t)1024 * 1024)

static void fail(const char *what) {
    fprintf(stderr, "fuzz_doctor: %s\n", what);
    abort();
}

/* Every finding has a place, words and evidence of bounded length; the document is JSON. */
static void tell(const struct doctor_case *c) {
    static FILE *nowhere;
    if (!nowhere && !(nowhere = fopen("/dev/null", "we")))
        fail("there is no /dev/null");
    char *text = NULL;
    size_t len = 0;
    FILE *memory = open_memstream(&text, &len);
    if (!memory)
        fail("there is no memory");
    report_json(c, memory);
    fclose(memory);
    json_t *document = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    if (!document)
        fail("a report that is no JSON");
    free(text);
    json_decref(document);
    report_text(c, true, true, nowhere);
    report_text(c, false, false, nowhere);
    int status = doctor_exit_status(c);
    if (status != 0 && status != 1 && status != 10)
        fail("a status that a file cannot have");
}

static void compare(const struct doctor_case *a, const struct doctor_case *b) {
    if (a->count != b->count)
        fail("saved, other targets");
    for (uint32_t i = 0; i < a->count; i++) {
        const struct judgement *x = &a->judgements[i], *y = &b->judgements[i];
        if (x->findings_count != y->findings_count || x->reachable != y->reachable)
            fail("saved, other findings");
        for (uint32_t f = 0; f < x->findings_count; f++)
            if (strcmp(x->findings[f].id, y->findings[f].id) != 0 || x->findings[f].hop != y->findings[f].hop)
                fail("saved, another finding");
    }
}

void doctor_case_exercise(const char *text, size_t len) {
    _cleanup_doctor_case_ struct doctor_case *c = NULL, *again = NULL;
    struct err err = {0};
    if (doctor_case_load(text, len, &c, &err) < 0) {
        if (c || !err.errnum || !*err.code || !*err.detail)
            fail("refused without a word");
        return;
    }
    tell(c);
    size_t saved_len = 0;
    _cleanup_free_ char *saved = doctor_case_save(c, &saved_len);
    if (!saved || doctor_case_load(saved, saved_len, &again, &err) < 0)
        fail("what was loaded cannot be saved");
    compare(c, again);
}

const char *doctor_case_seed(unsigned number, size_t *ret_len) {
    static const char *const names[] = {"ebtables", "masquerade", "redirect", "set"};
    static char *texts[sizeof names / sizeof *names];
    static size_t lens[sizeof names / sizeof *names];
    size_t n = number % (sizeof names / sizeof *names);
    char path[512];
    snprintf(path, sizeof path, "%s/%s.json", FUZZ_SEEDS, names[n]);
    if (!texts[n] && file_read(path, SEED_MAX, &texts[n], &lens[n]) < 0)
        fail(path);
    *ret_len = lens[n];
    return texts[n];
}
