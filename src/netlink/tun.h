/* TAP devices by /dev/net/tun. rtnetlink refuses to make them; it does the rest (link.h).
 *
 * A TAP here is single queue, without packet information, with a vnet header of 12 bytes: what Firecracker and QEMU
 * expect. It lives as long as a descriptor holds it, and longer only once it is persistent. While it is held, nobody
 * else can attach: that is how a TAP without a holder is told from one with.
 *
 * Source: Documentation/networking/tuntap.rst, drivers/net/tun.c; Firecracker's src/vmm/src/devices/virtio/net/tap.rs
 * (flags, header size).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define TUN_DEVICE "/dev/net/tun"
#define TAP_VNET_HDR_SIZE 12 /* bytes: struct virtio_net_hdr_mrg_rxbuf */
#define TAP_NAME_TEXT 16
#define TAP_HOLDERS_MAX 65536

/* Whether TAPs can be made here at all. Errors: "tun.missing" -ENODEV, with what to do; "tun.no-permission". */
int tun_check(struct err *err);

/* Makes a TAP that vanishes when *ret_fd is closed, until tap_persist(): whoever dies half-way leaves nothing behind.
 * owner_uid: who may attach besides root. Errors: "tun.exists" -EEXIST, any device of that name is there;
 * "tun.bad-name"; "tun.missing"; "tun.no-permission"; "tun.failed". */
int tap_create(int nsfd, const char *name, uid_t owner_uid, int *ret_fd, struct err *err);

/* Lets a TAP outlive its descriptors. */
int tap_persist(int fd, struct err *err);

/* Attaches to an existing persistent TAP; the caller closes *ret_fd or hands it to a VMM. Sets the header's size, which
 * the last holder may have changed.
 * Errors: "tun.no-such-tap" -ENODEV; "tun.held" -EBUSY, a process holds it (tap_holder_find() tells which);
 * "tun.not-a-tap" -EINVAL, or one of another sort (multi queue); "tun.failed". */
int tap_open(int nsfd, const char *name, int *ret_fd, struct err *err);

/* A process that has a TAP of the namespace open, by /proc/PID/fdinfo. Where it cannot be told in which namespace a
 * TAP is, one of the same name counts. */
struct tap_holder {
    char name[TAP_NAME_TEXT];
    pid_t pid;
};

/* All holders of the namespace that this process may see; the caller frees *ret. Return: 0 or -errno. */
int tap_holders(int nsfd, struct tap_holder **ret, size_t *ret_count);

/* The first holder of one TAP that is not `except` (0: whoever). Return: its pid, 0 when there is none, -errno. */
pid_t tap_holder_find(int nsfd, const char *name, pid_t except);
