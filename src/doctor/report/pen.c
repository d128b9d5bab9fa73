#include "doctor/report/pen.h"

#include <string.h>

#include "base/str.h"

#define OFF "\033[0m"
#define TEXT_MAX 4096 /* bytes of one paragraph, escaped */

void pen_ink(const struct pen *pen, const char *colour, const char *text) {
    if (pen->colour && *colour)
        fprintf(pen->to, "%s%s" OFF, colour, text);
    else
        fputs(text, pen->to);
}

void pen_say(const struct pen *pen, const char *text) {
    char shown[TEXT_MAX];
    fputs(str_escape(text, strnlen(text, TEXT_MAX / 4 - 1), shown, sizeof shown), pen->to);
}

/* Columns of UTF-8, near enough. */
static int columns_of(const char *text, size_t len) {
    int columns = 0;
    for (size_t i = 0; i < len; i++)
        columns += ((unsigned char)text[i] & 0xc0) != 0x80;
    return columns;
}

void pen_paragraph(const struct pen *pen, int indent, const char *head, const char *colour, const char *text) {
    char shown[TEXT_MAX];
    str_escape(text, strnlen(text, TEXT_MAX / 4 - 1), shown, sizeof shown);
    int at = fprintf(pen->to, "%-*s", indent, head);
    bool begun = false;
    if (pen->colour)
        fputs(colour, pen->to);
    for (const char *word = shown; *word;) {
        size_t len = strcspn(word, " ");
        int columns = columns_of(word, len);
        if (begun && at + 1 + columns > pen->width) {
            at = fprintf(pen->to, "\n%*s", indent, "") - 1; /* without the line's end */
            begun = false;
        }
        at += fprintf(pen->to, "%s%.*s", begun ? " " : "", (int)len, word) > 0 ? columns + begun : 0;
        begun = true;
        word += len;
        word += strspn(word, " ");
    }
    fputs(pen->colour && *colour ? OFF "\n" : "\n", pen->to);
}

static void add_word(struct strbuf *to, const char *option, const char *word) {
    char shown[256];
    str_escape(word, strlen(word), shown, sizeof shown);
    bool plain = !strpbrk(shown, " \t\"'\\$`;&|<>(){}*?!#~");
    strbuf_addf(to, plain ? " %s %s" : " %s '%s'", option, shown);
}

void pen_command(const struct doctor_case *c, uint32_t target, struct strbuf *ret) {
    const struct target *t = &c->judgements[target].target;
    char ip[NET_IP_TEXT];
    strbuf_addf(ret, "mctl doctor");
    if (*c->before->host.netns)
        add_word(ret, "--netns", c->before->host.netns);
    if (*t->bridge)
        add_word(ret, "--bridge", t->bridge);
    if (*t->vm_id) {
        add_word(ret, "--vm", t->vm_id);
        return;
    }
    add_word(ret, "--tap", t->tap);
    net_format_ip(t->ip, ip);
    if (t->ip)
        add_word(ret, "--guest-ip", ip);
    if (t->port)
        strbuf_addf(ret, " --guest-port %u", t->port);
}
