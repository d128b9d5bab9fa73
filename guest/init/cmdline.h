/* The pure part of the guest's init: what the kernel command line and the list of modules say. No I/O, so that
 * tests/unit/test_guest_cmdline.c can try every line on the host. */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>

/* What `ip=` asks for, in the kernel's own syntax.
 * Source: Documentation/admin-guide/nfs/nfsroot.rst
 *   ip=<client>:<server>:<gw>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>:<dns1>:<ntp0>
 * Not taken over from there: autoconfiguration (dhcp and its like), and guessing the netmask from the address's class,
 * which gives 192.168.x.y a /24 on a /16 bridge and cuts off its gateway. */
struct guest_ip {
    struct in_addr client;
    struct in_addr gateway; /* 0.0.0.0: none */
    struct in_addr netmask;
    unsigned prefix_bits;  /* of the netmask: 16 for 255.255.0.0 */
    struct in_addr dns[2]; /* 0.0.0.0: none */
    char hostname[65];     /* "": none. Up to the first dot, as the kernel does */
    char device[16];       /* "": the first NIC */
};

enum guest_ip_state {
    GUEST_IP_NONE, /* no ip=, or ip=off: leave the network alone */
    GUEST_IP_STATIC,
    GUEST_IP_BAD, /* ip_why says what is wrong */
};

struct guest_cmdline {
    char root[64]; /* "": none given */
    char overlay
        [64]; /* mc.overlay=: a disk for what is written, over a root that is not; "": the root is the VM's own */
    char rootfstype[16]; /* default ext4 */
    char init[128];      /* default /sbin/init */
    bool writable;       /* rw; the kernel's default is ro */
    enum guest_ip_state ip_state;
    struct guest_ip ip; /* of GUEST_IP_STATIC */
    char ip_why[160];
};

/* Reads the value of an ip= parameter.
 * why, why_size: gets one line of English where the answer is not 0; never NULL.
 * Return: 0, -ENODATA (off, none or empty: nothing is to be configured, not an error), -EINVAL. */
int guest_ip_parse(const char *value, struct guest_ip *ret_ip, char *why, size_t why_size);

/* Is the address in the network that client and netmask span? */
bool guest_ip_on_link(const struct guest_ip *ip, struct in_addr address);

/* Reads a kernel command line. Parameters that are not ours are passed over; of a parameter given twice the last
 * counts, as in the kernel; what follows "--" is init's own.
 * Return: 0, or -ENAMETOOLONG where root=, mc.overlay=, rootfstype= or init= does not fit (ret_cmdline is untouched). A bad ip= is
 * not an error here: a guest without network still boots and tells so. */
int guest_cmdline_parse(const char *text, struct guest_cmdline *ret_cmdline);

/* Walks a list of modules: one file name a line, # starts a comment.
 * cursor: in: where to read; out: behind the line that was taken.
 * Return: 1 with a name, 0 at the end, -EINVAL for a name that is too long or has a slash (it is passed over; go on). */
int guest_modules_next(const char **cursor, char *ret_name, size_t name_size);
