/* The run loop: enter the engine, whose hooks decode exits and ask the native handlers, until somebody else is
 * wanted. */
#include "emulator_internal.h"

#include <errno.h>

/* More entries than completing one instruction can take. */
#define MOST_ENTRIES 4096

static struct rift_emulator_vcpu *vcpu_of(struct rift_emulator_cpu *cpu) {
    return (struct rift_emulator_vcpu *)cpu;
}

/* -- what hooks call -------------------------------------------------------------------------------- */

int rift_emulator_vcpu_offer(struct rift_emulator_vcpu *vcpu, struct rift_exit *exit) {
    struct rift_emulator_control *control = vcpu->control;
    unsigned long exits = atomic_load_explicit(&control->exits, memory_order_relaxed);
    atomic_store_explicit(&control->exits, exits + 1, memory_order_relaxed);
    /* A handler takes the VM's lock before it gets a pointer into a region, which orders this store before the
     * look of whoever removes the region (rift_emulator_vm_unmap). */
    atomic_store_explicit(&control->dispatching, 1, memory_order_relaxed);
    int verdict = rift_dispatch_exit(vcpu->vm->dispatch, &vcpu->host, exit);
    atomic_store_explicit(&control->dispatching, 0, memory_order_release);
    if (verdict == RIFT_RESUME)
        return verdict;
    if (verdict == -EINTR) {
        vcpu->outcome = RIFT_EMULATOR_WAITED;
        return verdict;
    }
    vcpu->window.exit = *exit;
    if (verdict == RIFT_PASS) {
        vcpu->outcome = RIFT_EMULATOR_HAS_EXIT;
    } else if (verdict == RIFT_STOP) {
        vcpu->outcome = RIFT_EMULATOR_HAS_STOPPED;
    } else {
        vcpu->outcome = RIFT_EMULATOR_HAS_FAILED;
        rift_emulator_fail(&vcpu->window.error, verdict < 0 ? -verdict : EPROTO, "native exit handler");
    }
    return verdict;
}

static void leave_at(struct rift_emulator_vcpu *vcpu, uint64_t pc, enum rift_emulator_outcome outcome) {
    rift_emulator_cut(&vcpu->cpu, pc);
    vcpu->outcome = outcome;
    vcpu->cpu.leaving = 1;
    unicorn.emu_stop(vcpu->cpu.engine);
}

void rift_emulator_vcpu_leave(struct rift_emulator_vcpu *vcpu, enum rift_emulator_outcome outcome) {
    leave_at(vcpu, vcpu->binding->program_counter(&vcpu->cpu), outcome);
}

int rift_emulator_exit(struct rift_emulator_cpu *cpu, struct rift_exit *exit) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(cpu);
    int verdict = rift_emulator_vcpu_offer(vcpu, exit);
    int precise = vcpu->precise;
    vcpu->precise = 0;
    if (verdict == RIFT_RESUME)
        return precise ? RIFT_EMULATOR_ANSWERED_STOP : RIFT_EMULATOR_ANSWERED;
    return vcpu->outcome == RIFT_EMULATOR_WAITED ? RIFT_EMULATOR_REPEAT : RIFT_EMULATOR_GIVEN;
}

void rift_emulator_leave(struct rift_emulator_cpu *cpu) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(cpu);
    enum rift_emulator_outcome outcome = vcpu->outcome;
    rift_emulator_vcpu_leave(vcpu, outcome == RIFT_EMULATOR_NOTHING ? RIFT_EMULATOR_AGAIN : outcome);
}

/* Whether a hook must leave: somebody wants the vCPU, no access has to be completed first, and it is not leaving. */
static int must_leave(const struct rift_emulator_vcpu *vcpu) {
    return rift_emulator_control_wanted(vcpu->control) && !vcpu->completing && !vcpu->cpu.leaving;
}

void rift_emulator_heed(struct rift_emulator_cpu *cpu) {
    if (must_leave(vcpu_of(cpu)))
        rift_emulator_leave(cpu);
}

static void forget_accesses(struct rift_emulator_vcpu *vcpu) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    devices->count = devices->next = devices->unanswered = 0;
    devices->has_last = 0;
    devices->now.size = 0;
    vcpu->cpu.stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_ACCESS;
}

static int watch_hit(struct rift_emulator_vcpu *vcpu, uint64_t pc) {
    int hit = vcpu->points.hit;
    vcpu->points.hit = -1;
    if (hit < 0)
        return 0;
    rift_emulator_debug_exit(&vcpu->cpu, 4, pc, vcpu->points.points[hit].address, 0);
    return vcpu->cpu.leaving != 0;
}

int rift_emulator_stepped(struct rift_emulator_cpu *cpu, uint64_t pc) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(cpu);
    forget_accesses(vcpu);
    if (watch_hit(vcpu, pc))
        return RIFT_EMULATOR_LEAVE;
    if (cpu->stepping & RIFT_EMULATOR_STEP_USER) {
        rift_emulator_debug_exit(cpu, 1, pc, 0, 0);
        if (cpu->leaving)
            return RIFT_EMULATOR_LEAVE;
    }
    if (!vcpu->completing && !vcpu->deferred)
        return RIFT_EMULATOR_GO_ON;
    rift_emulator_vcpu_leave(vcpu, RIFT_EMULATOR_AGAIN);
    return RIFT_EMULATOR_LEAVE;
}

void rift_emulator_debug_exit(struct rift_emulator_cpu *cpu, uint64_t kind, uint64_t pc, uint64_t address,
                              uint64_t raw) {
    struct rift_exit exit = {.kind = RIFT_EXIT_DEBUG, .address = pc, .info = {kind, address, raw}};
    if (rift_emulator_exit(cpu, &exit) != RIFT_EMULATOR_ANSWERED)
        rift_emulator_leave(cpu);
}

void rift_emulator_instruction_over(struct rift_emulator_cpu *cpu) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(cpu);
    forget_accesses(vcpu);
    vcpu->step_due = (cpu->stepping & RIFT_EMULATOR_STEP_USER) != 0 || vcpu->points.hit >= 0;
}

/* -- the loop --------------------------------------------------------------------------------------- */

/* Before each block of code: see emulator_control.c. The engine's own program counter may be that of an earlier one. */
static void block_hook(struct unicorn *engine, uint64_t pc, uint32_t size, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    (void)size;
    if (must_leave(vcpu))
        leave_at(vcpu, pc, RIFT_EMULATOR_AGAIN);
}

int rift_emulator_run_setup(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    unicorn_hook hook;
    int status = unicorn.hook_add(vcpu->cpu.engine, &hook, UNICORN_HOOK_BLOCK, (void *)block_hook, vcpu, 1, 0);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}

/* Takes the kick, if there is one. */
static int take_kick(struct rift_emulator_control *control) {
    return atomic_load(&control->kick) && atomic_exchange(&control->kick, 0);
}

/* Writes what native handlers wrote in the middle of an instruction that is over now. */
static int apply_deferred(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    uint32_t count = vcpu->deferred;
    if (!count || vcpu->devices.count)
        return 0;
    vcpu->deferred = 0;
    return vcpu->binding->write_registers(&vcpu->cpu, vcpu->deferred_ids, count, vcpu->deferred_words, error);
}

static int failed(struct rift_emulator_vcpu *vcpu) {
    vcpu->outcome = RIFT_EMULATOR_HAS_FAILED;
    return -1;
}

/* The engine's own part, with the turn. */
static void run_engine(struct rift_emulator_vcpu *vcpu) {
    struct rift_emulator_cpu *cpu = &vcpu->cpu;
    const struct rift_emulator_binding *binding = vcpu->binding;
    uint64_t pc;
    cpu->leaving = 0;
    vcpu->outcome = RIFT_EMULATOR_NOTHING;
    vcpu->devices.next = 0;
    vcpu->devices.unanswered = 0;
    if (vcpu->devices.count)
        cpu->stepping |= RIFT_EMULATOR_STEP_ACCESS;
    if (binding->arm(cpu, &pc) == RIFT_EMULATOR_GO_ON &&
        (vcpu->completing || !rift_emulator_control_wanted(vcpu->control))) {
        int status = unicorn.emu_start(cpu->engine, pc, 0, 0, 0);
        if (status && vcpu->outcome == RIFT_EMULATOR_NOTHING) {
            rift_emulator_engine_error(&vcpu->window.error, status, "uc_emu_start");
            vcpu->outcome = RIFT_EMULATOR_HAS_FAILED;
        }
    }
    binding->disarm(cpu);
}

/* Enters once, when it has the turn; the outcome tells what came of it. Returns -1 with the error filled in. */
static int enter_once(struct rift_emulator_vcpu *vcpu) {
    struct rift_emulator_control *control = vcpu->control;
    struct rift_emulator_turn *turn = vcpu->vm->turn;
    vcpu->outcome = RIFT_EMULATOR_AGAIN;
    int taken = rift_emulator_turn_take(turn, control, !vcpu->completing);
    if (taken < 0)
        return 0; /* kicked */
    if (atomic_exchange(&control->yield, 0) || taken)
        vcpu->touched = 1;
    int status = rift_emulator_vcpu_synchronise(vcpu, &vcpu->window.error);
    if (!status)
        status = apply_deferred(vcpu, &vcpu->window.error);
    if (status)
        failed(vcpu);
    else
        run_engine(vcpu);
    rift_emulator_turn_give(turn);
    return status;
}

/* After an instruction that ended with an exit, the exit of the step. Returns 1 if there is one for Python. */
static int step_exit(struct rift_emulator_vcpu *vcpu) {
    if (!vcpu->step_due || vcpu->devices.count)
        return 0;
    vcpu->step_due = 0;
    vcpu->outcome = RIFT_EMULATOR_NOTHING;
    vcpu->cpu.leaving = 0;
    rift_emulator_stepped(&vcpu->cpu, vcpu->binding->program_counter(&vcpu->cpu));
    return vcpu->outcome > RIFT_EMULATOR_NOTHING && vcpu->outcome < RIFT_EMULATOR_WAITED;
}

/* An open access is completed in the engine; what comes in between is left for the next run, or, for a writer, who
 * changes where the guest goes on, answered with zeros. */
int rift_emulator_vcpu_settle(struct rift_emulator_vcpu *vcpu, int writing, struct rift_error *error) {
    vcpu->cpu.open = 0;
    if (vcpu->pending_outcome != RIFT_EMULATOR_NOTHING) {
        if (!writing)
            return 0;
        vcpu->pending_outcome = RIFT_EMULATOR_NOTHING;
    }
    for (int entry = 0; vcpu->devices.count && entry < MOST_ENTRIES; ++entry) {
        vcpu->completing = 1;
        int status = enter_once(vcpu);
        vcpu->completing = 0;
        if (status) {
            *error = vcpu->window.error;
            return -1;
        }
        if (vcpu->outcome == RIFT_EMULATOR_NOTHING || vcpu->outcome >= RIFT_EMULATOR_WAITED)
            continue;
        if (!writing || !vcpu->devices.count) {
            vcpu->pending = vcpu->window.exit;
            vcpu->pending_outcome = vcpu->outcome;
            return 0;
        }
    }
    return apply_deferred(vcpu, error);
}

static int interrupted(struct rift_emulator_vcpu *vcpu) {
    vcpu->window.exit = (struct rift_exit){.kind = RIFT_EXIT_INTERRUPTED};
    return RIFT_EMULATOR_INTERRUPTED;
}

static int status_of(enum rift_emulator_outcome outcome) {
    if (outcome == RIFT_EMULATOR_HAS_EXIT)
        return RIFT_EMULATOR_EXIT;
    return outcome == RIFT_EMULATOR_HAS_STOPPED ? RIFT_EMULATOR_STOPPED : RIFT_EMULATOR_FAILED;
}

static void answer(struct rift_emulator_vcpu *vcpu, uint64_t reply) {
    if (vcpu->pending_outcome != RIFT_EMULATOR_NOTHING)
        return; /* to a read that has been completed without it */
    if (vcpu->devices.unanswered)
        vcpu->devices.log[vcpu->devices.count - 1].value = reply;
    else if (vcpu->cpu.open)
        vcpu->binding->complete(&vcpu->cpu, reply);
}

static int loop(struct rift_emulator_vcpu *vcpu, int answered, uint64_t reply) {
    struct rift_emulator_control *control = vcpu->control;
    if (answered)
        answer(vcpu, reply);
    vcpu->cpu.open = 0;
    vcpu->touched = 1;
    int kicked = 0;
    for (;;) {
        kicked |= take_kick(control);
        if (kicked && (!vcpu->devices.count || vcpu->pending_outcome != RIFT_EMULATOR_NOTHING))
            return interrupted(vcpu);
        if (vcpu->pending_outcome != RIFT_EMULATOR_NOTHING) {
            enum rift_emulator_outcome outcome = vcpu->pending_outcome;
            vcpu->pending_outcome = RIFT_EMULATOR_NOTHING;
            vcpu->window.exit = vcpu->pending;
            return status_of(outcome);
        }
        if (step_exit(vcpu))
            return status_of(vcpu->outcome);
        vcpu->completing = kicked; /* only the open access */
        int status = enter_once(vcpu);
        vcpu->completing = 0;
        if (status)
            return RIFT_EMULATOR_FAILED;
        if (vcpu->outcome == RIFT_EMULATOR_WAITED) {
            take_kick(control);
            return interrupted(vcpu);
        }
        if (vcpu->outcome == RIFT_EMULATOR_NOTHING || vcpu->outcome == RIFT_EMULATOR_AGAIN)
            continue;
        if (kicked) /* completing the access gave another exit: that one first */
            atomic_store(&control->kick, 1);
        return status_of(vcpu->outcome);
    }
}

int rift_emulator_vcpu_run(struct rift_emulator_vcpu *vcpu, int answered, uint64_t reply) {
    atomic_store(&vcpu->control->inside, 1);
    int status = loop(vcpu, answered, reply);
    atomic_store(&vcpu->control->inside, 0);
    return status;
}
