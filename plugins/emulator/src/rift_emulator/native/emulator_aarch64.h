/* Shared by the C files of the AArch64 binding. Numbers without another source: Arm ARM (DDI 0487), chapter D19. */
#ifndef RIFT_EMULATOR_AARCH64_H
#define RIFT_EMULATOR_AARCH64_H

#include "emulator_binding.h"
#include "emulator_services.h"
#include "unicorn_engine.h"

/* Register ids of the engine's arm64.h. */
enum {
    UNICORN_ARM_X29 = 1, UNICORN_ARM_X30 = 2, UNICORN_ARM_SP = 4, UNICORN_ARM_Q0 = 104, UNICORN_ARM_X0 = 199,
    UNICORN_ARM_PC = 260, UNICORN_ARM_PSTATE = 265, UNICORN_ARM_SP_EL0 = 270, UNICORN_ARM_SP_EL1 = 271,
    UNICORN_ARM_SYSTEM = 290, UNICORN_ARM_FPCR = 291, UNICORN_ARM_FPSR = 292
};

/* uc_arm64_insn. */
enum { UNICORN_ARM_MRS = 1, UNICORN_ARM_MSR = 2 };

/* uc_arm64_cp_reg. */
struct unicorn_system_register {
    uint32_t crn, crm, op0, op1, op2;
    uint64_t value;
};

/* A system register's number, as in Exit.address: op0 15:14, op1 13:11, CRn 10:7, CRm 6:3, op2 2:0. */
#define ARM_SYSTEM_REGISTER(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
enum {
    ARM_SCTLR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 1, 0, 0),
    ARM_CPACR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 1, 0, 2),
    ARM_TTBR0_EL1 = ARM_SYSTEM_REGISTER(3, 0, 2, 0, 0),
    ARM_TTBR1_EL1 = ARM_SYSTEM_REGISTER(3, 0, 2, 0, 1),
    ARM_TCR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 2, 0, 2),
    ARM_SPSR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 4, 0, 0),
    ARM_ELR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 4, 0, 1),
    ARM_ESR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 5, 2, 0),
    ARM_FAR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 6, 0, 0),
    ARM_VBAR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 12, 0, 0),
    ARM_CNTPCT_EL0 = ARM_SYSTEM_REGISTER(3, 3, 14, 0, 1),
    ARM_CNTVCT_EL0 = ARM_SYSTEM_REGISTER(3, 3, 14, 0, 2),
    ARM_CONTEXTIDR_EL1 = ARM_SYSTEM_REGISTER(3, 0, 13, 0, 1),
    ARM_MDSCR_EL1 = ARM_SYSTEM_REGISTER(2, 0, 0, 2, 2),
    ARM_HCR_EL2 = ARM_SYSTEM_REGISTER(3, 4, 1, 1, 0),
    ARM_MDCR_EL2 = ARM_SYSTEM_REGISTER(3, 4, 1, 1, 1),
    ARM_SCR_EL3 = ARM_SYSTEM_REGISTER(3, 6, 1, 1, 0)
};

/* PSTATE, as in SPSR_EL1. */
#define PSTATE_SP UINT64_C(1)
#define PSTATE_EL (UINT64_C(3) << 2)
#define PSTATE_EL1H UINT64_C(5)
#define PSTATE_F (UINT64_C(1) << 6)
#define PSTATE_I (UINT64_C(1) << 7)
#define PSTATE_A (UINT64_C(1) << 8)
#define PSTATE_D (UINT64_C(1) << 9)
#define PSTATE_MASKED (UINT64_C(0xF) << 6)
#define PSTATE_SS (UINT64_C(1) << 21)
#define PSTATE_FLAGS (UINT64_C(0xF) << 28)

/* Exception classes: ESR_EL1.EC. */
enum {
    EC_UNKNOWN = 0x00, EC_WFX = 0x01, EC_FLOATING_POINT = 0x07, EC_SVC = 0x15, EC_HVC = 0x16, EC_SMC = 0x17,
    EC_INSTRUCTION_ABORT = 0x20, EC_INSTRUCTION_ABORT_SAME = 0x21, EC_PC_ALIGNMENT = 0x22, EC_DATA_ABORT = 0x24,
    EC_DATA_ABORT_SAME = 0x25, EC_SERROR = 0x2F, EC_STEP = 0x32, EC_STEP_SAME = 0x33, EC_BRK = 0x3C
};
#define ESR_EC_SHIFT 26
#define ESR_IL (1u << 25) /* the instruction has 32 bits */
#define ESR_ISS 0x1FFFFFFu

/* What the engine reports: EXCP_* of its target/arm/cpu.h. */
enum {
    ARM_UNDEFINED = 1, ARM_SUPERVISOR_CALL = 2, ARM_PREFETCH_ABORT = 3, ARM_DATA_ABORT = 4, ARM_BREAKPOINT = 7,
    ARM_HYPERVISOR_CALL = 11, ARM_HYPERVISOR_TRAP = 12, ARM_MONITOR_CALL = 13
};

/* Offsets into a saved context, found by emulator_aarch64_layout.c. */
struct arm_layout {
    size_t general; /* X0 to X30 and the stack pointer in use */
    size_t pc, syndrome, address;
};
extern struct arm_layout rift_emulator_arm_layout;

/* What is open: rift_emulator_cpu.open. */
enum { ARM_CLOSED, ARM_WRITE, ARM_READ };

struct arm {
    struct unicorn_context *view; /* for looks that must not disturb cpu->context */
    uint32_t armed;               /* the engine steps */
    uint64_t guest_mdscr;         /* while it does, what the guest believes */
    int pending_exception, pending_interrupt; /* -1: none */
    uint32_t pending_syndrome;
    uint32_t target;              /* the register that the open read goes to; 31: none */
    uint64_t undo_pc;             /* where the open access is, for an exception in its place */
    unicorn_hook reads;           /* MRS is looked at. 0: it is not */
    unicorn_hook trap;            /* every instruction is looked at: emulator_aarch64_traps.c. 0: it is not */
    uint32_t trap_levels;         /* bit n: floating point traps at exception level n */
    uint32_t trap_alignment;      /* data accesses must be aligned */
    uint32_t trapped;             /* one has: this exception comes with the next entry */
    uint32_t trap_syndrome;
    uint64_t trap_address;
};

/* -- the engine's state: emulator_aarch64_state.c ------------------------------------------------------- */

uint64_t arm_register(struct rift_emulator_cpu *cpu, int id);
void arm_set_register(struct rift_emulator_cpu *cpu, int id, uint64_t value);
uint64_t arm_system(struct rift_emulator_cpu *cpu, uint32_t number);
void arm_set_system(struct rift_emulator_cpu *cpu, uint32_t number, uint64_t value);
uint64_t arm_context_get(struct unicorn_context *context, size_t offset);
void arm_context_set(struct unicorn_context *context, size_t offset, uint64_t value);
/* The pieces that a change of PSTATE moves, at once: which stack pointer is in use, and what the engine has derived. */
void arm_go(struct rift_emulator_cpu *cpu, uint64_t pstate, uint64_t pc);
/* X0 to X30; 31 reads as 0 and keeps nothing. */
uint64_t arm_general(struct rift_emulator_cpu *cpu, uint32_t number);
void arm_set_general(struct rift_emulator_cpu *cpu, uint32_t number, uint64_t value);
/* The guest-visible PSTATE. */
uint64_t arm_pstate(struct rift_emulator_cpu *cpu);
/* From a hook as well: going on elsewhere. */
void arm_set_pc(struct rift_emulator_cpu *cpu, uint64_t pc);

/* -- memory: emulator_aarch64_memory.c ------------------------------------------------------------------- */

int arm_translate(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *physical);
/* The instruction at `pc`. 0, or -1. */
int arm_fetch(struct rift_emulator_cpu *cpu, uint64_t pc, uint32_t *instruction);

/* -- exceptions: emulator_aarch64_exceptions.c ----------------------------------------------------------- */

int arm_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error);
int arm_arm(struct rift_emulator_cpu *cpu, uint64_t *pc);
void arm_disarm(struct rift_emulator_cpu *cpu);
/* A synchronous exception to EL1 from the instruction at, or before, the program counter. */
void arm_raise(struct rift_emulator_cpu *cpu, uint32_t syndrome, uint64_t address);
/* An exit of the instruction at `pc`, which is over at `next`. Returns enum rift_emulator_verdict; unless it is REPEAT,
 * the program counter is at `next`. */
int arm_give(struct rift_emulator_cpu *cpu, struct rift_exit *exit, uint64_t pc, uint64_t next);

/* -- traps that the engine lacks: emulator_aarch64_traps.c ------------------------------------------------ */

/* Looks at every instruction, or no longer, as the guest's registers have it. Outside of the engine. */
void arm_watch_traps(struct rift_emulator_cpu *cpu);
/* Whether writing register `id` of the engine to this system register changes that. */
int arm_traps_change(struct rift_emulator_cpu *cpu, uint32_t number, int id);

/* -- calls to the host: emulator_aarch64_calls.c --------------------------------------------------------- */

void arm_call(struct rift_emulator_cpu *cpu, uint64_t pc, uint64_t next);
void arm_wait(struct rift_emulator_cpu *cpu, uint64_t pc);
/* Returns 1 if the undefined instruction was an access to a system register that nobody knows. */
int arm_system_access(struct rift_emulator_cpu *cpu, uint64_t pc, uint32_t instruction);

/* -- the rest --------------------------------------------------------------------------------------------- */

extern const struct rift_emulator_register rift_emulator_arm_registers[];
extern const uint32_t rift_emulator_arm_register_count;
int arm_read_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error);
int arm_write_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error);
int arm_learn(struct rift_error *error);

/* What keeps the guest in EL1 and EL0, and has its calls arrive here. */
void arm_restrict(struct unicorn *engine);

/* A page with `b .+4; wfi`, which an engine runs once: see emulator_aarch64.c. */
#define ARM_PRIMER_GPA (UINT64_C(1) << 42)

#endif
