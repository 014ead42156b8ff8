/* Shared by the C files of the AArch64 binding. "Arm ARM" is DDI 0487.
 *
 * Numbers of the framework: hv_vcpu_types.h of the macOS 15.5 SDK. */
#ifndef RIFT_HVF_AARCH64_H
#define RIFT_HVF_AARCH64_H

#include "hvf_internal.h"

/* hv_reg_t */
enum hv_arm_register { HV_X0 = 0, HV_PC = 31, HV_FPCR = 32, HV_FPSR = 33, HV_CPSR = 34 };

enum hv_exit_reason { HV_EXIT_CANCELED = 0, HV_EXIT_EXCEPTION = 1, HV_EXIT_VTIMER = 2, HV_EXIT_UNKNOWN = 3 };

/* hv_sys_reg_t: the register's place in the instruction set, op0:op1:CRn:CRm:op2 in 16 bits; Arm ARM, D19. */
#define SYSTEM_REGISTER(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
enum hv_system_register {
    SYS_MDSCR_EL1 = SYSTEM_REGISTER(2, 0, 0, 2, 2),
    SYS_MPIDR_EL1 = SYSTEM_REGISTER(3, 0, 0, 0, 5),
    SYS_ID_AA64DFR0_EL1 = SYSTEM_REGISTER(3, 0, 0, 5, 0),
    SYS_SCTLR_EL1 = SYSTEM_REGISTER(3, 0, 1, 0, 0),
    SYS_TTBR0_EL1 = SYSTEM_REGISTER(3, 0, 2, 0, 0),
    SYS_TTBR1_EL1 = SYSTEM_REGISTER(3, 0, 2, 0, 1),
    SYS_TCR_EL1 = SYSTEM_REGISTER(3, 0, 2, 0, 2),
    SYS_SPSR_EL1 = SYSTEM_REGISTER(3, 0, 4, 0, 0),
    SYS_ELR_EL1 = SYSTEM_REGISTER(3, 0, 4, 0, 1),
    SYS_SP_EL0 = SYSTEM_REGISTER(3, 0, 4, 1, 0),
    SYS_ESR_EL1 = SYSTEM_REGISTER(3, 0, 5, 2, 0),
    SYS_MAIR_EL1 = SYSTEM_REGISTER(3, 0, 10, 2, 0),
    SYS_VBAR_EL1 = SYSTEM_REGISTER(3, 0, 12, 0, 0),
    SYS_CNTV_CTL_EL0 = SYSTEM_REGISTER(3, 3, 14, 3, 1),
    SYS_CNTV_CVAL_EL0 = SYSTEM_REGISTER(3, 3, 14, 3, 2),
    SYS_SP_EL1 = SYSTEM_REGISTER(3, 4, 4, 1, 0),
    /* not the framework's to read, but the guest's */
    SYS_OSLAR_EL1 = SYSTEM_REGISTER(2, 0, 1, 0, 4),
    SYS_OSLSR_EL1 = SYSTEM_REGISTER(2, 0, 1, 1, 4),
    SYS_OSDLR_EL1 = SYSTEM_REGISTER(2, 0, 1, 3, 4),
    SYS_CNTPCT_EL0 = SYSTEM_REGISTER(3, 3, 14, 0, 1),
    SYS_CNTVCT_EL0 = SYSTEM_REGISTER(3, 3, 14, 0, 2)
};
/* Breakpoint and watchpoint number n. */
#define SYS_DBGBVR(n) (uint16_t)SYSTEM_REGISTER(2, 0, 0, (n), 4)
#define SYS_DBGBCR(n) (uint16_t)SYSTEM_REGISTER(2, 0, 0, (n), 5)
#define SYS_DBGWVR(n) (uint16_t)SYSTEM_REGISTER(2, 0, 0, (n), 6)
#define SYS_DBGWCR(n) (uint16_t)SYSTEM_REGISTER(2, 0, 0, (n), 7)

/* PSTATE as in SPSR_EL1: Arm ARM, C5.2.20. */
#define PSTATE_SP 0x1u  /* M[0]: SP_EL1, not SP_EL0 */
#define PSTATE_EL 0xCu  /* M[3:2] */
#define PSTATE_EL1H 0x5u
#define PSTATE_F (1u << 6)
#define PSTATE_I (1u << 7)
#define PSTATE_A (1u << 8)
#define PSTATE_MASKED 0x3C0u /* D, A, I, F */
#define PSTATE_SSBS (1u << 12)
#define PSTATE_SS (1u << 21)
#define PSTATE_PAN (1u << 22)
#define PSTATE_DIT (1u << 24)
#define PSTATE_FLAGS 0xF0000000u /* N, Z, C, V */

#define SCTLR_M UINT64_C(1)
#define SCTLR_C (UINT64_C(1) << 2)
#define SCTLR_I (UINT64_C(1) << 12)
#define MDSCR_SS UINT64_C(1)
#define MDSCR_MDE (UINT64_C(1) << 15)

/* ESR_ELx.EC. */
enum exception_class {
    EC_WFX = 0x01, EC_HVC = 0x16, EC_SMC = 0x17, EC_SYSTEM_REGISTER = 0x18, EC_INSTRUCTION_ABORT = 0x20,
    EC_DATA_ABORT = 0x24, EC_BREAKPOINT = 0x30, EC_STEP = 0x32, EC_WATCHPOINT = 0x34, EC_BRK = 0x3C
};

enum { MOST_DEBUG_REGISTERS = 16 };

/* What waits to be finished. */
enum arm_open { ARM_OPEN_NOTHING, ARM_OPEN_LOAD, ARM_OPEN_STORE, ARM_OPEN_MRS, ARM_OPEN_MSR, ARM_OPEN_HYPERCALL,
                ARM_OPEN_SECURE_CALL };

/* A breakpoint or watchpoint register pair: value and control. */
struct arm_debug_pair {
    uint64_t value, control;
};

/* The binding's state of a vCPU: what the framework does not keep. */
struct rift_hvf_arm {
    uint64_t syndrome, pc; /* of the last exit; pc: of the instruction that exited */
    uint32_t open;         /* enum arm_open */
    uint32_t target;       /* the open access's register, 31: none */
    uint32_t size;         /* its bytes */
    uint32_t extend;       /* sign-extend to: 0 nothing, 4, 8 bytes */
    uint32_t flush;        /* a register that translation depends on was changed by the host */
    uint32_t timer_masked; /* a timer exit has masked the timer, until the guest has dealt with it */
    uint32_t repeats;      /* how often the same exit has led straight back into the guest */
    uint64_t repeated_ipa, repeated_pc;
    uint32_t interrupt;       /* one that waits: 1 IRQ, 2 FIQ, 0 none */
    uint32_t watches_vectors; /* breakpoints tell when it arrives, ... */
    uint64_t vector;          /* ... at this address, or 0x200 or 0x400 further */
    /* debugging by the host, and the guest's own registers meanwhile */
    uint32_t debug_step, debug_host, debug_on, breakpoints, watchpoints;
    struct arm_debug_pair break_points[MOST_DEBUG_REGISTERS], watch_points[MOST_DEBUG_REGISTERS];
    uint64_t guest_mdscr;
    struct arm_debug_pair guest_break[MOST_DEBUG_REGISTERS], guest_watch[MOST_DEBUG_REGISTERS];
};

static inline struct rift_hvf_arm *arm_of(const struct rift_hvf_cpu *cpu) {
    return cpu->state;
}

/* -- hvf_aarch64.c: calls ------------------------------------------------------------------------------ */

int rift_hvf_arm_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error);
int rift_hvf_arm_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error);
int rift_hvf_arm_system_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error);
int rift_hvf_arm_system_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error);
/* The host's counter, and nanoseconds in terms of it. Return 0, or -1 where the system has none. */
int rift_hvf_arm_counter(const struct rift_hvf_cpu *cpu, uint64_t *ticks);
int rift_hvf_arm_nanoseconds(const struct rift_hvf_cpu *cpu, uint64_t ticks, uint64_t *nanoseconds);
/* The guest's virtual counter. */
int rift_hvf_arm_virtual_counter(const struct rift_hvf_cpu *cpu, uint64_t *ticks);

/* -- hvf_aarch64_entry.c -------------------------------------------------------------------------------- */

int rift_hvf_arm_enter(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_arm_flush(struct rift_hvf_cpu *cpu, struct rift_error *error);

/* -- hvf_aarch64_exits.c, hvf_aarch64_psci.c ------------------------------------------------------------- */

int rift_hvf_arm_decode(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_arm_complete(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error);
/* PC to behind the instruction that exited. */
int rift_hvf_arm_advance(struct rift_hvf_cpu *cpu, struct rift_error *error);
/* A call by HVC, or SMC (`secure`): answered if it is PSCI's, else an exit. Returns as `decode`. */
int rift_hvf_arm_call(struct rift_hvf_cpu *cpu, int secure, struct rift_exit *exit, struct rift_error *error);
/* WFI: waits for the guest's timer if that runs, else it is an exit. */
int rift_hvf_arm_wait(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);

/* -- hvf_aarch64_faults.c: exceptions that the host causes ------------------------------------------------ */

int rift_hvf_arm_inject(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error);

/* The CPU takes an exception to the vector at `offset` of the four for each kind of origin. */
int rift_hvf_arm_take(struct rift_hvf_cpu *cpu, uint64_t pc, uint64_t pstate, uint32_t offset, struct rift_error *error);

/* -- hvf_aarch64_interrupts.c ------------------------------------------------------------------------------- */

/* 0 IRQ, 1 FIQ. */
int rift_hvf_arm_interrupt(struct rift_hvf_cpu *cpu, uint32_t vector, struct rift_error *error);
void rift_hvf_arm_drop_events(struct rift_hvf_cpu *cpu);
/* Before an entry, while one waits or its vectors are watched. */
int rift_hvf_arm_offer_interrupt(struct rift_hvf_cpu *cpu, struct rift_error *error);
/* At a breakpoint: whether it is that of a vector, where the guest has taken the interrupt. */
int rift_hvf_arm_interrupt_arrived(struct rift_hvf_cpu *cpu);

/* -- hvf_aarch64_debug.c --------------------------------------------------------------------------------- */

int rift_hvf_arm_set_debug(struct rift_hvf_cpu *cpu, const struct rift_hvf_debug *debug, struct rift_error *error);
int rift_hvf_arm_exit_debug(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
/* MDSCR_EL1, and the debug registers, as the guest has set them. */
int rift_hvf_arm_read_mdscr(const struct rift_hvf_cpu *cpu, uint64_t *value, struct rift_error *error);
int rift_hvf_arm_write_mdscr(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
/* Three breakpoints for vectors that are watched, beside the host's own. */
int rift_hvf_arm_has_room_for_vectors(const struct rift_hvf_cpu *cpu);
/* Takes the debug registers over, or gives them back, as what is wanted has changed. */
int rift_hvf_arm_refresh_debug(struct rift_hvf_cpu *cpu, struct rift_error *error);
/* Puts what set_debug has chosen into a hypervisor vCPU that was just made. */
int rift_hvf_arm_apply_debug(struct rift_hvf_cpu *cpu, struct rift_error *error);

/* -- hvf_aarch64_registers.c, hvf_aarch64_state.c --------------------------------------------------------- */

enum { ARM_REGISTER_COUNT = 110 };
extern const struct rift_hvf_register rift_hvf_arm_registers[ARM_REGISTER_COUNT];
int rift_hvf_arm_read(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error);
int rift_hvf_arm_write(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error);
int rift_hvf_arm_save(struct rift_hvf_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_hvf_arm_restore(struct rift_hvf_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);

#endif
