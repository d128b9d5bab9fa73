/* The command line of `mctl doctor`: every mistake is told before anything is looked at. */
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "base/str.h"
#include "cli/doctor.h"
#include "doctor/rules/catalogue.h"
#include "netlink/netns.h"

#define DEVICE_NAME_MAX 15 /* IFNAMSIZ without its NUL */

enum {
    OPT_NETNS = 256,
    OPT_BRIDGE,
    OPT_VM,
    OPT_TAP,
    OPT_IP,
    OPT_MAC,
    OPT_PORT,
    OPT_EXPLAIN,
    OPT_NO_TRACE,
    OPT_NO_PROBE,
    OPT_SAVE,
    OPT_FROM,
    OPT_STATE_DIR,
    OPT_REPAIR,
    OPT_UNDO,
    OPT_CAPTURE,
    OPT_WATCH,
    OPT_HELP,
};

static const struct option options[] = {
    {"netns", required_argument, NULL, OPT_NETNS},
    {"bridge", required_argument, NULL, OPT_BRIDGE},
    {"vm", required_argument, NULL, OPT_VM},
    {"tap", required_argument, NULL, OPT_TAP},
    {"guest-ip", required_argument, NULL, OPT_IP},
    {"guest-mac", required_argument, NULL, OPT_MAC},
    {"guest-port", required_argument, NULL, OPT_PORT},
    {"explain", no_argument, NULL, OPT_EXPLAIN},
    {"no-trace", no_argument, NULL, OPT_NO_TRACE},
    {"no-probe", no_argument, NULL, OPT_NO_PROBE},
    {"save", required_argument, NULL, OPT_SAVE},
    {"from", required_argument, NULL, OPT_FROM},
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"repair", optional_argument, NULL, OPT_REPAIR},
    {"undo", required_argument, NULL, OPT_UNDO},
    {"capture", required_argument, NULL, OPT_CAPTURE},
    {"watch", no_argument, NULL, OPT_WATCH},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

void doctor_request_help(FILE *to) {
    fputs("usage: mctl doctor [options]     says where on the way to a VM a packet dies, and why\n\n"
          "whom to look at (default: every TAP of the bridge)\n"
          "  --netns NAME         in this network namespace (ip netns)\n"
          "  --bridge NAME        the bridge; without it the one that has TAPs\n"
          "  --vm ID              a VM of the controller; any unique beginning of its id\n"
          "  --tap NAME           a VM's TAP, with what is known of the guest:\n"
          "    --guest-ip A  --guest-mac M  --guest-port P\n"
          "  --state-dir DIR      where the controller keeps its records\n"
          "what to show\n"
          "  --explain            the whole way, hop by hop, and the story\n"
          "  --json               one JSON document\n"
          "  --watch              go on, and tell when the findings change\n"
          "  --capture FILE       write what was seen on bridge and TAPs (pcapng)\n"
          "what to do\n"
          "  --repair             mend what is safe, prove it, take back what did not help\n"
          "  --repair=ID          mend the finding of that id, safe or not\n"
          "  --undo JOURNAL-ID    take a repair back\n"
          "how\n"
          "  --no-probe           send nothing, read the state alone\n"
          "  --no-trace           do not use the kernel's tracing\n"
          "  --save FILE          keep what was read and seen\n"
          "  --from FILE          judge such a file instead of this host\n\n"
          "Exit status: 0 healthy, 10 a root cause was found, 11 all were repaired and proven, 1 it could not be\n"
          "judged, 2 usage, 4 not found, 5 refused.\n",
          to);
}

static int usage(struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int usage(struct cli *cli, const char *fmt, ...) {
    struct err err = {.errnum = EINVAL, .code = "usage", .hint = "mctl doctor --help shows all options"};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err.detail, sizeof err.detail, fmt, ap);
    va_end(ap);
    return cli_error(cli, CLI_USAGE, &err);
}

static int take_device(struct cli *cli, const char *option, const char **ret) {
    size_t len = strlen(optarg);
    if (len == 0 || len > DEVICE_NAME_MAX || strpbrk(optarg, "/ \t\n"))
        return usage(cli, "%s: no device can have the name \"%s\" (1 to 15 bytes, no blank, no slash)", option, optarg);
    *ret = optarg;
    return 0;
}

static int take_netns(struct cli *cli, struct doctor_request *r) {
    if (!netns_name_is_valid(optarg))
        return usage(cli, "--netns: no network namespace can have the name \"%s\"", optarg);
    r->options.netns = optarg;
    return 0;
}

static int take_ip(struct cli *cli, struct doctor_request *r) {
    uint32_t ip;
    if (net_parse_ip(optarg, &ip) < 0)
        return usage(cli, "--guest-ip is no IPv4 address: %s", optarg);
    if (ip >> 24 == 0 || ip >> 24 == 127 || ip >> 28 >= 14)
        return usage(cli, "--guest-ip: no guest can have the address %s", optarg);
    r->options.guest_ip = ip;
    return 0;
}

static int take_mac(struct cli *cli, struct doctor_request *r) {
    static const struct net_mac zero;
    struct net_mac mac;
    if (net_parse_mac(optarg, &mac) < 0)
        return usage(cli, "--guest-mac is no MAC: %s (six pairs of hex digits, colons between)", optarg);
    if (mac.byte[0] & 1 || memcmp(&mac, &zero, sizeof mac) == 0)
        return usage(cli, "--guest-mac: no guest can have the MAC %s (it is a group's, or zero)", optarg);
    r->options.guest_mac = mac;
    r->options.has_mac = true;
    return 0;
}

static int take_port(struct cli *cli, struct doctor_request *r) {
    uint64_t port;
    if (str_to_u64(optarg, 1, 65535, &port) < 0)
        return usage(cli, "--guest-port is no TCP port: %s (1 to 65535)", optarg);
    r->options.guest_port = (uint16_t)port;
    return 0;
}

/* An id that the doctor never gives cannot be meant; the one that is meant begins the same way. */
static int take_repair(struct cli *cli, struct doctor_request *r) {
    const struct catalogue_row *row, *near = NULL;
    r->repair = optarg ? optarg : "";
    if (!optarg || catalogue_find(optarg))
        return 0;
    if (!*optarg)
        return usage(cli, "--repair=ID needs the id of a finding; --repair alone mends what is safe");
    if (str_starts(optarg, "unknown."))
        return usage(cli, "--repair=%s: of an unknown cause nobody knows the repair", optarg);
    for (size_t i = 0; (row = catalogue_at(i)) && !near; i++)
        if (str_starts(row->id, optarg) || (strchr(row->id, '.') && strcmp(strchr(row->id, '.') + 1, optarg) == 0))
            near = row;
    return usage(cli, "--repair=%s: no finding has this id%s%s", optarg, near ? "; did you mean " : "",
                 near ? near->id : "");
}

static int take_path(struct cli *cli, const char *option, const char **ret) {
    if (!*optarg)
        return usage(cli, "%s needs the path of a file", option);
    *ret = optarg;
    return 0;
}

/* Return: 0, or the exit status after the mistake was shown. */
static int take_option(struct cli *cli, struct doctor_request *r, int option, const char *word) {
    struct doctor_options *o = &r->options;
    switch (option) {
    case OPT_NETNS:
        return take_netns(cli, r);
    case OPT_BRIDGE:
        return take_device(cli, "--bridge", &o->bridge);
    case OPT_VM:
        o->vm = optarg;
        return *optarg ? 0 : usage(cli, "--vm needs a VM's id, or the beginning of one");
    case OPT_TAP:
        return take_device(cli, "--tap", &o->tap);
    case OPT_IP:
        return take_ip(cli, r);
    case OPT_MAC:
        return take_mac(cli, r);
    case OPT_PORT:
        return take_port(cli, r);
    case OPT_EXPLAIN:
        r->explain = true;
        return 0;
    case OPT_NO_TRACE:
        o->no_trace = true;
        return 0;
    case OPT_NO_PROBE:
        o->no_probe = true;
        return 0;
    case OPT_SAVE:
        return take_path(cli, "--save", &r->save);
    case OPT_FROM:
        return take_path(cli, "--from", &r->from);
    case OPT_STATE_DIR:
        return take_path(cli, "--state-dir", &o->state_dir);
    case OPT_REPAIR:
        return take_repair(cli, r);
    case OPT_UNDO:
        r->undo = optarg;
        return 0;
    case OPT_CAPTURE:
        return take_path(cli, "--capture", &r->capture);
    case OPT_WATCH:
        r->watch = true;
        return 0;
    case OPT_HELP:
        r->help = true;
        return 0;
    case ':':
        return usage(cli, "%s needs a value", word);
    }
    return usage(cli, "mctl doctor does not know %s%s", word, strchr(word, '=') ? ", or it takes no value" : "");
}

/* What makes no sense together. */
static int check_together(struct cli *cli, const struct doctor_request *r) {
    const struct doctor_options *o = &r->options;
    bool named = *o->vm || *o->tap;
    if (r->from && (r->repair || r->watch || r->undo || r->capture))
        return usage(cli, "--from looks at a file: there is nothing to repair, capture or watch");
    if (r->undo && (r->repair || r->watch || r->save || r->capture))
        return usage(cli, "--undo takes a repair back and does nothing else");
    if (r->watch && (r->repair || r->save || r->capture))
        return usage(cli, "--watch only looks: --repair, --save and --capture do not go with it");
    if (r->capture && o->no_probe)
        return usage(cli, "--capture shows what the probe sent and got: it does not go with --no-probe");
    if (*o->vm && *o->tap)
        return usage(cli, "--vm and --tap do not go together");
    if (!named && !r->from && (o->guest_ip || o->has_mac || o->guest_port))
        return usage(cli, "--guest-ip, --guest-mac and --guest-port belong to a --tap or --vm");
    return 0;
}

int doctor_request_parse(struct cli *cli, int argc, char **argv, struct doctor_request *r) {
    opterr = 0;
    for (;;) {
        const char *word = optind < argc ? argv[optind] : "";
        int option = getopt_long(argc, argv, "+:", options, NULL);
        if (option == -1)
            break;
        int status = take_option(cli, r, option, word);
        if (status)
            return status;
    }
    if (r->help)
        return 0;
    if (optind < argc)
        return usage(cli, "mctl doctor takes no \"%s\"%s", argv[optind],
                     str_starts(argv[optind], "fc-vm-") ? " (--tap NAME?)" : "");
    return check_together(cli, r);
}
