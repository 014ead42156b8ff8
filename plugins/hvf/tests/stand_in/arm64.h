/* The arm64 stand-in: vCPUs over the Unicorn engine, each with an engine of its own.
 *
 * Engines do not see each other's atomic instructions, so that vCPUs run in turns. */
#ifndef STAND_IN_ARM64_H
#define STAND_IN_ARM64_H

#include "stand_in.h"

#include <unicorn/unicorn.h>

enum { MOST_VCPUS = 64, PAGE = 0x4000, DEFAULT_IPA_BITS = 36, MOST_IPA_BITS = 40 };

/* hv_reg_t */
enum { R_FP = 29, R_LR = 30, R_PC = 31, R_FPCR = 32, R_FPSR = 33, R_CPSR = 34, R_COUNT = 35 };

/* hv_exit_reason_t */
enum { EXIT_CANCELED, EXIT_EXCEPTION, EXIT_VTIMER, EXIT_UNKNOWN };

struct exit_info {
    uint32_t reason, padding;
    uint64_t syndrome, virtual_address, physical_address;
};

struct region {
    uint64_t ipa, bytes;
    uint8_t *host;
    uint64_t flags;
};

struct debug_pair {
    uint64_t value, control;
};

struct vcpu {
    pthread_t owner;
    uc_engine *engine;
    uc_context *context;
    struct exit_info *exit;
    unsigned regions_seen; /* machine->generation that the engine's memory is of */
    atomic_int asked_to_exit, inside, code_changed; /* asked of it */
    atomic_int yield, disturbed, entered;             /* see on_block, run_vcpu */
    bool pending[2]; /* IRQ, FIQ */
    bool timer_masked, trap_debug, trap_debug_access;
    uint64_t timer_offset, mdscr, mpidr;
    uint64_t timer_control, timer_compare; /* the engine has no timer */
    struct debug_pair breaks[16], watches[16];
    uint64_t step_pending; /* PSTATE.SS, which the engine does not know */
    /* what the hooks found in the last entry */
    int exception; /* QEMU's number, -1: none */
    int unmapped;  /* uc_mem_type, -1: none */
    uint64_t fault_address;
    uint32_t syndrome;
    uint64_t fault_virtual;
    uint64_t block, block_end; /* the code that was begun last */
    int hit; /* 1 a breakpoint, 2 a watchpoint */
    uint64_t hit_address, watched_bytes;
};

struct machine {
    unsigned ipa_bits;
    struct region regions[1024];
    unsigned region_count;
    atomic_uint generation;
    struct vcpu *vcpus[MOST_VCPUS];
};

extern struct machine *machine;
extern pthread_mutex_t machine_lock; /* regions and vCPUs */
extern size_t exception_place;       /* of the syndrome in a saved context; the address is 8 bytes behind it */

/* arm64_state.c */
int state_find_places(void);
uint64_t state_system(struct vcpu *vcpu, uint16_t number);
void state_set_system(struct vcpu *vcpu, uint16_t number, uint64_t value);
int state_knows_system(uint16_t number);
uint64_t state_pstate(struct vcpu *vcpu);
void state_set_pstate(struct vcpu *vcpu, uint64_t value);
uint64_t state_sp(struct vcpu *vcpu, unsigned level);
void state_set_sp(struct vcpu *vcpu, unsigned level, uint64_t value);
uint64_t state_pc(struct vcpu *vcpu);
void state_set_pc(struct vcpu *vcpu, uint64_t value);
/* The CPU takes an exception to EL1: Arm ARM, AArch64.TakeException. `kind`: 0 synchronous, 1 IRQ, 2 FIQ. */
void state_take_exception(struct vcpu *vcpu, unsigned kind, uint32_t syndrome, uint64_t address, int has_address);
/* The instruction at an address, 0 if there is none. */
uint32_t state_instruction(struct vcpu *vcpu, uint64_t address);

/* arm64_run.c */
int run_vcpu(struct vcpu *vcpu);
int run_hooks(struct vcpu *vcpu);
void run_synchronise(struct vcpu *vcpu);

/* arm64_timer.c */
uint64_t run_counter(void);
int timer_hooks(struct vcpu *vcpu);
/* Ticks until the virtual timer fires: 0 now, ~0 never. It is looked at before each block of code. */
uint64_t timer_ticks(struct vcpu *vcpu);
/* The timer's registers: whether `number` is one, and then its value. */
int timer_read(struct vcpu *vcpu, uint16_t number, uint64_t *value);
int timer_write(struct vcpu *vcpu, uint16_t number, uint64_t value);

#define SYS(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
enum {
    S_MDSCR = SYS(2, 0, 0, 2, 2), S_MPIDR = SYS(3, 0, 0, 0, 5), S_SCTLR = SYS(3, 0, 1, 0, 0), S_SPSR = SYS(3, 0, 4, 0, 0),
    S_ELR = SYS(3, 0, 4, 0, 1), S_SP_EL0 = SYS(3, 0, 4, 1, 0), S_ESR = SYS(3, 0, 5, 2, 0), S_FAR = SYS(3, 0, 6, 0, 0),
    S_VBAR = SYS(3, 0, 12, 0, 0), S_TPIDR_EL1 = SYS(3, 0, 13, 0, 4), S_CNTV_CTL = SYS(3, 3, 14, 3, 1),
    S_CNTV_CVAL = SYS(3, 3, 14, 3, 2), S_CNTV_TVAL = SYS(3, 3, 14, 3, 0), S_SP_EL1 = SYS(3, 4, 4, 1, 0), S_HCR_EL2 = SYS(3, 4, 1, 1, 0), S_SCR_EL3 = SYS(3, 6, 1, 1, 0)
};

#endif
