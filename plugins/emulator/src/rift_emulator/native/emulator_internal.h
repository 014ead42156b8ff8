/* Shared by the C files of the ISA-independent half. */
#ifndef RIFT_EMULATOR_INTERNAL_H
#define RIFT_EMULATOR_INTERNAL_H

#include "emulator.h"
#include "emulator_services.h"
#include "rift_dispatch.h"
#include "unicorn_engine.h"

#include <pthread.h>
#include <stdatomic.h>

#define PAGE UINT64_C(4096)

/* -- turns: emulator_turn.c ------------------------------------------------------------------------- */

struct rift_emulator_turn;

struct rift_emulator_turn *rift_emulator_turn_create(void);
struct rift_emulator_turn *rift_emulator_turn_hold(struct rift_emulator_turn *turn); /* one more reference */
void rift_emulator_turn_release(struct rift_emulator_turn *turn);

/* Takes the turn, in the order of asking. `control`: the vCPU that wants it, whose kick ends the wait with -1 if
 * `kickable`; NULL: the host. Nested calls of one thread count. Returns 1 if somebody else had it since, else 0. */
int rift_emulator_turn_take(struct rift_emulator_turn *turn, struct rift_emulator_control *control, int kickable);
void rift_emulator_turn_give(struct rift_emulator_turn *turn);

/* Whether the calling thread has it. */
int rift_emulator_turn_mine(struct rift_emulator_turn *turn);

/* Has everybody who waits look whether they were kicked. */
void rift_emulator_turn_wake(struct rift_emulator_turn *turn);

/* -- control: emulator_control.c -------------------------------------------------------------------- */

/* Outlives its vCPU, so that a late kick is harmless. */
struct rift_emulator_control {
    atomic_uint references;
    atomic_uint kick;        /* somebody wants the owner out of the guest */
    atomic_uint yield;       /* somebody waits for the turn, or for the owner to look at what has changed */
    atomic_uint inside;      /* the owner is in rift_emulator_vcpu_run */
    atomic_uint dispatching; /* the owner is in a native handler */
    atomic_ulong exits;      /* written by the owner only */
    struct rift_emulator_turn *turn;
};

struct rift_emulator_control *rift_emulator_control_create(struct rift_emulator_turn *turn);

/* Whether the owner is to leave the engine: it has been kicked, or is to yield. Asked before each block of code. */
static inline int rift_emulator_control_wanted(const struct rift_emulator_control *control) {
    return atomic_load_explicit(&control->kick, memory_order_relaxed) ||
           atomic_load_explicit(&control->yield, memory_order_relaxed);
}

/* Makes the owner leave the engine, soon and without an exit. */
void rift_emulator_control_yield(struct rift_emulator_control *control);

/* -- virtual machines: emulator_vm.c ---------------------------------------------------------------- */

/* A part of guest-physical memory. */
struct rift_emulator_region {
    uint64_t gpa, bytes;
    uint8_t *host;
    int writable;
};

struct rift_emulator_vm {
    const struct rift_emulator_binding *binding;
    struct rift_dispatch *dispatch;
    struct rift_emulator_turn *turn;
    uint64_t gpa_end;
    uint32_t flags, code_buffer, slot_limit;
    pthread_mutex_t lock;                 /* regions and vcpus */
    struct rift_emulator_region *regions; /* sorted by gpa */
    uint32_t region_count;
    atomic_uint generation; /* of the regions */
    atomic_uint flushes;    /* how often translations were to be flushed */
    struct rift_emulator_vcpu *vcpus;
    uint32_t created;
};

/* The region with `gpa`, or NULL; under the VM's lock or the turn. */
const struct rift_emulator_region *rift_emulator_vm_find(const struct rift_emulator_vm *vm, uint64_t gpa);

/* -- device accesses: emulator_device.c ------------------------------------------------------------- */

/* One access of the instruction that is being run. */
struct rift_emulator_access {
    uint64_t gpa, value;
    uint32_t size, is_write;
};

/* Accesses that one instruction may make; FXSAVE makes 64. */
#define RIFT_EMULATOR_ACCESSES 128

/* Pages of holes that the engine knows as devices. */
#define RIFT_EMULATOR_DEVICE_PAGES 64

struct rift_emulator_device_page {
    struct rift_emulator_vcpu *vcpu;
    uint64_t gpa;
};

struct rift_emulator_devices {
    struct rift_emulator_access log[RIFT_EMULATOR_ACCESSES];
    uint32_t count, next; /* how many, and the next that is repeated */
    uint32_t unanswered;  /* the last one is a read that Python answers */
    struct rift_emulator_access now; /* that the engine carries out */
    uint64_t now_first, now_end;     /* where the pieces of it may lie: aligned, and so beyond it */
    uint64_t rest_value; /* of an access that goes on in the next page */
    uint32_t rest;       /* its bytes there; 0: none */
    uint32_t pieces;     /* bytes of a store that are still to come one by one */
    uint64_t last_pc; /* of the last access that a native handler served outside of a step */
    struct rift_emulator_access last;
    int has_last;
    uint64_t wanted_page; /* a hole that is to become a device page */
    int has_wanted_page;
    struct rift_emulator_device_page pages[RIFT_EMULATOR_DEVICE_PAGES];
    uint32_t page_oldest;
    unicorn_hook *hooks; /* two for each hole */
    uint32_t hook_count;
};

/* Outside of the engine: the holes are those between the engine's writable regions, which are sorted. */
int rift_emulator_devices_watch(struct rift_emulator_vcpu *vcpu, struct rift_error *error);
void rift_emulator_devices_release(struct rift_emulator_vcpu *vcpu);
/* Outside of the engine: maps the wanted page, if there is one. */
int rift_emulator_devices_map(struct rift_emulator_vcpu *vcpu, struct rift_error *error);
/* Outside of the engine: no device page lies in [gpa, gpa + bytes) any more. */
void rift_emulator_devices_clear(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint64_t bytes);

/* -- translated code: emulator_code.c --------------------------------------------------------------- */

#define RIFT_EMULATOR_CODE_PAGES 512
#define RIFT_EMULATOR_CODE_SLOTS 2048

/* What the engine has translated of one page of memory, and the bytes it had then. */
struct rift_emulator_code_page {
    uint64_t gpa;
    uint32_t first, end;
    uint8_t *copy; /* a page; [first, end) is filled in */
};

struct rift_emulator_code {
    struct rift_emulator_code_page *pages; /* the first `count` are in use */
    uint16_t *index;                       /* hash table with open addressing: page -> place in `pages` */
    uint32_t count;
    int overflow;
};

int rift_emulator_code_setup(struct rift_emulator_vcpu *vcpu, struct rift_error *error);
int rift_emulator_run_setup(struct rift_emulator_vcpu *vcpu, struct rift_error *error);
void rift_emulator_code_release(struct rift_emulator_vcpu *vcpu);
/* Notes that [gpa, gpa + bytes) was, or will be, translated. */
void rift_emulator_code_note(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint64_t bytes);
/* Outside of the engine: drops all translations. */
void rift_emulator_code_flush(struct rift_emulator_vcpu *vcpu);
/* Outside of the engine: drops translations of code that somebody else has changed. */
void rift_emulator_code_check(struct rift_emulator_vcpu *vcpu);

/* -- debugging: emulator_debug.c -------------------------------------------------------------------- */

struct rift_emulator_points {
    struct rift_emulator_debug_point points[RIFT_EMULATOR_DEBUG_POINTS];
    uint32_t count;
    unicorn_hook watch; /* 0: none */
    unicorn_hook breaks[RIFT_EMULATOR_DEBUG_POINTS]; /* 0: none */
    int hit;            /* index of the watchpoint that the running instruction has touched, or -1 */
};

/* -- executed code: emulator_profile.c -------------------------------------------------------------- */

struct rift_emulator_profile {
    unicorn_hook hook;                  /* 0: off */
    struct rift_emulator_block *blocks; /* hash table by pc and size, open addressing; count 0: free */
    uint32_t slots, used;               /* a power of two */
    uint64_t pc;                        /* the block that runs */
    uint32_t bytes;                     /* 0: none */
};

void rift_emulator_profile_release(struct rift_emulator_vcpu *vcpu);

/* -- vCPUs: emulator_vcpu.c, emulator_run.c --------------------------------------------------------- */

/* What a hook has decided. */
enum rift_emulator_outcome {
    RIFT_EMULATOR_NOTHING = 0,
    RIFT_EMULATOR_HAS_EXIT,    /* window.exit, for Python */
    RIFT_EMULATOR_HAS_STOPPED, /* by a native handler */
    RIFT_EMULATOR_HAS_FAILED,  /* window.error */
    RIFT_EMULATOR_WAITED,      /* a native handler's wait was kicked: it is asked again */
    RIFT_EMULATOR_AGAIN        /* leave the engine and enter it again */
};

#define RIFT_EMULATOR_DEFERRED 64

struct rift_emulator_vcpu {
    struct rift_emulator_cpu cpu;
    const struct rift_emulator_binding *binding;
    struct rift_emulator_vm *vm;
    struct rift_emulator_control *control;
    struct rift_host host;
    struct rift_emulator_window window;
    enum rift_emulator_outcome outcome;
    struct rift_exit pending; /* an exit that happened while an access was completed */
    enum rift_emulator_outcome pending_outcome;
    int completing;    /* only the open access is to be completed */
    int step_due;      /* an instruction ended with an exit: the step's exit follows */
    int precise;       /* a native handler did something after which the instruction must be the last */
    int touched;       /* somebody else may have written to memory since the last look at the code */
    uint32_t deferred; /* registers that a native handler wrote in the middle of an instruction */
    uint32_t deferred_ids[RIFT_EMULATOR_DEFERRED];
    uint64_t deferred_words[RIFT_EMULATOR_DEFERRED];
    struct rift_emulator_devices devices;
    struct rift_emulator_code code;
    struct rift_emulator_points points;
    struct rift_emulator_profile profile;
    struct rift_emulator_region *mapped; /* what the engine has */
    uint32_t mapped_count;
    unsigned generation, flushes;
    struct rift_emulator_vcpu *next;
};

/* The bindings that are compiled in. */
const struct rift_emulator_binding *rift_emulator_x86_64(void);
const struct rift_emulator_binding *rift_emulator_aarch64(void);

/* emulator_vcpu.c: an engine with its context; on failure both are to be closed all the same. */
int rift_emulator_engine_open(const struct rift_emulator_binding *binding, uint32_t code_buffer,
                              struct unicorn **engine, struct unicorn_context **context, struct rift_error *error);
void rift_emulator_engine_close(struct unicorn *engine, struct unicorn_context *context);

/* emulator_layout.c: the only place of `bytes` in a saved context, or 0. */
size_t rift_emulator_find(const uint8_t *context, size_t size, const void *bytes, size_t count);

/* Once a process, as `known` says, has `learn` look at an engine of its own: 1 if it recognises its state. Returns 0,
 * or -1 with the error filled in. */
int rift_emulator_recognise(const struct rift_emulator_binding *binding, int *known,
                            int (*learn)(struct unicorn *engine, struct unicorn_context *context),
                            struct rift_error *error);

/* Fills in the error; returns -1. */
int rift_emulator_fail(struct rift_error *error, int code, const char *operation);

/* emulator_vcpu.c: gives the engine what has changed since it last ran. Outside of the engine, with the turn. */
int rift_emulator_vcpu_synchronise(struct rift_emulator_vcpu *vcpu, struct rift_error *error);

/* emulator_host.c: fills in what native handlers may call. */
void rift_emulator_host_init(struct rift_emulator_vcpu *vcpu);

/* emulator_run.c: completes an open access before registers are read or (`writing`) written. */
int rift_emulator_vcpu_settle(struct rift_emulator_vcpu *vcpu, int writing, struct rift_error *error);

/* emulator_run.c: offers an exit to the native handlers. RIFT_RESUME: exit->value has the answer. Anything else:
 * the outcome is set. */
int rift_emulator_vcpu_offer(struct rift_emulator_vcpu *vcpu, struct rift_exit *exit);

/* emulator_run.c: makes the engine stop, from one of its hooks. */
void rift_emulator_vcpu_leave(struct rift_emulator_vcpu *vcpu, enum rift_emulator_outcome outcome);

#endif
