#include "session/login.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "session/guest_files.h"
#include "session/guest_tool.h"

#define AGENT_WAIT_MS 120000 /* for an agent that is away */
#define PAUSE_MS 500
#define FILES_PAUSE_MS 2000
#define OPEN_TIMEOUT_MS 180000
#define OPEN_PAUSE_MS 1000
#define OPEN_WAIT_MS 180000 /* for a Chromium that starts */
#define SCAN_PAUSE_MS 100   /* between two looks at the tool's output */
#define AGAIN_MAX 3
#define BUSY_WAIT_MS 180000 /* for a guest that is busy or slow */
#define ADDRESSES_MAX 32    /* of one tool */
#define CHECKS_MAX 3        /* of a tool that goes on running: its files may be half written */
#define OUTPUT_MAX 4096     /* bytes of the tool's output that are looked at */
#define INPUT_MAX 2048
#define RESUMED "the controller was started anew, and the login tool with it"

enum step {
    STEP_AGENT, /* waits for it */
    STEP_TOOL,
    STEP_CHECK,
    STEP_READ,
};

struct login {
    struct loop *loop;
    struct vms *vms;
    struct vault *vault;
    struct provider provider;
    char session_id[SESSION_ID_TEXT], user[VM_USER_MAX + 1], vm_id[VM_ID_TEXT];
    struct login_owner owner;
    void *userdata;
    bool checks_first;     /* an earlier daemon began it */
    bool checks_again;     /* the tool came to its end while it was checked what it had not written to its end */
    const char *again_why; /* to be told when the tool is started anew; NULL: it is the first time */

    enum step step;
    struct loop_timer *timer;
    int64_t agent_since_ms; /* monotonic: since when it is waited for */
    bool had_agent;
    int again, checks;
    int64_t busy_since_ms; /* monotonic; 0: it is not */
    unsigned addresses;
    struct agent_job *tool, *check, *opening;
    struct guest_files *files;
    bool is_final; /* the files that are read go into the vault */

    char url[PROVIDER_URL_MAX + 1];
    size_t url_len; /* 0: none yet */
    bool is_opened;
    int64_t url_since_ms;
    struct loop_timer *open_timer;
    char output[OUTPUT_MAX]; /* its last bytes */
    size_t output_len;
    struct loop_timer *scan_timer;          /* armed while the tool is owed credit */
    uint32_t uncredited[AGENT_STDERR + 1U]; /* bytes */
    char user_code[LOGIN_CODE_MAX];
};

static void start_tool(struct login *l);
static void on_timer(void *userdata);

/* --- ends --- */

static void fail(struct login *l, const struct err *err) {
    l->owner.ended(l->userdata, l->session_id, err);
}

static void fail_with(struct login *l, const char *code, const char *words) {
    struct err err = {0};
    err_set(&err, EPROTO, code, "%s", words);
    fail(l, &err);
}

static void forget_page(struct login *l) {
    agent_job_cancel(l->opening);
    l->opening = NULL;
    loop_timer_free(l->open_timer);
    l->open_timer = NULL;
    explicit_bzero(l->url, sizeof l->url);
    explicit_bzero(l->output, sizeof l->output);
    explicit_bzero(l->user_code, sizeof l->user_code);
    l->url_len = l->output_len = 0;
    l->is_opened = false;
}

static void stop_guest(struct login *l) {
    agent_job_cancel(l->tool);
    agent_job_cancel(l->check);
    guest_files_cancel(l->files);
    l->tool = l->check = NULL;
    l->files = NULL;
}

static void wait_for_agent(struct login *l) {
    l->step = STEP_AGENT;
    l->agent_since_ms = time_monotonic_ms();
    loop_timer_again(l->timer, PAUSE_MS);
}

static void begin_again(struct login *l, const char *why) {
    l->checks_first = l->checks_first || login_is_done(l); /* its user does nothing twice */
    stop_guest(l);
    forget_page(l);
    if (!vms_is_at_rest(l->vms, l->vm_id) && ++l->again > AGAIN_MAX) {
        fail_with(l, "login.lost", "the agent in the VM was lost again and again, and the login with it");
        return;
    }
    l->again_why = why; /* told when it is there again: it may have been the end of the VM */
    wait_for_agent(l);
}

static bool is_code(const struct err *err, const char *code) {
    return strcmp(err->code, code) == 0;
}

/* A guest that has much to do, or a file that is being written: it may be otherwise in a moment. */
static bool is_passing(const struct err *err) {
    return is_code(err, "agent.busy") || is_code(err, "guest.busy") || is_code(err, "agent.timeout") ||
           is_code(err, "login.torn");
}

static bool has_waited_enough(struct login *l) {
    int64_t now_ms = time_monotonic_ms();
    if (l->busy_since_ms == 0)
        l->busy_since_ms = now_ms;
    return now_ms - l->busy_since_ms > BUSY_WAIT_MS;
}

/* What a guest refused or did not answer. What passes is tried again: the timer goes on from the step. */
static void on_trouble(struct login *l, const struct err *err) {
    char words[160];
    if (is_code(err, "agent.gone") || is_code(err, "agent.not-ready") || is_code(err, "agent.none")) {
        begin_again(l, "the agent in the VM was lost, and the login tool with it: it is started anew");
    } else if (is_passing(err) && !has_waited_enough(l)) {
        loop_timer_again(l->timer, FILES_PAUSE_MS);
    } else if (str_starts(err->code, "guest.")) { /* its own words are not for people */
        snprintf(words, sizeof words, "the agent in the VM refused a step of the login (%s)", err->code);
        fail_with(l, err->code, words);
    } else {
        fail(l, err);
    }
}

/* --- the vault --- */

static void on_files(void *userdata, const uint8_t *text, size_t len, const struct err *err);

static void read_files(struct login *l, bool is_final) {
    struct err err = {0};
    l->is_final = is_final;
    if (guest_files_read(l->vms, l->vm_id, VM_TYPE_BROWSER, l->provider.files, l->provider.file_count, on_files, l,
                         &l->files, &err) < 0)
        on_trouble(l, &err);
}

static void keep(struct login *l, const uint8_t *text, size_t len) {
    struct err err = {0};
    uint64_t version = 0;
    if (vault_put(l->vault, l->user, l->provider.name, l->vm_id, text, len, &version, &err) < 0) {
        fail(l, &err);
        return;
    }
    log_event(LOG_LEVEL_INFO,
              (struct log_about){.event = "credential-stored", .session_id = l->session_id, .vm_id = l->vm_id},
              "of user %s for %s, version %llu", l->user, l->provider.name, (unsigned long long)version);
    l->owner.ended(l->userdata, l->session_id, NULL);
}

/* --- the check --- */

static void on_check_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct login *l = userdata;
    if (len > 0)
        agent_job_credit(l->check, stream, (uint32_t)len);
}

static void on_checked(void *userdata, json_t *ok, const struct err *err) {
    struct login *l = userdata;
    char words[160];
    l->check = NULL;
    if (!ok && (is_code(err, "agent.gone") || is_code(err, "guest.busy"))) {
        on_trouble(l, err);
        return;
    }
    l->busy_since_ms = 0;
    if (guest_tool_ended_well(ok)) {
        agent_job_cancel(l->tool); /* one that goes on running must not change what is read */
        l->tool = NULL;
        l->step = STEP_READ;
        read_files(l, true);
        return;
    }
    if (l->checks_first) {
        l->checks_first = false;
        start_tool(l);
    } else if (l->checks_again) {
        l->checks_again = false;
        loop_timer_again(l->timer, 0);
    } else if (l->tool && ++l->checks < CHECKS_MAX) {
        l->step = STEP_TOOL;
        loop_timer_again(l->timer, FILES_PAUSE_MS * (1 + l->checks));
    } else {
        snprintf(words, sizeof words, "the tool says that it is logged in, but the login does not work: its check %s",
                 ok ? "failed" : "did not end in time, or could not be started");
        fail_with(l, "login.check", words);
    }
}

static void start_check(struct login *l) {
    static const struct agent_handler handler = {.data = on_check_data, .done = on_checked};
    struct agent *agent = vms_agent(l->vms, l->vm_id);
    struct err err = {0};
    l->step = STEP_CHECK;
    if (!agent)
        begin_again(l, "the agent in the VM was lost: the login begins anew");
    else if (agent_begin(agent, guest_tool_request(&l->provider, &l->provider.check, VM_TYPE_BROWSER),
                         (int)l->provider.check_timeout_ms, &handler, l, &l->check, &err) < 0)
        on_trouble(l, &err);
}

static void on_files(void *userdata, const uint8_t *text, size_t len, const struct err *err) {
    struct login *l = userdata;
    l->files = NULL;
    bool is_early = err && !l->is_final && (is_code(err, "login.no-file") || is_passing(err));
    if (!err && l->is_final)
        keep(l, text, len);
    else if (is_early && l->tool)
        loop_timer_again(l->timer, FILES_PAUSE_MS);
    else if (!err || is_early)
        start_check(l); /* all are there, or the tool has ended meanwhile */
    else
        on_trouble(l, err);
}

/* --- the desktop's browser --- */

static void open_page(void *userdata);

static void open_later(struct login *l) {
    if (time_monotonic_ms() - l->url_since_ms > OPEN_WAIT_MS)
        return; /* the page can ask for it: open-url */
    if (l->open_timer)
        loop_timer_again(l->open_timer, OPEN_PAUSE_MS);
    else
        loop_timer_new(l->loop, OPEN_PAUSE_MS, open_page, l, &l->open_timer);
}

static void on_opened(void *userdata, json_t *ok, const struct err *err) {
    struct login *l = userdata;
    l->opening = NULL;
    /* One that takes its time has it all the same: given again it would be there twice. */
    l->is_opened = ok || err->errnum == ETIMEDOUT || is_code(err, "guest.timeout");
    if (!l->is_opened && !is_code(err, "agent.gone"))
        open_later(l);
}

static void open_page(void *userdata) {
    static const struct agent_handler handler = {.done = on_opened};
    struct login *l = userdata;
    struct agent *agent = vms_agent(l->vms, l->vm_id);
    if (l->is_opened) /* meanwhile */
        return;
    if (l->opening || !agent ||
        agent_begin(agent, json_pack("{s:s, s:s%}", "op", "browser.open", "url", l->url, l->url_len), OPEN_TIMEOUT_MS,
                    &handler, l, &l->opening, NULL) < 0)
        open_later(l);
}

/* Return: false when that was the end of the login. */
static bool take_url(struct login *l, const char *url, size_t len) {
    struct err err = {0};
    if (provider_url_check(&l->provider, url, len, &err) < 0) {
        if (l->url_len == 0) {
            err_prefix(&err, "the login tool wants to open a page");
            fail(l, &err);
            return false;
        }
        log_event(LOG_LEVEL_WARNING, (struct log_about){.event = "page-refused", .session_id = l->session_id}, "%s",
                  err.detail);
        return true;
    }
    bool is_first = l->url_len == 0;
    agent_job_cancel(l->opening);
    l->opening = NULL;
    explicit_bzero(l->url, sizeof l->url);
    memcpy(l->url, url, len);
    l->url_len = len;
    l->is_opened = false;
    l->url_since_ms = time_monotonic_ms();
    open_page(l);
    if (is_first)
        l->owner.begun(l->userdata, l->session_id);
    return true;
}

/* --- the tool --- */

/* The guest's agent counts them too, but it is the guest's. */
static bool is_counted(struct login *l) {
    if (l->addresses == ADDRESSES_MAX)
        log_event(LOG_LEVEL_WARNING, (struct log_about){.event = "page-refused", .session_id = l->session_id},
                  "the login tool wants to open more than %d pages", ADDRESSES_MAX);
    l->addresses += l->addresses <= ADDRESSES_MAX;
    return l->addresses <= ADDRESSES_MAX;
}

static void on_tool_event(void *userdata, json_t *event) {
    struct login *l = userdata;
    json_t *url = json_object_get(event, "url");
    if (json_is_string(url) && is_counted(l))
        take_url(l, json_string_value(url), json_string_length(url));
}

/* For the device flow: its code, and its address where the tool only prints it. */
static void look_at_output(struct login *l) {
    const char *address;
    size_t at = 0, len;
    if (l->provider.flow != PROVIDER_FLOW_DEVICE_CODE)
        return;
    login_words_code(l->output, l->output_len, l->user_code);
    while (l->url_len == 0 && (len = login_words_address(l->output, l->output_len, &at, &address)) > 0)
        if (provider_url_check(&l->provider, address, len, NULL) == 0 && !take_url(l, address, len))
            return;
}

/* Not for each frame, which may be of one byte: what came is looked at together, and then there is room for more. */
static void on_scan(void *userdata) {
    struct login *l = userdata;
    for (enum agent_stream s = AGENT_STDOUT; s <= AGENT_STDERR; s++) {
        if (l->tool)
            agent_job_credit(l->tool, s, l->uncredited[s]);
        l->uncredited[s] = 0;
    }
    look_at_output(l);
}

static void on_tool_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct login *l = userdata;
    size_t n = len < OUTPUT_MAX ? len : OUTPUT_MAX, kept = l->output_len;
    if (len == 0)
        return;
    if (l->uncredited[AGENT_STDOUT] + l->uncredited[AGENT_STDERR] == 0)
        loop_timer_again(l->scan_timer, SCAN_PAUSE_MS);
    l->uncredited[stream] += (uint32_t)len; /* at most a window */
    if (kept > OUTPUT_MAX - n) {
        memmove(l->output, l->output + kept - (OUTPUT_MAX - n), OUTPUT_MAX - n);
        kept = OUTPUT_MAX - n;
    }
    memcpy(l->output + kept, data + len - n, n);
    l->output_len = kept + n;
}

static void tool_failed(struct login *l, json_t *ok) {
    json_int_t number = 0;
    char words[240];
    const char *reason = login_words_reason(l->output, l->output_len);
    if (reason)
        snprintf(words, sizeof words, "the login failed: %s", reason);
    else if (json_unpack(ok, "{s:I}", "signal", &number) == 0)
        snprintf(words, sizeof words, "the login tool was killed by signal %d", (int)number);
    else if (json_unpack(ok, "{s:I}", "status", &number) == 0)
        snprintf(words, sizeof words, "the login tool gave up (exit status %d) and did not say why", (int)number);
    else
        snprintf(words, sizeof words, "the login tool ended in a way that is not known");
    fail_with(l, "login.tool", words);
}

static void on_tool_done(void *userdata, json_t *ok, const struct err *err) {
    struct login *l = userdata;
    struct err own = {0};
    l->tool = NULL;
    bool is_well = guest_tool_ended_well(ok);
    l->checks_again = l->step == STEP_CHECK && is_well;
    if (l->step != STEP_TOOL) /* the check decides */
        return;
    if (is_well) {
        if (!l->files)
            start_check(l);
    } else if (ok) {
        tool_failed(l, ok);
    } else if (is_code(err, "guest.exec.failed")) {
        err_set(&own, EPROTO, "login.tool", "the login tool %s cannot be run in the VM: is it in the image?",
                provider_word(&l->provider.command, 0));
        fail(l, &own);
    } else if (is_code(err, "guest.bad-request")) {
        fail_with(l, "login.old-image", "the image of the VM is older than this controller: it must be built anew");
    } else {
        stop_guest(l);
        wait_for_agent(l); /* which starts it anew */
        on_trouble(l, err);
    }
}

static void start_tool(struct login *l) {
    static const struct agent_handler handler = {.data = on_tool_data, .event = on_tool_event, .done = on_tool_done};
    struct agent *agent = vms_agent(l->vms, l->vm_id);
    const struct provider *p = &l->provider;
    struct err err = {0};
    if (l->again_why)
        l->owner.again(l->userdata, l->session_id, l->again_why);
    l->again_why = NULL;
    json_t *request = guest_tool_request(p, &p->command, VM_TYPE_BROWSER);
    json_object_set_new(request, "browser", json_true());
    if (p->pty)
        json_object_set_new(request, "pty", json_pack("{s:i, s:i}", "rows", 50, "columns", 400));
    else if (p->flow == PROVIDER_FLOW_PASTE)
        json_object_set_new(request, "stdin", json_true());
    if (!agent || agent_begin(agent, request, 0, &handler, l, &l->tool, &err) < 0) {
        if (!agent)
            json_decref(request);
        wait_for_agent(l);
        return;
    }
    l->step = STEP_TOOL;
    l->checks = 0;
    l->addresses = 0;
    memset(l->uncredited, 0, sizeof l->uncredited);
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "login-tool", .session_id = l->session_id, .vm_id = l->vm_id},
              "%s was started for %s", provider_word(&p->command, 0), p->name);
    if (p->done == PROVIDER_DONE_FILES)
        loop_timer_again(l->timer, FILES_PAUSE_MS);
}

/* --- time --- */

static void look_for_agent(struct login *l) {
    struct agent *agent = vms_agent(l->vms, l->vm_id);
    struct err err = {0};
    l->had_agent = l->had_agent || agent;
    if (vms_is_at_rest(l->vms, l->vm_id)) { /* for as long as the session may last */
        wait_for_agent(l);
    } else if (!l->had_agent) {
        fail_with(l, "agent.none", "the image of its VM has no agent: no tool can be logged in there");
    } else if (agent && agent_state(agent) == AGENT_READY) {
        if (l->checks_first)
            start_check(l);
        else
            start_tool(l);
    } else if (time_monotonic_ms() - l->agent_since_ms > AGENT_WAIT_MS) {
        err_set(&err, ETIMEDOUT, "agent.not-ready", "the agent in the VM is not there: %s",
                agent ? agent_state_name(agent_state(agent)) : "the VM ends");
        fail(l, &err);
    } else {
        loop_timer_again(l->timer, PAUSE_MS);
    }
}

static void on_timer(void *userdata) {
    struct login *l = userdata;
    if (l->step == STEP_AGENT)
        look_for_agent(l);
    else if (l->step == STEP_TOOL && l->tool && !l->files)
        read_files(l, false);
    else if (l->step == STEP_CHECK && !l->check)
        start_check(l);
    else if (l->step == STEP_READ && !l->files)
        read_files(l, true);
}

/* --- for the owner --- */

int login_new(const struct login_params *params, struct login **ret_login, struct err *err) {
    struct login *l = calloc(1, sizeof *l);
    if (!l)
        return err_sys(err, ENOMEM, "login.failed", "start a login");
    *l = (struct login){.loop = params->loop,
                        .vms = params->vms,
                        .vault = params->vault,
                        .provider = *params->provider,
                        .owner = *params->owner,
                        .userdata = params->userdata,
                        .checks_first = params->is_resumed,
                        .again_why = params->is_resumed ? RESUMED : NULL,
                        .step = STEP_AGENT,
                        .agent_since_ms = time_monotonic_ms()};
    str_copy(l->session_id, sizeof l->session_id, params->session_id);
    str_copy(l->user, sizeof l->user, params->user);
    str_copy(l->vm_id, sizeof l->vm_id, params->vm_id);
    int r = loop_timer_new(l->loop, 0, on_timer, l, &l->timer);
    if (r == 0)
        r = loop_timer_new(l->loop, SCAN_PAUSE_MS, on_scan, l, &l->scan_timer);
    if (r < 0) {
        login_free(l);
        return err_sys(err, -r, "login.failed", "start a login");
    }
    *ret_login = l;
    return 0;
}

void login_free(struct login *l) {
    if (!l)
        return;
    stop_guest(l);
    forget_page(l);
    loop_timer_free(l->timer);
    loop_timer_free(l->scan_timer);
    mem_free(l, sizeof *l);
}

const char *login_session(const struct login *l) {
    return l->session_id;
}

bool login_is_done(const struct login *l) {
    return l->step == STEP_CHECK || l->step == STEP_READ;
}

static const char *view_words(const struct login *l) {
    switch (l->step) {
    case STEP_AGENT:
        return "The VM is asked to start the login tool";
    case STEP_CHECK:
        return "It is found out whether the login works";
    case STEP_READ:
        return "The login works and is put into the vault";
    case STEP_TOOL:
        break;
    }
    if (l->url_len == 0)
        return "The login tool starts";
    return l->is_opened ? "Log in on the desktop: the provider's page is there" : "The provider's page is being opened";
}

void login_look(const struct login *l, struct login_view *ret_view) {
    struct login_view view = {.flow = l->provider.flow,
                              .words = view_words(l),
                              .url = l->url_len ? l->url : NULL,
                              .url_len = l->url_len,
                              .is_opened = l->is_opened,
                              .takes_code = l->tool && l->provider.flow == PROVIDER_FLOW_PASTE};
    memcpy(view.user_code, l->user_code, sizeof view.user_code);
    *ret_view = view;
}

int login_input(struct login *l, const char *text, size_t len, struct err *err) {
    if (!l->tool || l->provider.flow != PROVIDER_FLOW_PASTE)
        return err_set(err, EPROTO, "login.no-code", "the login tool waits for no code now");
    bool is_line = len > 0 && len <= INPUT_MAX && str_is_utf8(text, len);
    for (size_t i = 0; i < len && is_line; i++)
        is_line = (unsigned char)text[i] >= ' ' && text[i] != 0x7f;
    if (!is_line)
        return err_set(err, EINVAL, "login.bad-code", "a code is one line of 1 to %d bytes", INPUT_MAX);
    int r = agent_job_write(l->tool, text, len);
    if (r == 0)
        r = agent_job_write(l->tool, l->provider.pty ? "\r" : "\n", 1);
    return r < 0 ? err_sys(err, -r, "agent.busy", "give the code to the login tool") : 0;
}
