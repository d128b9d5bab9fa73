/* What must fit together for a desktop to be seen: websockify's two ports, and a Chromium that is fit for a log-in. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

#define DESKTOP_PORT "6080"
#define POLICIES "/etc/chromium/policies/managed"

static const char *start_line(const struct inspection *in, const char *name) {
    const struct unit *unit = unit_graph_find(&in->units, name);
    return unit && unit->state == UNIT_LOADED && unit->start_count ? unit->start[unit->start_count - 1] : NULL;
}

/* The word behind an option: "-rfbport 5900" or "--port=5900". Return: false when it is not there. */
static bool option(const char *line, const char *name, char *ret, size_t size) {
    const char *at = strstr(line, name);
    size_t len = strlen(name);
    while (at && (at == line || at[-1] != ' ' || (at[len] != ' ' && at[len] != '=' && at[len] != '\0')))
        at = strstr(at + 1, name);
    if (!at)
        return false;
    at += len + strspn(at + len, " =");
    snprintf(ret, size, "%.*s", (int)strcspn(at, " \t"), at);
    return true;
}

/* The unit that speaks RFB. */
static const char *rfb_unit(const struct inspection *in) {
    return in->screen == IMAGE_SCREEN_TIGERVNC ? "xtigervnc.service" : "x11vnc.service";
}

/* websockify [ADDRESS:]PORT ADDRESS:PORT are its last two words. */
static bool ends_of(const char *line, char *ret_listen, char *ret_target, size_t size) {
    const char *target = strrchr(line, ' ');
    if (!target)
        return false;
    const char *at = target;
    while (at > line && *at == ' ')
        at--;
    while (at > line && *at != ' ')
        at--;
    snprintf(ret_listen, size, "%.*s", (int)(target - at - 1), at + 1);
    snprintf(ret_target, size, "%s", target + 1);
    return true;
}

static void check_ports(struct inspection *in) {
    char listens[64], target[64], port[64] = "5900";
    const char *line = start_line(in, "websockify.service"), *vnc = start_line(in, rfb_unit(in));
    if (!line || !ends_of(line, listens, target, sizeof listens))
        return;
    const char *colon = strrchr(listens, ':'), *to = strrchr(target, ':');
    if (strcmp(colon ? colon + 1 : listens, DESKTOP_PORT) != 0)
        report_fail(in->report, "desktop.port", "websockify.service",
                    "the controller's relay asks port 6080: the desktop page will close with 1014",
                    "let it listen at 0.0.0.0:6080", "websockify listens at %s, not at port " DESKTOP_PORT,
                    report_safe(listens));
    else if (str_starts(listens, "127.") || str_starts(listens, "localhost") || str_starts(listens, "[::1]"))
        report_fail(in->report, "desktop.loopback", "websockify.service",
                    "nobody outside of the guest reaches it: the desktop page will close with 1014",
                    "let it listen at 0.0.0.0:6080", "websockify listens at %s, at the guest's loopback only",
                    report_safe(listens));
    if (!vnc || !to)
        return;
    option(vnc, "-rfbport", port, sizeof port);
    if (strcmp(to + 1, port) != 0)
        report_fail(in->report, "desktop.backend", rfb_unit(in),
                    "websockify finds nothing behind it: the desktop page will close with 1014",
                    "give both the same port", "%.*s listens at port %s, websockify asks %s",
                    (int)strcspn(rfb_unit(in), "."), rfb_unit(in), report_safe(port), report_safe(target));
}

static void check_display(struct inspection *in) {
    char shown[64];
    const char *line = start_line(in, "xvfb.service"), *vnc = start_line(in, "x11vnc.service");
    char server[64] = "";
    if (!line || !vnc || !option(vnc, "-display", shown, sizeof shown))
        return;
    const char *at = strstr(line, " :");
    if (at)
        snprintf(server, sizeof server, "%.*s", (int)strcspn(at + 1, " "), at + 1);
    if (*server && strcmp(server, shown) != 0)
        report_fail(in->report, "desktop.display", "x11vnc.service",
                    "there is no picture: the desktop page will close with 1014", "give both the same display",
                    "x11vnc shows the display %s, Xvfb serves %s", report_safe(shown), report_safe(server));
}

/* ---------------------------------------------------------------- Chromium */

struct policies {
    struct inspection *in;
    json_t *files; /* an array of objects */
};

static bool take_policy(const char *name, void *data) {
    struct policies *p = data;
    char path[EXT4_PATH_MAX];
    size_t len = strlen(name);
    if (len < 5 || strcmp(name + len - 5, ".json") != 0)
        return true;
    snprintf(path, sizeof path, POLICIES "/%s", name);
    _cleanup_free_ char *text = inspect_text(p->in, path);
    json_t *policy = text ? json_loads(text, 0, NULL) : NULL;
    if (json_is_object(policy))
        json_array_append(p->files, policy);
    else
        report_fail(p->in->report, "chromium.policy-broken", path,
                    "Chromium passes over the whole file: it saves passwords and downloads what a page wants",
                    "make it valid JSON", "%s is not valid JSON", report_safe(path));
    json_decref(policy);
    return true;
}

/* Whether at least one file says so, and none otherwise: which of two Chromium believes goes by their names. */
static bool all_say(const struct policies *p, const char *key, json_t *want) {
    size_t i;
    json_t *policy;
    bool said = false;
    json_array_foreach(p->files, i, policy) {
        json_t *have = json_object_get(policy, key);
        if (have && !json_equal(have, want))
            return false;
        said = said || have;
    }
    return said;
}

static void check_policy(struct inspection *in) {
    static const struct {
        const char *key, *value, *breaks; /* value as JSON text */
    } wanted[] = {
        {"PasswordManagerEnabled", "false", "Chromium offers to keep the user's password, and keeps it"},
        {"DownloadRestrictions", "3", "a page can put files into the VM"},
        {"BrowserSignin", "0", "Chromium asks the user to sign in to the browser itself"},
        {"SyncDisabled", "true", "what the user types may leave with Chromium's own sync"},
    };
    struct policies p = {in, json_array()};
    ext4_list(in->fs, POLICIES, take_policy, &p);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        json_t *want = json_loads(wanted[i].value, JSON_DECODE_ANY, NULL);
        if (!report_has(in->report, "chromium.policy-broken", NULL) && !all_say(&p, wanted[i].key, want))
            report_fail(in->report, "chromium.policy", wanted[i].key, wanted[i].breaks,
                        "put it into a file in the recipe's files" POLICIES,
                        "Chromium's managed policy does not say %s: %s", wanted[i].key, wanted[i].value);
        json_decref(want);
    }
    json_decref(p.files);
}

static void check_first_run(struct inspection *in) {
    char value[8];
    const char *line = start_line(in, "chromium.service");
    if (line && !option(line, "--no-first-run", value, sizeof value))
        report_fail(in->report, "chromium.first-run", "chromium.service",
                    "the user meets Chromium's first-run pages instead of the log-in",
                    "add --no-first-run to its ExecStart=", "chromium.service starts Chromium without --no-first-run");
}

int check_desktop(struct inspection *in) {
    if (in->type != IMAGE_TYPE_BROWSER)
        return 0;
    check_ports(in);
    check_display(in);
    if (inspect_has_package(in, "chromium"))
        check_policy(in);
    check_first_run(in);
    return 0;
}
