/* What joins the emulator with one instruction set: a struct of functions that the run loop and its hooks call.
 *
 * Public: rift_emulator.get_include() is the folder of this header; a binding hands the address of its struct to
 * Rift as rift_core.backend.Binding.native. The file is also part of the cdef: declarations only, and a
 * preprocessor line stands alone on its line.
 *
 * The engine keeps the CPU's registers and its memory-management unit. What it leaves out, the delivery of
 * exceptions above all, is the binding's. All of it runs on the vCPU's owning thread. */
#ifndef RIFT_EMULATOR_BINDING_H
#define RIFT_EMULATOR_BINDING_H

#include "rift_abi.h"

/* Raised by any change of this header. A binding of another version is refused. */
#define RIFT_EMULATOR_BINDING_VERSION 1

struct unicorn;
struct unicorn_context;

enum rift_emulator_flag {
    RIFT_EMULATOR_SYSTEM_REGISTER_EXITS = 1 /* accesses to unknown system registers are wanted as exits */
};

/* Why the guest executes one instruction at a time. */
enum rift_emulator_step {
    RIFT_EMULATOR_STEP_USER = 1,   /* set_debug(single_step=True) */
    RIFT_EMULATOR_STEP_WATCH = 2,  /* there are watchpoints */
    RIFT_EMULATOR_STEP_ACCESS = 4, /* an instruction that touches a device is run again with its answers */
    RIFT_EMULATOR_STEP_WINDOW = 8  /* an interrupt waits until the guest takes interrupts */
};

/* A vCPU, as its binding sees it. */
struct rift_emulator_cpu {
    struct unicorn *engine;
    struct unicorn_context *context; /* for copies of the engine's CPU state */
    uint32_t index;
    uint32_t flags;    /* enum rift_emulator_flag */
    uint32_t stepping; /* enum rift_emulator_step; the loop's */
    uint32_t software; /* the ISA's breakpoint instruction is wanted as a DEBUG exit */
    uint32_t open;     /* the binding's: the last exit was a read whose answer `complete` takes */
    uint32_t leaving;  /* a hook has decided to leave the engine: nothing more happens before that */
    void *state;       /* the binding's own */
};

/* A register by its name in the manual, lower case. A register takes (bits + 63) / 64 words in a batch. */
struct rift_emulator_register {
    const char *name;
    uint32_t bits;
    uint16_t group, place; /* the binding's own */
    uint16_t read_only;    /* 1: it says what the CPU is, and is no part of its state */
};

enum rift_emulator_flow {
    RIFT_EMULATOR_GO_ON = 0, /* into, or on with, the engine */
    RIFT_EMULATOR_LEAVE = 1  /* an exit is waiting */
};

struct rift_emulator_binding {
    uint32_t version; /* RIFT_EMULATOR_BINDING_VERSION */
    uint32_t bytes;   /* sizeof(struct rift_emulator_binding) */
    const char *isa;
    const struct rift_emulator_register *registers; /* ids are indices of this table */
    uint32_t register_count;
    int architecture, mode; /* of uc_open */
    int cpu_model;          /* of uc_ctl, negative: the engine's default */

    /* Learns, once a process, where the engine keeps what has no name in its interface. Fails if this engine is
     * not the one that the binding was made for. */
    int (*learn)(struct rift_error *error);

    /* Prepare a new vCPU, whose engine is open; `release` accepts one whose setup has failed. */
    int (*setup)(struct rift_emulator_cpu *cpu, struct rift_error *error);
    void (*release)(struct rift_emulator_cpu *cpu);

    /* Before the engine: deliver what waits, arm the step that `stepping` asks for, and give the program counter.
     * Returns enum rift_emulator_flow. */
    int (*arm)(struct rift_emulator_cpu *cpu, uint64_t *pc);
    /* After the engine: the opposite of `arm`. */
    void (*disarm)(struct rift_emulator_cpu *cpu);
    uint64_t (*program_counter)(struct rift_emulator_cpu *cpu);

    /* Store the answer to the open read, if `open`. */
    void (*complete)(struct rift_emulator_cpu *cpu, uint64_t value);

    /* The guest-physical address behind a virtual one for a plain look, as the CPU is now. 0, or -1. */
    int (*translate)(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *physical);

    /* Nothing is open. */
    int (*read_registers)(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                          struct rift_error *error);
    int (*write_registers)(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count,
                           const uint64_t *words, struct rift_error *error);

    /* Deliver an exception at the next entry; of an open read, instead of its answer. */
    int (*inject_exception)(struct rift_emulator_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error);
    /* Deliver an interrupt as soon as the guest takes one; EBUSY: another one waits. */
    int (*inject_interrupt)(struct rift_emulator_cpu *cpu, uint32_t vector, struct rift_error *error);
    /* Forget what these two have left to be delivered. Nothing is open. */
    void (*drop_events)(struct rift_emulator_cpu *cpu);
};

#endif
