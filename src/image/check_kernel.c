/* Kernel, initramfs and modules are three files of one version, or no VM boots. And the VMM must be able to start that
 * kernel, and the kernel to find what the VMM gives it. */
#include <elf.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/initrd.h"
#include "image/inspect.h"

#define NO_BOOT "no VM of this image boots"
#define KERNEL_SCAN_MAX ((size_t)256 << 20)
#define MODULES "/lib/modules"

/* The path of a part of the image's folder: as the manifest names it, else by its usual name. Return: false when there
 * is no such file. */
static bool part_path(const struct inspection *in, const char *part, const char *usual, char ret[EXT4_PATH_MAX]) {
    const char *file = NULL;
    if (!in->folder)
        return false;
    if (in->manifest)
        file = json_string_value(json_object_get(json_object_get(in->manifest, part), "file"));
    if (!file || strchr(file, '/'))
        file = usual;
    return snprintf(ret, EXT4_PATH_MAX, "%s/%s", in->folder, file) < EXT4_PATH_MAX && access(ret, F_OK) == 0;
}

/* ---------------------------------------------------------------- the kernel */

/* The first word of the version text: up to a space. */
static void take_version(const char *text, size_t max, char *ret, size_t size) {
    size_t len = strnlen(text, max), word = 0;
    while (word < len && text[word] != ' ' && text[word] != '\n')
        word++;
    char raw[80];
    snprintf(raw, sizeof raw, "%.*s", (int)(word < sizeof raw ? word : sizeof raw - 1), text);
    str_escape(raw, strlen(raw), ret, size);
}

/* Source: Documentation/arch/x86/boot.rst: "HdrS" at 0x202, the version's offset (less 0x200) at 0x20e. */
static bool bzimage_version(const char *data, size_t len, char *ret, size_t size) {
    if (len < 0x400 || memcmp(data + 0x202, "HdrS", 4) != 0)
        return false;
    size_t at = ((size_t)(uint8_t)data[0x20e] | (size_t)(uint8_t)data[0x20f] << 8) + 0x200;
    if (at < len)
        take_version(data + at, len - at, ret, size);
    return true;
}

static void vmlinux_version(const char *data, size_t len, char *ret, size_t size) {
    const char *at = memmem(data, len, "Linux version ", 14);
    if (at)
        take_version(at + 14, len - (size_t)(at + 14 - data), ret, size);
}

static void tell_version(struct inspection *in, const char *object, const char *have, const char *want) {
    report_fail(in->report, "kernel.version", object,
                "modules do not load into this kernel: the guest finds no disk, or no network", MEND_REBUILD,
                "%s is Linux %s, the manifest says %s", object, *have ? have : "of no known version",
                report_safe(want));
}

/* One kernel file. elf: it must be a vmlinux, which is all that Firecracker boots. */
static int check_kernel_file(struct inspection *in, const char *part, const char *usual, bool elf) {
    char path[EXT4_PATH_MAX], version[80] = "";
    _cleanup_free_ char *data = NULL;
    size_t len;
    if (!part_path(in, part, usual, path))
        return 0;
    int r = file_read(path, KERNEL_SCAN_MAX, &data, &len);
    if (r < 0) {
        report_fail(in->report, "kernel.unreadable", usual, NO_BOOT, MEND_REBUILD, "%s cannot be read: %s",
                    report_safe(path), strerror(-r));
        return r == -ENOMEM ? r : 0;
    }
    bool is_elf = len > sizeof(Elf64_Ehdr) && memcmp(data, ELFMAG, SELFMAG) == 0;
    if (is_elf)
        vmlinux_version(data, len, version, sizeof version);
    else if (elf || !bzimage_version(data, len, version, sizeof version)) {
        report_fail(in->report, "kernel.format", usual,
                    elf ? "Firecracker refuses it: no VM boots on a host with KVM" : NO_BOOT, MEND_REBUILD,
                    "%s is not %s", usual,
                    elf ? "an ELF vmlinux" : "a kernel that a VMM can start (bzImage or vmlinux)");
        return 0;
    }
    const char *want =
        in->manifest ? json_string_value(json_object_get(json_object_get(in->manifest, "kernel"), "version")) : NULL;
    if (want && strcmp(want, version) != 0)
        tell_version(in, usual, version, want);
    if (!*in->report->kernel)
        str_copy(in->report->kernel, sizeof in->report->kernel, version);
    return 0;
}

/* ---------------------------------------------------------------- the initramfs */

/* Modules that a guest needs before its root, and what for. */
static const struct {
    const char *name, *breaks;
} boot_modules[] = {
    {"virtio_blk", "the guest finds no disk: it powers off at once"},
    {"virtio_net", "the guest has no network card: no packet reaches it"},
    {"virtio_pci", "the guest sees none of QEMU's devices: " NO_BOOT " under QEMU"},
    {"virtio_mmio", "the guest sees none of Firecracker's devices: " NO_BOOT " under Firecracker"},
    {"virtio_console", "the agent's channel is missing: nobody can look into a guest whose network is dead"},
};

/* Whether a list of module files, a line each, has one of that name ("-" and "_" are the same). */
static bool lists_module(const char *list, size_t len, const char *name) {
    size_t name_len = strlen(name);
    for (const char *line = list, *end = list + len; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line)), *stop = newline ? newline : end;
        const char *slash = memrchr(line, '/', (size_t)(stop - line)), *base = slash ? slash + 1 : line;
        bool same = (size_t)(stop - base) >= name_len + 3 && memcmp(base + name_len, ".ko", 3) == 0;
        for (size_t i = 0; same && i < name_len; i++)
            same = base[i] == name[i] || (base[i] == '-' && name[i] == '_');
        if (same)
            return true;
        line = stop + 1;
    }
    return false;
}

/* Source: modinfo: ".modinfo" holds "vermagic=VERSION flags". */
static void check_vermagic(struct inspection *in, const char *name, const char *data, size_t len) {
    char version[80] = "";
    const char *at = memmem(data, len, "vermagic=", 9);
    if (at)
        take_version(at + 9, len - (size_t)(at + 9 - data), version, sizeof version);
    if (*in->report->kernel && strcmp(version, in->report->kernel) != 0 &&
        !report_has(in->report, "kernel.initrd-modules", NULL))
        report_fail(in->report, "kernel.initrd-modules", name,
                    "the kernel refuses its drivers: the guest finds no disk and no network", MEND_REBUILD,
                    "the initramfs's %s is for Linux %s, the kernel is %s", name,
                    *version ? version : "(nothing that it says)", in->report->kernel);
}

static void check_boot_modules(struct inspection *in, const struct initrd *initrd, const char *order,
                               size_t order_len) {
    char path[EXT4_PATH_MAX];
    _cleanup_free_ char *builtin = NULL;
    size_t builtin_len = 0;
    snprintf(path, sizeof path, MODULES "/%s/modules.builtin", in->report->kernel);
    ext4_read_file(in->fs, path, INSPECT_TEXT_MAX, &builtin, &builtin_len);
    for (size_t i = 0; i < sizeof boot_modules / sizeof *boot_modules; i++) {
        const char *name = boot_modules[i].name;
        if (!lists_module(order, order_len, name) && (!builtin || !lists_module(builtin, builtin_len, name)))
            report_fail(in->report, "kernel.driver-missing", name, boot_modules[i].breaks,
                        "add it to guest/make-initramfs's modules",
                        "the driver %s is neither in the initramfs nor built into the kernel", name);
    }
    for (const char *line = order, *end = order + order_len; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line)), *stop = newline ? newline : end, *data;
        size_t len;
        unsigned mode;
        if (stop > line && stop - line < 200) {
            char name[200];
            snprintf(name, sizeof name, "%.*s", (int)(stop - line), line);
            snprintf(path, sizeof path, "modules/%s", name);
            if (initrd_find(initrd, path, &data, &len, &mode))
                check_vermagic(in, report_safe(name), data, len);
            else
                report_fail(in->report, "kernel.initrd-incomplete", name,
                            "a driver is missing: the guest may find no disk or no network", MEND_REBUILD,
                            "the initramfs lists the module %s, but does not hold it", report_safe(name));
        }
        line = stop + 1;
    }
}

static void check_init(struct inspection *in, const struct initrd *initrd) {
    const char *data, *order;
    size_t len, order_len;
    unsigned mode;
    if (!initrd_find(initrd, "init", &data, &len, &mode)) {
        report_fail(in->report, "kernel.initrd-init", "/init", "the kernel panics: " NO_BOOT, MEND_REBUILD,
                    "the initramfs has no /init");
        return;
    }
    if (!(mode & 0111) || len < 4 || (memcmp(data, ELFMAG, SELFMAG) != 0 && memcmp(data, "#!", 2) != 0))
        report_fail(in->report, "kernel.initrd-init", "/init", "the kernel panics: " NO_BOOT, MEND_REBUILD,
                    "the initramfs's /init is not a program");
    /* Ours is known by its list of modules; every other brings its own ways of configuring a network. */
    in->init_kind = 'f';
    if (!initrd_find(initrd, "etc/modules-order", &order, &order_len, &mode))
        return;
    in->init_kind = 'o';
    check_boot_modules(in, initrd, order, order_len);
}

static int check_initrd(struct inspection *in) {
    char path[EXT4_PATH_MAX];
    struct initrd initrd;
    if (!part_path(in, "initrd", "initrd.img", path))
        return 0;
    int r = initrd_open(path, &initrd);
    if (r == -ENOMEM)
        return r;
    if (r == -EOPNOTSUPP) {
        report_note(in->report, "kernel.initrd-not-judged", "initrd.img", "", "",
                    "the initramfs is packed in a way that is not read here (plain or zstd is)");
        return 0;
    }
    if (r < 0) {
        report_fail(in->report, "kernel.initrd-damaged", "initrd.img", "the kernel panics: " NO_BOOT, MEND_REBUILD,
                    "the initramfs cannot be unpacked: it is damaged or cut");
        return 0;
    }
    if (!initrd_is_whole(&initrd))
        report_fail(in->report, "kernel.initrd-damaged", "initrd.img", "the kernel panics: " NO_BOOT, MEND_REBUILD,
                    "the archive in the initramfs is damaged or cut");
    else
        check_init(in, &initrd);
    initrd_close(&initrd);
    return 0;
}

/* ---------------------------------------------------------------- modules in the root */

struct versions {
    unsigned count;
    char last[128];
};

static bool take_module_folder(const char *name, void *data) {
    struct versions *v = data;
    v->count++;
    str_copy(v->last, sizeof v->last, name);
    return true;
}

static int check_modules(struct inspection *in) {
    struct versions v = {0};
    char path[EXT4_PATH_MAX];
    int r = ext4_list(in->fs, MODULES, take_module_folder, &v);
    if (r == -E2BIG || r == -ENOMEM)
        return r;
    if (v.count == 0) {
        report_fail(in->report, "kernel.modules-missing", MODULES,
                    "drivers that are not in the initramfs cannot be loaded: no pointer, no power button",
                    "add linux-image-cloud-amd64 to the recipe's packages",
                    "the image has no kernel modules in " MODULES);
        return 0;
    }
    if (v.count > 1)
        report_fail(in->report, "kernel.modules-several", MODULES,
                    "which of them fits the kernel is chance; the others are dead weight in every VM",
                    "keep one kernel in the recipe", "the image has the modules of %u kernels", v.count);
    const char *kernel = in->report->kernel;
    if (v.count == 1 && *kernel && strcmp(v.last, kernel) != 0)
        report_fail(in->report, "kernel.modules-version", v.last,
                    "modules do not load into this kernel: no pointer, no power button", MEND_REBUILD,
                    "the modules in the image are for Linux %s, the kernel is %s", report_safe(v.last), kernel);
    snprintf(path, sizeof path, MODULES "/%s/modules.dep", *kernel && v.count > 1 ? kernel : v.last);
    if (!inspect_exists(in, path))
        report_fail(in->report, "kernel.modules-dep", path, "modprobe finds no module: no pointer, no power button",
                    "run depmod in the recipe", "%s is missing", report_safe(path));
    return 0;
}

int check_kernel(struct inspection *in) {
    char path[EXT4_PATH_MAX];
    in->init_kind = '?';
    if (!in->folder)
        report_note(in->report, "kernel.not-judged", in->rootfs, "",
                    "give the image's folder: it holds the kernel, the initramfs and the manifest",
                    "whether a kernel fits cannot be judged: this is a root file system alone");
    int r = check_kernel_file(in, "kernel", "vmlinuz", false);
    if (r == 0)
        r = check_kernel_file(in, "vmlinux", "vmlinux", true);
    if (in->folder && !part_path(in, "vmlinux", "vmlinux", path))
        report_note(in->report, "kernel.no-vmlinux", "vmlinux", "", "",
                    "there is no uncompressed kernel: VMs of this image run under QEMU, not under Firecracker");
    if (r == 0)
        r = check_initrd(in);
    if (r == 0 && in->type != IMAGE_TYPE_TEST)
        r = check_modules(in);
    return r;
}
