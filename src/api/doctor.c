/* The network doctor over HTTP. It sends, waits and captures, so it runs as a process of its own, mctl doctor, and never
 * on the loop: the request is deferred until that process has ended, and its report is the answer as it is. Its output
 * goes to a file without a name, so nobody has to keep up with it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"

#define RUNS_MAX 4             /* at a time */
#define DEADLINE_MS 120000     /* of one; the largest sweep and a repair of all take a part of it */
#define REPORT_MAX (64U << 20) /* bytes */
#define WORDS_MAX 20           /* of its command line */
#define STATUS_HEALTHY 0       /* exit statuses of mctl doctor */
#define STATUS_BLIND 1
#define STATUS_USAGE 2
#define STATUS_NOT_FOUND 4
#define STATUS_REFUSED 5
#define STATUS_SICK 10
#define STATUS_REPAIRED 11

struct doctor_words {
    char text[WORDS_MAX][CONFIG_TEXT + 32];
    const char *argv[WORDS_MAX + 1];
    int count;
};

struct doctor_run {
    struct doctor_run *next;
    struct api *api;
    struct http_request *req; /* NULL: the caller has gone; the run goes on, a repair is not left half done */
    int pidfd, report;
    sd_event_source *ended;
    struct loop_timer *deadline;
};

/* --- the program: beside the daemon when both are installed, in its own folder in a build --- */

static int find_program(char ret_path[VMS_PATH_MAX], struct err *err) {
    static const char *const places[] = {"mctl", "../bin/mctl", "../cli/mctl"};
    char self[VMS_PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < sizeof places / sizeof *places; i++) {
        int len = snprintf(ret_path, VMS_PATH_MAX, "%.*s/%s", (int)(slash - self), self, places[i]);
        if (len < VMS_PATH_MAX && access(ret_path, X_OK) == 0)
            return 0;
    }
    err_set(err, ENOENT, "doctor.missing", "mctl, which is the doctor, is neither beside %s nor in ../bin", self);
    return err_hint(err, "install mctl with the daemon: meson install, or the package, has both");
}

__attribute__((format(printf, 2, 3))) static void add_word(struct doctor_words *words, const char *fmt, ...) {
    va_list ap;
    if (words->count == WORDS_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(words->text[words->count], sizeof words->text[0], fmt, ap);
    va_end(ap);
    words->argv[words->count] = words->text[words->count];
    words->argv[++words->count] = NULL;
}

/* What every run is told: the data plane of this controller and its records. */
static int begin_words(struct api *api, struct doctor_words *words, struct err *err) {
    struct network_status net;
    char program[VMS_PATH_MAX];
    int r = find_program(program, err);
    if (r < 0)
        return r;
    network_describe(api->network, &net);
    *words = (struct doctor_words){0};
    add_word(words, "%s", program);
    add_word(words, "--json");
    add_word(words, "--socket=%s", api->config->api.socket);
    add_word(words, "doctor");
    if (*net.namespace)
        add_word(words, "--netns=%s", net.namespace);
    add_word(words, "--bridge=%s", net.bridge);
    add_word(words, "--state-dir=%s", vms_state_dir(api->vms));
    return 0;
}

/* --- a run --- */

static void drop(struct doctor_run *run) {
    for (struct doctor_run **at = &run->api->doctors; *at; at = &(*at)->next)
        if (*at == run) {
            *at = run->next;
            break;
        }
    sd_event_source_disable_unref(run->ended);
    loop_timer_free(run->deadline);
    fd_close(&run->pidfd);
    fd_close(&run->report);
    free(run);
}

static void on_gone(struct http_request *req, void *userdata) {
    ((struct doctor_run *)userdata)->req = NULL;
}

static void answer_failure(struct http_request *req, int status, const char *words, const char *text, size_t len) {
    static const struct {
        int status, http;
    } meanings[] = {{STATUS_USAGE, 400}, {STATUS_NOT_FOUND, 404}, {STATUS_REFUSED, 409}};
    const char *code = "doctor.failed", *detail = words, *hint = NULL;
    json_t *said = json_loadb(text, len, 0, NULL);
    int http = 500;
    json_unpack(said, "{s:{s?s, s?s, s?s}}", "error", "code", &code, "detail", &detail, "hint", &hint);
    for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
        if (meanings[i].status == status)
            http = meanings[i].http;
    http_problem(req, http, code, NULL, detail, hint && *hint ? hint : NULL);
    json_decref(said);
}

static void answer(struct http_request *req, int report, const char *words) {
    _cleanup_free_ char *text = NULL;
    struct stat st;
    int status = -1;
    size_t len = fstat(report, &st) == 0 && st.st_size <= REPORT_MAX ? (size_t)st.st_size : 0;
    sscanf(words, "exit status %d", &status);
    text = malloc(len + 1);
    if (!text || pread(report, text, len, 0) != (ssize_t)len) {
        http_problem(req, 500, "internal", NULL, "the doctor's report could not be read", NULL);
        return;
    }
    bool judged = status == STATUS_HEALTHY || status == STATUS_SICK || status == STATUS_REPAIRED;
    if (!judged && !(status == STATUS_BLIND && memmem(text, len < 64 ? len : 64, "doctor/1", 8))) {
        answer_failure(req, status, words, text, len);
        return;
    }
    struct http_response response = {.content_type = "application/json", .body = text, .len = len};
    http_respond(req, 200, &response);
}

static int on_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct doctor_run *run = userdata;
    char words[96];
    if (proc_reap(run->pidfd, words, sizeof words) == 0)
        return 0;
    struct http_request *req = run->req;
    _cleanup_close_ int report = fd_steal(&run->report);
    drop(run);
    if (req)
        answer(req, report, words);
    return 0;
}

static void on_deadline(void *userdata) {
    struct doctor_run *run = userdata;
    proc_signal(run->pidfd, SIGKILL);
}

static unsigned count_runs(const struct api *api) {
    unsigned n = 0;
    for (const struct doctor_run *run = api->doctors; run; run = run->next)
        n++;
    return n;
}

static int start(struct doctor_run *run, const struct doctor_words *words, struct err *err) {
    pid_t pid;
    run->report = memfd_create("doctor", MFD_CLOEXEC);
    if (run->report < 0)
        return err_sys(err, errno, "doctor.failed", "make a file for the report");
    struct proc_spec spec = {.argv = words->argv, .output_fd = run->report};
    int r = proc_start(&spec, &pid, &run->pidfd, err);
    if (r < 0)
        return r;
    r = sd_event_add_io(loop_event(run->api->loop), &run->ended, run->pidfd, EPOLLIN, on_ended, run);
    if (r >= 0)
        r = loop_timer_new(run->api->loop, DEADLINE_MS, on_deadline, run, &run->deadline);
    if (r < 0) {
        char how[96];
        proc_signal(run->pidfd, SIGKILL);
        proc_reap(run->pidfd, how, sizeof how);
        return err_sys(err, -r, "doctor.failed", "wait for the doctor");
    }
    return 0;
}

static void run_doctor(struct api *api, struct http_request *req, const struct doctor_words *words) {
    struct err err = {0};
    struct doctor_run *run = count_runs(api) < RUNS_MAX ? calloc(1, sizeof *run) : NULL;
    if (!run) {
        http_problem(req, 503, "doctor.busy", NULL, "too many doctors are at work already",
                     "ask again in a few seconds");
        return;
    }
    *run = (struct doctor_run){.next = api->doctors, .api = api, .req = req, .pidfd = -1, .report = -1};
    api->doctors = run;
    if (start(run, words, &err) < 0) {
        drop(run);
        api_fail(req, &err);
        return;
    }
    http_request_defer(req, on_gone, run);
}

void api_doctor_free(struct api *api) {
    while (api->doctors) {
        proc_signal(api->doctors->pidfd, SIGTERM);
        drop(api->doctors);
    }
}

/* --- the routes --- */

void route_health_network(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct doctor_words words;
    struct err err = {0};
    if (begin_words(api, &words, &err) < 0)
        api_fail(req, &err);
    else
        run_doctor(api, req, &words);
}

void route_vm_diagnostics(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    struct doctor_words words;
    struct vm vm;
    struct err err = {0};
    int r = api_vm_find(api, match, &vm, &err);
    if (r == 0 && vm_state_is_end(vm.state)) {
        err_set(&err, EALREADY, "vm.ended", "VM %s is %s: there is no way to it any more", vm.id,
                vm_state_name(vm.state));
        r = err_hint(&err, "mctl vm why %s tells its story", vm.id);
    }
    if (r == 0 && vm.state == VM_STATE_HIBERNATED) {
        err_set(&err, EALREADY, "vm.hibernated", "VM %s is hibernated: it has no TAP until it is brought back", vm.id);
        r = err_hint(&err, "mctl vm resume %s", vm.id);
    }
    if (r == 0)
        r = begin_words(api, &words, &err);
    if (r < 0) {
        api_fail(req, &err);
        return;
    }
    add_word(&words, "--vm=%s", vm.id);
    run_doctor(api, req, &words);
}

/* The options that are text, as mctl has them; it also checks their values. Each is one word with its value, so no value
 * can become another option. Return: false for a value that is not text, or too long to be any of these. */
static bool add_texts(struct doctor_words *words, json_t *body) {
    static const struct {
        const char *name, *option;
    } texts[] = {{"vm", "--vm"}, {"tap", "--tap"}, {"guest_ip", "--guest-ip"}, {"guest_mac", "--guest-mac"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_t *value = json_object_get(body, texts[i].name);
        if (!value)
            continue;
        if (!json_is_string(value) || json_string_length(value) == 0 || json_string_length(value) > 64)
            return false;
        add_word(words, "%s=%s", texts[i].option, json_string_value(value));
    }
    return true;
}

/* repair: true, or the id of a finding. probe, trace: false forbids them. */
static bool add_options(struct doctor_words *words, json_t *body) {
    json_t *port = json_object_get(body, "guest_port"), *repair = json_object_get(body, "repair");
    json_t *probe = json_object_get(body, "probe"), *trace = json_object_get(body, "trace");
    if ((port && !json_is_integer(port)) || (probe && !json_is_boolean(probe)) || (trace && !json_is_boolean(trace)) ||
        (repair && !json_is_boolean(repair) && (!json_is_string(repair) || json_string_length(repair) > 64)))
        return false;
    if (port)
        add_word(words, "--guest-port=%lld", (long long)json_integer_value(port));
    if (json_is_false(probe))
        add_word(words, "--no-probe");
    if (json_is_false(trace))
        add_word(words, "--no-trace");
    if (json_is_string(repair))
        add_word(words, "--repair=%s", json_string_value(repair));
    else if (json_is_true(repair))
        add_word(words, "--repair");
    return true;
}

void route_doctor(struct http_request *req, const struct http_match *match, void *userdata) {
    static const char *const known[] = {"vm",    "tap",   "guest_ip", "guest_mac", "guest_port",
                                        "probe", "trace", "repair",   NULL};
    struct api *api = userdata;
    struct doctor_words words;
    struct err err = {0};
    json_t *body = api_body(req, known);
    if (!body)
        return;
    int r = begin_words(api, &words, &err);
    bool good = r == 0 && add_texts(&words, body) && add_options(&words, body);
    json_decref(body);
    if (r < 0)
        api_fail(req, &err);
    else if (!good)
        http_problem(req, 400, "body.bad-value", NULL, "a member has a value of the wrong kind",
                     "vm, tap, guest_ip and guest_mac are text, guest_port is a number, probe and trace are true or "
                     "false, repair is true or the id of a finding");
    else
        run_doctor(api, req, &words);
}
