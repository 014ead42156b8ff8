/* The run loop: enter, decode, ask the native handlers, until somebody else is wanted. */
#include "hvf_internal.h"

#include <errno.h>

/* info[0] of a DEBUG exit: rift_abi.h. */
#define RIFT_HVF_STEP 1

/* More accesses than one instruction can make. */
#define MOST_ACCESSES 16

static void count_exit(struct rift_hvf_control *control) {
    unsigned long exits = atomic_load_explicit(&control->exits, memory_order_relaxed);
    atomic_store_explicit(&control->exits, exits + 1, memory_order_relaxed);
}

/* Takes the kick, if there is one. */
static int take_kick(struct rift_hvf_control *control) {
    return atomic_load(&control->kick) && atomic_exchange(&control->kick, 0);
}

/* Between the two, pointers into guest memory may be held. Whoever gets one takes the VM's lock first, which orders
 * this store before the look of whoever removes the region (rift_hvf_vm_unmap). */
static void hold(struct rift_hvf_control *control) {
    atomic_store_explicit(&control->holding, 1, memory_order_relaxed);
}

static void let_go(struct rift_hvf_control *control) {
    atomic_store_explicit(&control->holding, 0, memory_order_release);
}

static int dispatch(struct rift_hvf_vcpu *vcpu, struct rift_exit *exit) {
    hold(vcpu->control);
    int verdict = rift_dispatch_exit(vcpu->vm->dispatch, &vcpu->host, exit);
    let_go(vcpu->control);
    return verdict;
}

static int interrupted(struct rift_hvf_vcpu *vcpu) {
    vcpu->window.exit = (struct rift_exit){.kind = RIFT_EXIT_INTERRUPTED};
    return RIFT_HVF_INTERRUPTED;
}

/* What came of one entry; CUT_SHORT: a kick. */
enum entered { AGAIN = 0, HAVE_EXIT = 1, CUT_SHORT = 2 };

/* An instruction that was carried out here, not by the CPU, is a step as well. */
static int show_step(struct rift_hvf_vcpu *vcpu) {
    vcpu->cpu.stepped = 0;
    vcpu->window.exit =
        (struct rift_exit){.kind = RIFT_EXIT_DEBUG, .address = vcpu->cpu.step_address, .info = {RIFT_HVF_STEP}};
    count_exit(vcpu->control);
    return HAVE_EXIT;
}

/* Enters once. Returns enum entered, or -1. */
static int enter_once(struct rift_hvf_vcpu *vcpu) {
    struct rift_hvf_control *control = vcpu->control;
    struct rift_error *error = &vcpu->window.error;
    if (vcpu->cpu.stepped)
        return take_kick(control) ? CUT_SHORT : show_step(vcpu);
    atomic_store(&control->in_guest, 1); /* before the look at the flags: see hvf_control.c */
    if (take_kick(control)) {
        atomic_store(&control->in_guest, 0);
        return CUT_SHORT;
    }
    if (vcpu->cpu.flush || atomic_load(&control->flush)) { /* outside: who wants the owner out need not hurry it */
        atomic_store(&control->in_guest, 0);
        atomic_store(&control->flush, 0);
        vcpu->cpu.flush = 0;
        if (vcpu->binding->flush(&vcpu->cpu, error)) {
            vcpu->cpu.flush = 1;
            return -1;
        }
        return AGAIN;
    }
    int entered = vcpu->binding->enter(&vcpu->cpu, error);
    atomic_store(&control->in_guest, 0);
    if (entered)
        return -1;
    hold(control);
    int decoded = vcpu->binding->decode(&vcpu->cpu, &vcpu->window.exit, error);
    let_go(control);
    if (decoded < 0)
        return -1;
    if (decoded == RIFT_HVF_DISPATCH) {
        count_exit(control);
        return HAVE_EXIT;
    }
    if (decoded == RIFT_HVF_WAIT)
        rift_hvf_control_sleep(control, vcpu->cpu.wait_ns);
    return AGAIN;
}

/* Writes what native handlers wrote in the middle of an access that is complete now. */
static int apply_deferred(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    uint32_t count = vcpu->deferred;
    if (!count || vcpu->cpu.open)
        return 0;
    vcpu->deferred = 0;
    return vcpu->binding->write_registers(&vcpu->cpu, vcpu->deferred_ids, count, vcpu->deferred_words, error);
}

/* Answers the open access. When its instruction goes on with another one, that waits in vcpu->pending. */
static int answer(struct rift_hvf_vcpu *vcpu, uint64_t value, struct rift_error *error) {
    hold(vcpu->control);
    int more = vcpu->binding->complete(&vcpu->cpu, value, &vcpu->pending, error);
    let_go(vcpu->control);
    if (more > 0) {
        vcpu->has_pending = 1;
        count_exit(vcpu->control);
    }
    return more < 0 ? -1 : apply_deferred(vcpu, error);
}

/* A reader leaves an access that is shown again, or comes next, for the next run; a writer, who changes where
 * the guest goes on, ends the instruction, with zeros for what it still reads. */
int rift_hvf_vcpu_settle(struct rift_hvf_vcpu *vcpu, int writing, struct rift_error *error) {
    if (vcpu->has_pending && !writing)
        return 0;
    for (int count = 0; vcpu->cpu.open && count < MOST_ACCESSES; ++count) {
        vcpu->has_pending = 0;
        if (answer(vcpu, 0, error))
            return -1;
        if (vcpu->has_pending && !writing)
            return 0;
    }
    return apply_deferred(vcpu, error);
}

/* The next exit: one that waits, or that of an entry. Returns as enter_once. */
static int next_exit(struct rift_hvf_vcpu *vcpu) {
    if (!vcpu->has_pending)
        return enter_once(vcpu);
    vcpu->has_pending = 0;
    vcpu->window.exit = vcpu->pending;
    return HAVE_EXIT;
}

static int loop(struct rift_hvf_vcpu *vcpu, uint64_t reply) {
    struct rift_hvf_cpu *cpu = &vcpu->cpu;
    struct rift_exit *exit = &vcpu->window.exit;
    struct rift_error *error = &vcpu->window.error;
    if (!vcpu->seat && rift_hvf_seat_take(vcpu, error))
        return RIFT_HVF_FAILED;
    if (cpu->open && !vcpu->has_pending && answer(vcpu, reply, error))
        return RIFT_HVF_FAILED;
    for (;;) {
        int entered = next_exit(vcpu);
        if (entered < 0)
            return RIFT_HVF_FAILED;
        if (entered == CUT_SHORT)
            return interrupted(vcpu);
        if (entered == AGAIN)
            continue;
        int verdict = dispatch(vcpu, exit);
        if (verdict == RIFT_RESUME) {
            if (cpu->open && answer(vcpu, exit->value, error))
                return RIFT_HVF_FAILED;
        } else if (verdict == RIFT_PASS) {
            return RIFT_HVF_EXIT;
        } else if (verdict == RIFT_STOP) {
            return RIFT_HVF_STOPPED;
        } else if (verdict == -EINTR) {
            /* The handler was waiting: it is asked again when the guest goes on. */
            vcpu->pending = *exit;
            vcpu->has_pending = 1;
            take_kick(vcpu->control);
            return interrupted(vcpu);
        } else {
            rift_hvf_fail(error, verdict < 0 ? -verdict : EPROTO, "native exit handler");
            return RIFT_HVF_FAILED;
        }
    }
}

int rift_hvf_vcpu_run(struct rift_hvf_vcpu *vcpu, int answered, uint64_t reply) {
    atomic_store(&vcpu->control->running, 1);
    int status = loop(vcpu, answered ? reply : 0);
    atomic_store(&vcpu->control->running, 0);
    return status;
}
