#include "netlink/nft.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <nftables/libnftables.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "netlink/netns.h"

#define DESCRIPTORS_NEEDED 16

int nft_check(int nsfd) {
    int fds[DESCRIPTORS_NEEDED];
    int r = netns_socket(nsfd, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER, &fds[0]);
    if (r < 0)
        return r;
    int count = 1;
    for (; r == 0 && count < DESCRIPTORS_NEEDED; count++) {
        fds[count] = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
        if (fds[count] < 0)
            r = -errno;
    }
    while (count > 0)
        fd_close(&fds[--count]);
    return r;
}

/* "Error: Could not process rule: Operation not permitted" and then the line with a caret under it: the first line
 * says it. */
static int refused(const char *words, struct err *err) {
    char shown[300];
    size_t len = words ? strcspn(words, "\n") : 0;
    str_escape(words ? words : "", len, shown, sizeof shown);
    return err_set(err, EINVAL, "nft.refused", "nftables refused: %s", len ? shown : "no reason given");
}

/* The library hands out the text once: the same call again gives "". */
static void take_output(struct nft_ctx *ctx, struct strbuf *output) {
    const char *text = nft_ctx_get_output_buffer(ctx);
    if (text)
        strbuf_add(output, text, strlen(text));
}

int nft_run(int nsfd, const char *commands, struct strbuf *output, struct err *err) {
    int r = nft_check(nsfd);
    if (r < 0)
        return err_sys(err, -r, "nft.unavailable", "open an nftables socket");
    /* Inside for all of it: the library opens sockets of its own while it evaluates. */
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    r = netns_enter(nsfd, &scope);
    if (r < 0)
        return err_sys(err, -r, "nft.unavailable", "enter the network namespace");
    struct nft_ctx *ctx = nft_ctx_new(NFT_CTX_DEFAULT);
    if (!ctx)
        return err_sys(err, ENOMEM, "nft.unavailable", "start nftables");
    if (nft_ctx_buffer_output(ctx) != 0 || nft_ctx_buffer_error(ctx) != 0)
        r = err_sys(err, ENOMEM, "nft.unavailable", "start nftables");
    else if (nft_run_cmd_from_buffer(ctx, commands) != 0)
        r = refused(nft_ctx_get_error_buffer(ctx), err);
    else if (output)
        take_output(ctx, output);
    nft_ctx_free(ctx);
    return r;
}
