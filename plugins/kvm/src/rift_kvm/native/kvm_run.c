/* The run loop: enter, decode, ask the native handlers, until somebody else is wanted. */
#include "kvm_internal.h"

#include <errno.h>

/* More accesses than one instruction can leave open: KVM reads ahead at most 1024 of a string input. */
#define MOST_ACCESSES 4096

static void count_exit(struct rift_kvm_control *control) {
    unsigned long exits = atomic_load_explicit(&control->exits, memory_order_relaxed);
    atomic_store_explicit(&control->exits, exits + 1, memory_order_relaxed);
}

static void set_immediate_exit(const struct rift_kvm_cpu *cpu, __u8 value) {
    *(volatile __u8 *)&cpu->run->immediate_exit = value;
}

/* Takes the kick, if there is one. */
static int take_kick(struct rift_kvm_control *control) {
    return atomic_load(&control->kick) && atomic_exchange(&control->kick, 0);
}

static int dispatch(struct rift_kvm_vcpu *vcpu, struct rift_exit *exit) {
    struct rift_kvm_control *control = vcpu->control;
    /* A handler takes the VM's lock before it gets a pointer into a slot, which orders this store before
     * the look of whoever removes the slot (rift_kvm_vm_unmap). */
    atomic_store_explicit(&control->dispatching, 1, memory_order_relaxed);
    int verdict = rift_dispatch_exit(vcpu->vm->dispatch, &vcpu->host, exit);
    atomic_store_explicit(&control->dispatching, 0, memory_order_release);
    return verdict;
}

static int interrupted(struct rift_kvm_vcpu *vcpu) {
    vcpu->window.exit = (struct rift_exit){.kind = RIFT_EXIT_INTERRUPTED};
    return RIFT_KVM_INTERRUPTED;
}

/* What came of one entry; CUT_SHORT: a kick or a signal. */
enum entered { AGAIN = 0, HAVE_EXIT = 1, CUT_SHORT = 2 };

/* Enters once. Returns enum entered, or -1. */
static int enter_once(struct rift_kvm_vcpu *vcpu) {
    const struct rift_kvm_binding *binding = vcpu->binding;
    struct rift_kvm_control *control = vcpu->control;
    struct rift_kvm_cpu *cpu = &vcpu->cpu;
    struct rift_error *error = &vcpu->window.error;
    if (cpu->run->immediate_exit) {
        set_immediate_exit(cpu, 0);
        atomic_thread_fence(memory_order_seq_cst); /* before the look at kick: see kvm_control.c */
    }
    int kicked = take_kick(control);
    if (kicked) {
        if (!cpu->open)
            return CUT_SHORT;
        set_immediate_exit(cpu, 1); /* the entry only completes the access */
    }
    if (binding->enter(cpu, error)) {
        if (error->code != EINTR) {
            if (kicked)
                atomic_store(&control->kick, 1);
            return -1;
        }
        cpu->open = RIFT_KVM_COMPLETE;
        return kicked || take_kick(control) || vcpu->on_main ? CUT_SHORT : AGAIN;
    }
    count_exit(control);
    int decoded = binding->decode(cpu, &vcpu->window.exit, error);
    if (kicked) /* completing the access gave another exit: that one first */
        atomic_store(&control->kick, 1);
    if (decoded < 0)
        return -1;
    return decoded == RIFT_KVM_DISPATCH ? HAVE_EXIT : AGAIN;
}

/* Writes what native handlers wrote in the middle of an access that is complete now. */
static int apply_deferred(struct rift_kvm_vcpu *vcpu, struct rift_error *error) {
    uint32_t count = vcpu->deferred;
    if (!count || vcpu->cpu.open)
        return 0;
    vcpu->deferred = 0;
    return vcpu->binding->write_registers(&vcpu->cpu, vcpu->deferred_ids, count, vcpu->deferred_words, error);
}

/* An entry with immediate_exit completes the access and comes back at once. When the instruction makes one
 * access after another it gives the next as an exit instead: a reader leaves that for the next run, a writer,
 * who changes where the guest goes on, ends the instruction with zeros. */
int rift_kvm_vcpu_settle(struct rift_kvm_vcpu *vcpu, int writing, struct rift_error *error) {
    struct rift_kvm_cpu *cpu = &vcpu->cpu;
    if (vcpu->has_pending && !writing)
        return 0;
    if (vcpu->has_pending && cpu->open)
        vcpu->has_pending = 0;
    for (int count = 0; cpu->open && count < MOST_ACCESSES; ++count) {
        if (cpu->open == RIFT_KVM_BATCH && !writing)
            return 0;
        cpu->completing = 1;
        set_immediate_exit(cpu, 1);
        int entered = vcpu->binding->enter(cpu, error);
        cpu->completing = 0;
        if (entered) {
            if (error->code != EINTR)
                return -1;
            cpu->open = RIFT_KVM_COMPLETE;
            break;
        }
        count_exit(vcpu->control);
        int decoded = vcpu->binding->decode(cpu, &vcpu->pending, error);
        if (decoded < 0)
            return -1;
        if (decoded == RIFT_KVM_DISPATCH && (!writing || !cpu->open)) {
            vcpu->has_pending = 1;
            return 0;
        }
    }
    return apply_deferred(vcpu, error);
}

/* The next exit: one that waits, or that of an entry. Returns as enter_once. */
static int next_exit(struct rift_kvm_vcpu *vcpu) {
    if (vcpu->deferred && !vcpu->has_pending && rift_kvm_vcpu_settle(vcpu, 0, &vcpu->window.error))
        return -1;
    if (!vcpu->has_pending)
        return enter_once(vcpu);
    if (take_kick(vcpu->control))
        return CUT_SHORT;
    vcpu->has_pending = 0;
    vcpu->window.exit = vcpu->pending;
    return HAVE_EXIT;
}

static int loop(struct rift_kvm_vcpu *vcpu, int answered, uint64_t reply) {
    struct rift_kvm_cpu *cpu = &vcpu->cpu;
    struct rift_exit *exit = &vcpu->window.exit;
    if (answered && cpu->open && !vcpu->has_pending)
        vcpu->binding->complete(cpu, reply);
    for (;;) {
        int entered = next_exit(vcpu);
        if (entered < 0)
            return RIFT_KVM_FAILED;
        if (entered == CUT_SHORT)
            return interrupted(vcpu);
        if (entered == AGAIN)
            continue;
        int verdict = dispatch(vcpu, exit);
        if (verdict == RIFT_RESUME) {
            if (cpu->open)
                vcpu->binding->complete(cpu, exit->value);
        } else if (verdict == RIFT_PASS) {
            return RIFT_KVM_EXIT;
        } else if (verdict == RIFT_STOP) {
            return RIFT_KVM_STOPPED;
        } else if (verdict == -EINTR) {
            /* The handler was waiting: it is asked again when the guest goes on. */
            vcpu->pending = *exit;
            vcpu->has_pending = 1;
            take_kick(vcpu->control);
            return interrupted(vcpu);
        } else {
            rift_kvm_fail(&vcpu->window.error, verdict < 0 ? -verdict : EPROTO, "native exit handler");
            return RIFT_KVM_FAILED;
        }
    }
}

int rift_kvm_vcpu_run(struct rift_kvm_vcpu *vcpu, int answered, uint64_t reply) {
    atomic_store(&vcpu->control->inside, 1);
    int status = loop(vcpu, answered, reply);
    rift_kvm_control_leave(vcpu->control);
    return status;
}
