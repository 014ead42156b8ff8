/* A run: from the entry to the exit, with whatever the engine stops for in between. See other_x86_64.h. */
#include "other_x86_64.h"

enum { TICK = 3000 }; /* instructions, until somebody else may have the turn */

/* The instruction at RIP has not come about after all. */
static void take_back(struct vcpu *cpu) {
    cpu->executed -= cpu->begun == FIELD(cpu, F_RIP);
}

/* Memory that the engine has not: it is given, or there is an exit. */
static enum outcome memory_missing(struct vcpu *cpu) {
    const unsigned need = cpu->access == UC_MEM_READ_UNMAPPED || cpu->access == UC_MEM_READ_PROT     ? 1
                          : cpu->access == UC_MEM_WRITE_UNMAPPED || cpu->access == UC_MEM_WRITE_PROT ? 2
                                                                                                     : 4;
    take_back(cpu);
    if ((memory_flags(cpu->address) & need) && memory_populate(cpu, cpu->address) && !cpu->first_touch)
        return GO_ON;
    return ept_violation(cpu, cpu->address, need, true);
}

/* Steps that the host has asked for come first: SDM volume 3, 25.5.2. */
static enum outcome debug_trap(struct vcpu *cpu) {
    const unsigned hits = cpu->hits;
    if (FIELD(cpu, F_CPU) & CPU_STEP) {
        leave(cpu, R_STEP, 0); /* with the hits pending */
        return LEFT;
    }
    cpu->hits = 0;
    return raise_exception(cpu, DB, EXCEPTION, 0, hits);
}

/* The engine walks tables as if there were zeros where it has no memory yet. */
static enum outcome exception(struct vcpu *cpu) {
    const unsigned vector = cpu->vector;
    if (vector >= 32) {
        leave(cpu, R_TRIPLE_FAULT, 0);
        return LEFT;
    }
    if (vector == DB) { /* a step of the guest's own */
        cpu->hits |= STEPPED;
        return debug_trap(cpu);
    }
    const uint32_t code = cpu->code;
    uint32_t found;
    FIELD(cpu, F_RFLAGS) |= RF;
    if (vector != PF)
        return raise_exception(cpu, vector, EXCEPTION, code, 0);
    uint64_t linear = cpu->address, gpa;
    cpu->populated = false;
    int status = walk(cpu, linear, (code & 0x16) | FOR_ENGINE, &gpa, &found);
    if (status == 0 && cpu->populated) {
        FIELD(cpu, F_RFLAGS) &= ~(uint64_t)RF;
        take_back(cpu);
        return GO_ON;
    }
    if (status == 2)
        return ept_violation(cpu, gpa, 1, false);
    cpu->executed++; /* even if it was not fetched: a step ends with the delivery */
    return raise_exception(cpu, PF, EXCEPTION, code, linear);
}

static enum outcome stopped(struct vcpu *cpu) {
    const unsigned hits = cpu->hits;
    switch (cpu->cause) {
    case C_SLICE:
        if (!cpu->first_touch)
            return GO_ON;
        leave(cpu, R_INTERRUPT, 0); /* the host's clock */
        return LEFT;
    case C_KICK:
        leave(cpu, R_INTERRUPT, 0);
        return LEFT;
    case C_STEP:
        leave(cpu, R_STEP, 0);
        return LEFT;
    case C_WINDOW:
        leave(cpu, R_WINDOW, 0);
        return LEFT;
    case C_DEBUG:
        return debug_trap(cpu);
    case C_BREAKPOINT: /* a fault, unlike the others */
        cpu->hits = 0;
        FIELD(cpu, F_RFLAGS) |= RF;
        return raise_exception(cpu, DB, EXCEPTION, 0, hits);
    case C_INSTRUCTION:
        return instruction_carry_out(cpu);
    case C_EXCEPTION:
        return exception(cpu);
    case C_MEMORY:
        return memory_missing(cpu);
    default:
        leave(cpu, R_TRIPLE_FAULT, 0);
        return LEFT;
    }
}

static enum outcome inject(struct vcpu *cpu) {
    const unsigned info = (unsigned)FIELD(cpu, F_EVENT), type = info & EVENT_TYPE;
    uint64_t back = FIELD(cpu, F_RIP);
    if (!(info & VALID))
        return GO_ON;
    if (type == SOFT_INTERRUPT || type == SOFT_EXCEPTION || type == PRIVILEGED)
        back += FIELD(cpu, F_EVENT_LENGTH);
    cpu->executed = 1; /* a step that was asked for is over with the delivery */
    return deliver(cpu, info, (uint32_t)FIELD(cpu, F_EVENT_CODE), back);
}

static void begin(struct vcpu *cpu) {
    cpu->efer = FIELD(cpu, F_EFER);
    cpu->shadow = FIELD(cpu, F_SHADOW) & 3;
    cpu->hits = FIELD(cpu, F_PENDING_DEBUG) & (STEPPED | 15);
    cpu->executed = cpu->delivering = 0;
    cpu->pass = false;
    uc_ctl_flush_tb(cpu->uc); /* the host may have written code: the CPU would notice */
    memory_renew(cpu);
    if (cpu->forget)
        uc_ctl_flush_tlb(cpu->uc);
    cpu->forget = false;
}

hv_return_t vcpu_run(struct vcpu *cpu, bool first_touch) {
    if (!controls_allowed(cpu) || !entry_allowed(cpu)) {
        FIELD(cpu, F_REASON) = R_BAD_STATE; /* nothing else is written */
        FIELD(cpu, F_QUALIFICATION) = 0;
        return SUCCESS;
    }
    turn_take();
    cpu->first_touch = first_touch;
    begin(cpu);
    enum outcome outcome = inject(cpu);
    while (outcome == GO_ON) {
        cpu->left = TICK;
        engine_load(cpu);
        engine_run(cpu);
        engine_unload(cpu);
        outcome = stopped(cpu);
        if (outcome == GO_ON && atomic_exchange(&cpu->wanted, 0)) { /* a handler that faults never begins anything */
            leave(cpu, R_INTERRUPT, 0);
            outcome = LEFT;
        }
        if (outcome == GO_ON && turn_wanted()) {
            turn_give();
            turn_take();
            memory_renew(cpu);
        }
    }
    turn_give();
    return SUCCESS;
}
