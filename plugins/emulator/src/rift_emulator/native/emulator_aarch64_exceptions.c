/* Where the engine's exceptions arrive: deliver them to EL1, or see what Rift itself has caused.
 *
 * Single steps use the CPU's own software step, with the debugger in EL2, of which the guest knows nothing. */
#include "emulator_internal.h"
#include "emulator_aarch64.h"

#define MDCR_TDE (UINT64_C(1) << 8)
#define MDSCR_SS UINT64_C(1)
#define WAIT_FOR_INTERRUPT 0xD503207Fu

/* Of the vectors: D1.3.1.3. */
enum { VECTOR_SYNCHRONOUS = 0, VECTOR_IRQ = 0x80, VECTOR_FIQ = 0x100, VECTOR_SERROR = 0x180 };

static const struct arm_layout *const layout = &rift_emulator_arm_layout;

/* -- delivery ------------------------------------------------------------------------------------------ */

static uint64_t vector_offset(uint64_t pstate) {
    if (!(pstate & PSTATE_EL))
        return 0x400;
    return pstate & PSTATE_SP ? 0x200 : 0;
}

/* AArch64.TakeException to EL1. */
static void take(struct rift_emulator_cpu *cpu, uint64_t kind) {
    const uint64_t pstate = arm_pstate(cpu), vectors = arm_system(cpu, ARM_VBAR_EL1);
    arm_set_system(cpu, ARM_ELR_EL1, arm_register(cpu, UNICORN_ARM_PC));
    arm_set_system(cpu, ARM_SPSR_EL1, pstate);
    arm_go(cpu, PSTATE_EL1H | PSTATE_MASKED | (pstate & PSTATE_FLAGS), vectors + vector_offset(pstate) + kind);
}

static int has_address(uint32_t class) {
    return class == EC_INSTRUCTION_ABORT || class == EC_INSTRUCTION_ABORT_SAME || class == EC_DATA_ABORT ||
           class == EC_DATA_ABORT_SAME || class == EC_PC_ALIGNMENT;
}

static void raise_only(struct rift_emulator_cpu *cpu, uint32_t syndrome, uint64_t address) {
    arm_set_system(cpu, ARM_ESR_EL1, syndrome);
    if (has_address(syndrome >> ESR_EC_SHIFT))
        arm_set_system(cpu, ARM_FAR_EL1, address);
    take(cpu, VECTOR_SYNCHRONOUS);
}

/* -- steps --------------------------------------------------------------------------------------------- */

static uint32_t system_read(struct unicorn *engine, int id, const struct unicorn_system_register *target, void *context);

static void arm_step(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    /* The engine keeps what it has translated for steps apart from the rest, so that now is soon enough. */
    if (!arm->reads)
        unicorn.hook_add(cpu->engine, &arm->reads, UNICORN_HOOK_INSTRUCTION, (void *)system_read, cpu, 1, 0,
                         UNICORN_ARM_MRS);
    if (!arm->armed) {
        arm->guest_mdscr = arm_system(cpu, ARM_MDSCR_EL1);
        arm->armed = 1;
        arm_set_system(cpu, ARM_MDCR_EL2, MDCR_TDE);
        arm_set_system(cpu, ARM_MDSCR_EL1, arm->guest_mdscr | MDSCR_SS);
    }
    arm_set_register(cpu, UNICORN_ARM_PSTATE, arm_register(cpu, UNICORN_ARM_PSTATE) | PSTATE_SS);
    /* In a step the engine takes WFI for a NOP. */
    const uint64_t pc = arm_register(cpu, UNICORN_ARM_PC);
    uint32_t instruction;
    if (arm_fetch(cpu, pc, &instruction) == 0 && instruction == WAIT_FOR_INTERRUPT)
        arm_wait(cpu, pc);
}

void arm_disarm(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    if (!arm->armed)
        return;
    arm_set_register(cpu, UNICORN_ARM_PSTATE, arm_pstate(cpu));
    arm->armed = 0;
    arm_set_system(cpu, ARM_MDCR_EL2, 0);
    arm_set_system(cpu, ARM_MDSCR_EL1, arm->guest_mdscr);
}

/* -- what waits ---------------------------------------------------------------------------------------- */

/* Returns 1 if something was delivered, 0 if nothing can be now. */
static int deliver_waiting(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    const uint64_t pstate = arm_pstate(cpu);
    if (arm->pending_exception >= 0 && (arm->pending_exception != EC_SERROR || !(pstate & PSTATE_A))) {
        uint32_t syndrome = (uint32_t)arm->pending_exception << ESR_EC_SHIFT | ESR_IL | arm->pending_syndrome;
        int serror = arm->pending_exception == EC_SERROR;
        arm->pending_exception = -1;
        arm_set_system(cpu, ARM_ESR_EL1, syndrome);
        take(cpu, serror ? VECTOR_SERROR : VECTOR_SYNCHRONOUS);
        return 1;
    }
    if (arm->pending_interrupt >= 0 && !(pstate & (arm->pending_interrupt ? PSTATE_F : PSTATE_I))) {
        int fast = arm->pending_interrupt;
        arm->pending_interrupt = -1;
        take(cpu, fast ? VECTOR_FIQ : VECTOR_IRQ);
        return 1;
    }
    return 0;
}

static int waits(const struct arm *arm) {
    return arm->pending_exception >= 0 || arm->pending_interrupt >= 0;
}

/* -- system registers ---------------------------------------------------------------------------------- */

static uint32_t number_of(const struct unicorn_system_register *target) {
    return ARM_SYSTEM_REGISTER(target->op0, target->op1, target->crn, target->crm, target->op2);
}

/* Before an MSR; the engine leaves it out if this returns 1. */
static uint32_t system_write(struct unicorn *engine, int id, const struct unicorn_system_register *target, void *context) {
    struct rift_emulator_cpu *cpu = context;
    struct arm *arm = cpu->state;
    (void)engine;
    if (cpu->leaving || !(arm_pstate(cpu) & PSTATE_EL))
        return 0;
    const uint32_t number = number_of(target);
    if (arm_traps_change(cpu, number, id))
        rift_emulator_leave(cpu); /* after it */
    if (number != ARM_MDSCR_EL1 || !arm->armed)
        return 0;
    arm->guest_mdscr = arm_register(cpu, id) & UINT32_MAX;
    return 1;
}

/* Before an MRS. */
static uint32_t system_read(struct unicorn *engine, int id, const struct unicorn_system_register *target, void *context) {
    struct rift_emulator_cpu *cpu = context;
    const struct arm *arm = cpu->state;
    (void)engine;
    if (number_of(target) != ARM_MDSCR_EL1 || !arm->armed || !(arm_pstate(cpu) & PSTATE_EL))
        return 0;
    arm_set_register(cpu, id, arm->guest_mdscr);
    return 1;
}

/* -- entry --------------------------------------------------------------------------------------------- */

int arm_arm(struct rift_emulator_cpu *cpu, uint64_t *pc) {
    struct arm *arm = cpu->state;
    cpu->stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_WINDOW;
    arm_watch_traps(cpu);
    if (arm->trapped) {
        arm->trapped = 0;
        raise_only(cpu, arm->trap_syndrome, arm->trap_address);
        if ((cpu->stepping & RIFT_EMULATOR_STEP_USER) &&
            rift_emulator_stepped(cpu, arm_register(cpu, UNICORN_ARM_PC)) != RIFT_EMULATOR_GO_ON)
            return RIFT_EMULATOR_LEAVE;
    }
    if (waits(arm) && !(cpu->stepping & RIFT_EMULATOR_STEP_ACCESS)) {
        deliver_waiting(cpu);
        if (waits(arm))
            cpu->stepping |= RIFT_EMULATOR_STEP_WINDOW;
    }
    if (cpu->stepping)
        arm_step(cpu);
    if (cpu->leaving)
        return RIFT_EMULATOR_LEAVE;
    *pc = arm_register(cpu, UNICORN_ARM_PC);
    return RIFT_EMULATOR_GO_ON;
}

/* -- exceptions ---------------------------------------------------------------------------------------- */

/* The instruction is over, by an exception of its own or as a step; the guest is at the program counter. */
static void end_step(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    if (!arm->armed)
        return;
    if (rift_emulator_stepped(cpu, arm_register(cpu, UNICORN_ARM_PC)) != RIFT_EMULATOR_GO_ON)
        return;
    if (waits(arm)) {
        deliver_waiting(cpu);
        if (!waits(arm))
            cpu->stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_WINDOW;
    }
    if (cpu->stepping)
        arm_step(cpu);
    else
        rift_emulator_leave(cpu); /* which ends stepping */
}

void arm_raise(struct rift_emulator_cpu *cpu, uint32_t syndrome, uint64_t address) {
    raise_only(cpu, syndrome, address);
    end_step(cpu);
}

int arm_give(struct rift_emulator_cpu *cpu, struct rift_exit *exit, uint64_t pc, uint64_t next) {
    struct arm *arm = cpu->state;
    if (arm_register(cpu, UNICORN_ARM_PC) != pc)
        arm_set_pc(cpu, pc); /* handlers read registers */
    arm->undo_pc = pc;
    int verdict = rift_emulator_exit(cpu, exit);
    if (verdict == RIFT_EMULATOR_REPEAT) {
        rift_emulator_leave(cpu);
        return verdict;
    }
    if (arm_register(cpu, UNICORN_ARM_PC) == pc)
        arm_set_pc(cpu, next); /* else a handler has chosen where to go on */
    if (verdict == RIFT_EMULATOR_GIVEN || verdict == RIFT_EMULATOR_ANSWERED_STOP || arm->armed) {
        rift_emulator_instruction_over(cpu);
        rift_emulator_leave(cpu); /* a step begins anew with the next entry */
    }
    return verdict;
}

static void breakpoint_exit(struct rift_emulator_cpu *cpu, uint64_t kind, uint64_t pc, uint32_t syndrome) {
    rift_emulator_debug_exit(cpu, kind, pc, 0, syndrome);
    if (!cpu->leaving)
        rift_emulator_leave(cpu);
}

static void undefined(struct rift_emulator_cpu *cpu, uint64_t pc, uint32_t syndrome, uint64_t address) {
    const struct arm *arm = cpu->state;
    const uint32_t class = syndrome >> ESR_EC_SHIFT;
    uint32_t instruction;
    if ((class == EC_STEP || class == EC_STEP_SAME) && arm->armed) {
        end_step(cpu);
        return;
    }
    if (class == EC_WFX) {
        arm_wait(cpu, pc);
        return;
    }
    if (class == EC_UNKNOWN && (pc & 3)) {
        arm_raise(cpu, (uint32_t)EC_PC_ALIGNMENT << ESR_EC_SHIFT | ESR_IL, pc);
        return;
    }
    if (class == EC_UNKNOWN && arm_fetch(cpu, pc, &instruction) == 0 && arm_system_access(cpu, pc, instruction))
        return;
    arm_raise(cpu, syndrome, address);
}

static void interrupt(struct unicorn *engine, struct rift_emulator_cpu *cpu, uint32_t number) {
    struct arm *arm = cpu->state;
    const uint64_t pc = arm_register(cpu, UNICORN_ARM_PC);
    rift_emulator_cut(cpu, pc);
    if (number == ARM_HYPERVISOR_CALL) {
        arm_call(cpu, pc - 4, pc);
        return;
    }
    unicorn.context_save(engine, arm->view);
    const uint32_t syndrome = (uint32_t)arm_context_get(arm->view, layout->syndrome);
    const uint64_t address = arm_context_get(arm->view, layout->address);
    switch (number) {
    case ARM_UNDEFINED:
        undefined(cpu, pc, syndrome, address);
        return;
    case ARM_HYPERVISOR_TRAP: /* SMC */
        arm_call(cpu, pc, pc + 4);
        return;
    case ARM_BREAKPOINT:
        if (cpu->software) {
            breakpoint_exit(cpu, 2, pc, syndrome);
            return;
        }
        arm_raise(cpu, syndrome, address);
        return;
    case ARM_SUPERVISOR_CALL:
    case ARM_PREFETCH_ABORT:
    case ARM_DATA_ABORT:
        arm_raise(cpu, syndrome, address);
        return;
    default: {
        struct rift_exit exit = {.kind = RIFT_EXIT_UNKNOWN, .raw_reason = number, .info = {syndrome}};
        rift_emulator_exit(cpu, &exit);
        rift_emulator_leave(cpu);
    }
    }
}

static void interrupt_hook(struct unicorn *engine, uint32_t number, void *context) {
    struct rift_emulator_cpu *cpu = context;
    interrupt(engine, cpu, number);
    rift_emulator_heed(cpu); /* vectors that cannot be fetched fault again and again */
}

int arm_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    unicorn_hook hook;
    int status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INTERRUPT, (void *)interrupt_hook, cpu, 1, 0);
    if (!status)
        status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)system_write, cpu, 1, 0,
                                  UNICORN_ARM_MSR);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}
