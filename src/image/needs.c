#include "image/needs.h"

#include <string.h>

#define CLI (1U << IMAGE_TYPE_CLI)
#define BROWSER (1U << IMAGE_TYPE_BROWSER)
#define TEST (1U << IMAGE_TYPE_TEST)
#define REAL (CLI | BROWSER)
#define SCREEN(screen) (1U << (IMAGE_TYPE_COUNT + (screen)))
#define XVFB SCREEN(IMAGE_SCREEN_XVFB) /* of a browser image */
#define TIGERVNC SCREEN(IMAGE_SCREEN_TIGERVNC)

static const char *const type_names[IMAGE_TYPE_COUNT] = {
    [IMAGE_TYPE_CLI] = "cli",
    [IMAGE_TYPE_BROWSER] = "browser",
    [IMAGE_TYPE_TEST] = "test",
};

static const char *const screen_names[IMAGE_SCREEN_COUNT] = {
    [IMAGE_SCREEN_XVFB] = "xvfb",
    [IMAGE_SCREEN_TIGERVNC] = "tigervnc",
};

const char *image_screen_name(enum image_screen screen) {
    return screen_names[screen];
}

bool image_screen_parse(const char *name, enum image_screen *ret) {
    for (int i = 0; i < IMAGE_SCREEN_COUNT; i++)
        if (strcmp(name, screen_names[i]) == 0) {
            *ret = (enum image_screen)i;
            return true;
        }
    return false;
}

bool need_is_of(const struct need *need, enum image_type type, enum image_screen screen) {
    return need->where & (1U << type | (type == IMAGE_TYPE_BROWSER ? SCREEN(screen) : 0));
}

const char *image_type_name(enum image_type type) {
    return type_names[type];
}

bool image_type_parse(const char *name, enum image_type *ret) {
    for (int i = 0; i < IMAGE_TYPE_COUNT; i++)
        if (strcmp(name, type_names[i]) == 0) {
            *ret = (enum image_type)i;
            return true;
        }
    return false;
}

const struct need need_packages[] = {
    {REAL, "libc6", "nothing runs but what is static: the guest does not boot"},
    {REAL, "systemd", "nothing is PID 1: the guest panics when its initramfs hands over"},
    {REAL, "systemd-sysv", "there is no /sbin/init: the guest panics when its initramfs hands over"},
    {REAL, "udev", "devices get no names and no drivers: the agent's port is not found"},
    {REAL, "kmod", "modules cannot be loaded: the power button and the pointer do nothing"},
    {REAL, "linux-image-", "there are no modules that fit the kernel which the VMM is given"},
    {REAL, "acpid",
     "the guest does not hear its power button: each VM is killed after its deadline, not ended in order"},
    {REAL, "iproute2", "nobody can look at the guest's network from inside"},
    {REAL, "ca-certificates", "no HTTPS connection is trusted: every AI tool fails to log in"},
    {REAL, "python3", "programs of the image that are written in it do not start: websockify, the log-in tool mc-oidc"},
    {CLI, "curl", "tools that are installed by a download cannot be"},
    {CLI, "git", "AI tools cannot work on a repository"},
    {CLI, "less", "git and the tools show long texts without a pager, or not at all"},
    {CLI, "procps", "nobody can see or end what a tool has started: ps and pkill are missing"},
    {TIGERVNC, "tigervnc-standalone-server", "there is no X server: the desktop page will close with 1014"},
    {XVFB, "xvfb", "there is no X server: the desktop page will close with 1014"},
    {BROWSER, "openbox", "there is no window manager: the browser does not fill the screen, dialogues cannot be moved"},
    {XVFB, "x11vnc", "nothing speaks RFB: the desktop page will close with 1014"},
    {BROWSER, "websockify", "nothing listens at port 6080: the desktop page will close with 1014"},
    {BROWSER, "chromium", "there is no browser: the user sees an empty desktop and cannot log in"},
    {BROWSER, "fonts-liberation", "pages show boxes or the wrong widths where their text should be"},
    {BROWSER, "fonts-dejavu-core", "characters beyond Latin show as boxes"},
    {0},
};

const struct need need_units[] = {
    {REAL, "mc-agent.service",
     "nobody can look into its VMs when their network fails, mctl vm exec does not work, none is called running"},
    {REAL, "acpid.socket", "the guest does not hear its power button: each VM is killed after its deadline"},
    {REAL, "acpid.path", "the guest does not hear its power button: each VM is killed after its deadline"},
    {REAL, "acpid.service", "nothing answers the guest's power button: each VM is killed after its deadline"},
    {TIGERVNC, "xtigervnc.service", "there is no screen: the desktop page will close with 1014"},
    {XVFB, "xvfb.service", "there is no screen: the desktop page will close with 1014"},
    {BROWSER, "openbox.service", "there is no window manager: the browser does not fill the screen"},
    {XVFB, "x11vnc.service", "nothing speaks RFB behind websockify: the desktop page will close with 1014"},
    {BROWSER, "websockify.service", "nothing listens at port 6080: the desktop page will close with 1014"},
    {BROWSER, "chromium.service", "no browser starts: the user sees an empty desktop and cannot log in"},
    {0},
};

const struct need need_users[] = {
    {CLI, "user", "there is nobody to work as: mctl vm exec --user user fails, and tools run as root"},
    {BROWSER, "desktop", "the desktop's services run as this user: none of them starts, the page will close with 1014"},
    {0},
};

const struct need need_files[] = {
    {REAL, "/etc/acpi/events/power-button",
     "the guest hears its power button and does nothing: each VM is killed after its deadline"},
    {REAL, "/etc/ssl/certs/ca-certificates.crt", "no HTTPS connection is trusted: every AI tool fails to log in"},
    {BROWSER, "/home/desktop/.config/chromium/Default/Preferences",
     "the browser's window has buttons: one that was minimised is lost, for there is no taskbar"},
    {0},
};

const struct need need_programs[] = {
    {REAL, "/usr/bin/mc-oidc", "the log-in tool of the profile generic-oidc is not there: its users cannot log in"},
    {REAL, "/bin/systemctl",
     "the power button does nothing, and the agent can neither tell of services nor restart one"},
    {CLI, "/bin/bash", "the user has no shell"},
    {0},
};

const struct need need_folders[] = {
    {CLI | BROWSER | TEST, "/dev", "the initramfs cannot hand over: the guest does not boot"},
    {CLI | BROWSER | TEST, "/proc", "the initramfs cannot hand over: the guest does not boot"},
    {CLI | BROWSER | TEST, "/sys", "the initramfs cannot hand over: the guest does not boot"},
    {CLI | BROWSER | TEST, "/run", "the initramfs cannot hand over: the guest does not boot"},
    {CLI | BROWSER | TEST, "/tmp", "programs find no place for temporary files; X has none for its socket"},
    {0},
};

unsigned need_free_mib(enum image_type type) {
    static const unsigned mib[IMAGE_TYPE_COUNT] = {
        [IMAGE_TYPE_CLI] = 128,
        [IMAGE_TYPE_BROWSER] = 256,
        [IMAGE_TYPE_TEST] = 1,
    };
    return mib[type];
}

unsigned need_free_inodes(enum image_type type) {
    static const unsigned inodes[IMAGE_TYPE_COUNT] = {
        [IMAGE_TYPE_CLI] = 5000,
        [IMAGE_TYPE_BROWSER] = 5000,
        [IMAGE_TYPE_TEST] = 100,
    };
    return inodes[type];
}
