/* Inside of the boot check: what its files share. boot_check.c brings the guest up and takes it down, boot_ask.c asks its
 * agent, boot_judge.c (pure) makes findings of what was seen. */
#pragma once

#include "agent/agent.h"
#include "image/image.h"
#include "vm/boot_check.h"
#include "vm/machine.h"

enum boot_stage {
    BOOT_CONSOLE,  /* the kernel's first word */
    BOOT_AGENT,    /* the agent answers */
    BOOT_NETWORK,  /* a ping is answered */
    BOOT_SERVICES, /* systemd has nothing more to start */
    BOOT_DESKTOP,  /* RFB behind WebSocket */
    BOOT_WINDOW,   /* Chromium's is mapped */
    BOOT_STAGES,
};
extern const char *const boot_stage_names[BOOT_STAGES];

enum boot_phase {
    BOOT_WAIT,  /* until it is what it should be, or nothing more is to be hoped for */
    BOOT_LOOK,  /* the agent is asked */
    BOOT_PROVE, /* what was reached once is asked again */
    BOOT_STOP,  /* the power button was pressed */
    BOOT_OVER,
};

#define BOOT_LOGS_MAX 4

struct boot {
    const struct boot_params *params;
    struct config config;
    struct image image;
    struct vmm_choice choice;
    struct vm vm;
    struct loop *loop;
    struct network *network;
    struct agent *agent;
    struct probe *probe;
    struct vmm_watch *watch;
    struct loop_timer *tick;
    sd_event_source *process;
    pid_t pid;
    int pidfd;
    char folder[VMS_PATH_MAX]; /* the VM's */
    enum boot_phase phase;
    int64_t begun_ms;           /* monotonic: the VMM's start */
    int64_t stage[BOOT_STAGES]; /* ms since begun_ms; -1: not seen */
    int timeout_ms;
    int64_t probe_again_ms, settle_again_ms; /* since begun_ms */
    char words[BOOT_STAGES][256];            /* how the last attempt went */
    enum boot_stage proving;                 /* in BOOT_PROVE */
    int lost[BOOT_STAGES];                   /* attempts that failed then */
    int64_t stop_ms;                         /* since begun_ms: the power button; -1: not pressed */
    int64_t shutdown_ms;                     /* from there to the VMM's end; -1: it had to be killed */
    bool is_killed;
    char halted[160]; /* why the machine cannot go on, or not well; empty: it can */
    char panic[160];  /* the kernel's words; empty: it did not */
    char ended[96];   /* how the VMM ended; empty: it runs */

    /* boot_ask.c */
    struct agent_job *job;
    json_t *facts; /* answers by the question's name; {"error":"…"} for one that was not answered */
    struct strbuf output;
    unsigned question;
    int64_t window_again_ms;
    char logs[BOOT_LOGS_MAX][64]; /* units whose last lines are wanted */
    unsigned log_count, log_asked;
};

/* What an agent is asked, and what its answer (with "output") says: also of a template that boots (template_boot.c). */
json_t *boot_ask_manager(void);
bool boot_is_settled(json_t *manager); /* systemd has nothing more to start */
json_t *boot_ask_windows(void);
bool boot_find_window(json_t *windows, char *ret_title, size_t size); /* Chromium's, mapped */

/* Milliseconds since the VMM's start. */
int64_t boot_now(const struct boot *b);

/* Whether the image must have it. */
bool boot_needs(const struct boot *b, const struct need *need);

void boot_reach(struct boot *b, enum boot_stage stage);
bool boot_has(const struct boot *b, enum boot_stage stage);

#define BOOT_ATTEMPTS 3 /* so many must fail before what was reached once is lost */

/* Once nothing more is to be asked: asks for the path again, and then presses the power button. */
void boot_prove_again(struct boot *b);

/* Asks systemd how far it is; notes BOOT_SERVICES. Does nothing while another question is under way. */
void boot_ask_settled(struct boot *b);

/* Asks all there is to ask, then boot_prove_again(). To be called on each tick of BOOT_LOOK. */
void boot_ask_on(struct boot *b);
void boot_ask_free(struct boot *b);

/* Findings and facts of what was seen. tail: the console's last lines. */
void boot_judge(const struct boot *b, struct image_report *report);
json_t *boot_facts(const struct boot *b, json_t *tail);

/* How a needed unit is, in words: "active", "masked", "failed (exit-code), started again 4 times". units: the agent's
 * answer. Return: whether that is as it should be. */
bool boot_unit_state(json_t *units, const char *name, char *ret_words, size_t size);
