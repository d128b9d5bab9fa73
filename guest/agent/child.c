/* Programs: started with nothing inherited, in a session of their own, with pipes or a terminal. Users and groups are
 * read from the files, because a static program has no NSS. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"

#define ENV_MAX 64
#define GROUPS_MAX 64

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
    char name[64], home[256];
    bool change; /* we are root, and become somebody */
};

static void read_groups(struct account *account) {
    _cleanup_fclose_ FILE *f = fopen("/etc/group", "re");
    account->groups[account->group_count++] = account->gid;
    for (struct group *g; f && (g = fgetgrent(f));)
        for (char **member = g->gr_mem; *member; member++)
            if (strcmp(*member, account->name) == 0 && account->group_count < GROUPS_MAX)
                account->groups[account->group_count++] = g->gr_gid;
}

/* user NULL: who the agent is. */
static int find_account(const char *user, struct account *ret, struct err *err) {
    struct account account = {.uid = getuid(), .gid = getgid(), .name = "root", .home = "/"};
    _cleanup_fclose_ FILE *f = fopen("/etc/passwd", "re");
    struct passwd *p = NULL;
    while (f && (p = fgetpwent(f)) && (user ? strcmp(p->pw_name, user) != 0 : p->pw_uid != account.uid)) {
    }
    if (!p && user)
        return err_set(err, ENOENT, "exec.failed", "there is no user %s in the guest", user);
    if (p) {
        account.uid = p->pw_uid;
        account.gid = p->pw_gid;
        str_copy(account.name, sizeof account.name, p->pw_name);
        str_copy(account.home, sizeof account.home, p->pw_dir);
    }
    account.change = getuid() == 0 && user != NULL;
    if (account.change)
        read_groups(&account);
    *ret = account;
    return 0;
}

int child_user(const char *user, uid_t *ret_uid, gid_t *ret_gid, struct err *err) {
    struct account account;
    int r = find_account(user, &account, err);
    if (r < 0)
        return r;
    *ret_uid = account.uid;
    *ret_gid = account.gid;
    return 0;
}

/* ---- the environment ---- */

struct environment {
    char *item[ENV_MAX + 1];
    size_t n;
};

static void environment_free(struct environment *e) {
    for (size_t i = 0; i < e->n; i++)
        free(e->item[i]);
}

static int set_variable(struct environment *e, const char *name, const char *value) {
    size_t len = strlen(name);
    size_t at = 0;
    while (at < e->n && (strncmp(e->item[at], name, len) != 0 || e->item[at][len] != '='))
        at++;
    char *text = NULL;
    if (at == ENV_MAX || asprintf(&text, "%s=%s", name, value) < 0)
        return -E2BIG;
    if (at < e->n)
        free(e->item[at]);
    else
        e->n++;
    e->item[at] = text;
    return 0;
}

static int build_environment(const struct child_spec *spec, const struct account *account, struct environment *e,
                             struct err *err) {
    const char *name;
    json_t *value;
    int r = set_variable(e, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    r = r < 0 ? r : set_variable(e, "HOME", account->home);
    r = r < 0 ? r : set_variable(e, "USER", account->name);
    r = r < 0 ? r : set_variable(e, "LOGNAME", account->name);
    r = r < 0 ? r : set_variable(e, "LANG", "C.UTF-8");
    if (r == 0 && spec->has_pty)
        r = set_variable(e, "TERM", spec->term ? spec->term : "linux");
    json_object_foreach(spec->env, name, value) {
        if (r == 0 && (!json_is_string(value) || !*name || strchr(name, '=')))
            return err_set(err, EINVAL, "bad-request", "env is an object of strings");
        r = r < 0 ? r : set_variable(e, name, json_string_value(value));
    }
    return r < 0 ? err_set(err, E2BIG, "exec.failed", "there are more than %d environment variables", ENV_MAX) : 0;
}

/* ---- streams ---- */

/* The two ends of each: ours and the program's. */
struct streams {
    int ours[3], theirs[3];
    int pty; /* our side of the terminal; -1 */
};

static void streams_close(struct streams *s) {
    for (int i = 0; i < 3; i++) {
        fd_close(&s->ours[i]);
        fd_close(&s->theirs[i]);
    }
    fd_close(&s->pty);
}

static int make_pipe(int *ret_read, int *ret_write) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    *ret_read = fds[0];
    *ret_write = fds[1];
    return 0;
}

static int make_pipes(const struct child_spec *spec, struct streams *s) {
    int r = 0;
    if (spec->has_stdin)
        r = make_pipe(&s->theirs[0], &s->ours[0]);
    else
        s->theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int i = 1; r == 0 && i < 3; i++)
        r = make_pipe(&s->ours[i], &s->theirs[i]);
    return r < 0 ? r : s->theirs[0] < 0 ? -errno : 0;
}

/* One descriptor to read, one to write, one for the size: each is closed in its own time. */
static int make_pty(const struct child_spec *spec, struct streams *s) {
    struct winsize size = {.ws_row = (unsigned short)spec->rows, .ws_col = (unsigned short)spec->columns};
    s->pty = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (s->pty < 0 || grantpt(s->pty) < 0 || unlockpt(s->pty) < 0)
        return -errno;
    s->theirs[0] = ioctl(s->pty, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    s->ours[0] = fcntl(s->pty, F_DUPFD_CLOEXEC, 3);
    s->ours[1] = fcntl(s->pty, F_DUPFD_CLOEXEC, 3);
    if (s->theirs[0] < 0 || s->ours[0] < 0 || s->ours[1] < 0 || ioctl(s->pty, TIOCSWINSZ, &size) < 0)
        return -errno;
    s->theirs[1] = fcntl(s->theirs[0], F_DUPFD_CLOEXEC, 3);
    s->theirs[2] = fcntl(s->theirs[0], F_DUPFD_CLOEXEC, 3);
    return s->theirs[1] < 0 || s->theirs[2] < 0 ? -errno : 0;
}

/* ---- the child's side ---- */

/* The agent is spared when memory runs out; what it starts is not. */
static void be_killable(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) == 1)
        close(fd);
}

static int become(const struct child_spec *spec, const struct account *account, const struct streams *s) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    be_killable();
    if (setsid() < 0)
        return -errno;
    if (spec->has_pty && ioctl(s->theirs[0], TIOCSCTTY, 0) < 0)
        return -errno;
    /* All are above 2: the agent's own standard streams are open. */
    for (int i = 0; i < 3; i++)
        if (dup2(s->theirs[i], i) < 0)
            return -errno;
    if (account->change && (setgroups(account->group_count, account->groups) < 0 ||
                            setresgid(account->gid, account->gid, account->gid) < 0 ||
                            setresuid(account->uid, account->uid, account->uid) < 0))
        return -errno;
    if (spec->cwd)
        return chdir(spec->cwd) < 0 ? -errno : 0;
    return chdir(account->home) < 0 && chdir("/") < 0 ? -errno : 0;
}

__attribute__((noreturn)) static void run(const struct child_spec *spec, const struct account *account,
                                          const struct streams *s, char *const *env, int error_fd) {
    int errnum = -become(spec, account, s);
    if (errnum == 0) {
        execvpe(spec->argv[0], (char *const *)spec->argv, env);
        errnum = errno;
    }
    _exit(write(error_fd, &errnum, sizeof errnum) == sizeof errnum ? 127 : 126);
}

/* Return: 0 once the program runs, or the child's own -errno. */
static int start(const struct child_spec *spec, const struct account *account, const struct streams *s,
                 char *const *env, pid_t *ret_pid) {
    int read_end = -1, write_end = -1, errnum = 0;
    int r = make_pipe(&read_end, &write_end);
    if (r < 0)
        return r;
    _cleanup_close_ int read_fd = read_end, write_fd = write_end;
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0)
        run(spec, account, s, env, write_fd);
    fd_close(&write_fd);
    ssize_t n;
    while ((n = read(read_fd, &errnum, sizeof errnum)) < 0 && errno == EINTR) {
    }
    if (n > 0)
        return -errnum; /* SIGCHLD reaps it */
    *ret_pid = pid;
    return 0;
}

static void set_nonblocking(int fd) {
    if (fd >= 0)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

int child_start(struct job *job, const struct child_spec *spec, struct err *err) {
    struct account account;
    struct environment env = {0};
    struct streams s = {{-1, -1, -1}, {-1, -1, -1}, -1};
    int r = find_account(spec->user, &account, err);
    if (r == 0)
        r = build_environment(spec, &account, &env, err);
    if (r == 0 && (r = spec->has_pty ? make_pty(spec, &s) : make_pipes(spec, &s)) < 0)
        err_sys(err, -r, "exec.failed", "%s for %s",
                spec->has_pty ? "open a terminal (is /dev/pts mounted in the guest?)" : "make the streams",
                spec->argv[0]);
    if (r == 0 && (r = start(spec, &account, &s, env.item, &job->pid)) < 0)
        err_sys(err, -r, "exec.failed", "start %s", spec->argv[0]);
    environment_free(&env);
    if (r == 0) {
        job->in_fd = fd_steal(&s.ours[0]);
        job->out[0].fd = fd_steal(&s.ours[1]);
        job->out[1].fd = fd_steal(&s.ours[2]);
        job->pty_fd = fd_steal(&s.pty);
        set_nonblocking(job->in_fd);
        set_nonblocking(job->out[0].fd);
        set_nonblocking(job->out[1].fd);
    }
    streams_close(&s);
    return r;
}

int child_capture(struct job *job, const char *const *argv, void (*on_done)(struct job *job), struct err *err) {
    struct child_spec spec = {.argv = argv, .cwd = "/"};
    job->is_captured = true;
    job->on_done = on_done;
    return child_start(job, &spec, err);
}
