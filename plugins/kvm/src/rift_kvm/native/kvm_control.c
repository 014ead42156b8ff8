/* Kicks: how any thread makes a vCPU leave the guest, without ever losing one.
 *
 *   kicker: kick = 1; run->immediate_exit = 1; if the owner is inside: signal it     (under the lock)
 *   owner:  inside = 1; clear immediate_exit; look at kick; KVM_RUN                  (kvm_run.c)
 *
 * If the owner looks before kick is set, the kicker sees `inside` and signals: a signal that arrives in
 * KVM_RUN ends it, one that arrives just before has set immediate_exit, which ends it as well. If the owner
 * was not inside, it will look after kick was set. The owner does not leave while a kicker may be about to
 * signal it, so that the signal never goes to a thread that has ended.
 *
 * A kick that finds another one waiting sends no second signal: the owner has not looked since, and will. Signals
 * queue, and kickers faster than the owner's handler would keep it there for ever. */
#include "kvm_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

int rift_kvm_fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

/* The signal need only interrupt. */
static void ignore_signal(int signal) {
    (void)signal;
}

int rift_kvm_signal_install(int signal, struct rift_error *error) {
    struct sigaction old, action = {.sa_handler = ignore_signal};
    if (sigaction(signal, NULL, &old))
        return rift_kvm_fail(error, errno, "sigaction");
    if (!(old.sa_flags & SA_SIGINFO) && old.sa_handler == ignore_signal)
        return 0;
    if ((old.sa_flags & SA_SIGINFO) || old.sa_handler != SIG_DFL)
        return rift_kvm_fail(error, EBUSY, "sigaction");
    sigemptyset(&action.sa_mask);
    if (sigaction(signal, &action, NULL))
        return rift_kvm_fail(error, errno, "sigaction");
    return 0;
}

struct rift_kvm_control *rift_kvm_control_create(struct rift_kvm_cpu *cpu, const struct rift_kvm_binding *binding) {
    struct rift_kvm_control *control = calloc(1, sizeof(*control));
    if (!control)
        return NULL;
    atomic_init(&control->references, 1);
    pthread_mutex_init(&control->lock, NULL);
    control->cpu = cpu;
    control->before_interrupt = binding->before_interrupt;
    return control;
}

struct rift_kvm_control *rift_kvm_vcpu_control(struct rift_kvm_vcpu *vcpu) {
    atomic_fetch_add(&vcpu->control->references, 1);
    return vcpu->control;
}

void rift_kvm_control_release(struct rift_kvm_control *control) {
    if (!control || atomic_fetch_sub(&control->references, 1) != 1)
        return;
    pthread_mutex_destroy(&control->lock);
    free(control);
}

void rift_kvm_control_own(struct rift_kvm_control *control) {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, control->signal);
    pthread_sigmask(SIG_UNBLOCK, &wanted, NULL);
    pthread_mutex_lock(&control->lock);
    control->owned = 1;
    control->owner = pthread_self();
    pthread_mutex_unlock(&control->lock);
}

void rift_kvm_control_disown(struct rift_kvm_control *control) {
    pthread_mutex_lock(&control->lock);
    control->owned = 0;
    pthread_mutex_unlock(&control->lock);
}

void rift_kvm_control_leave(struct rift_kvm_control *control) {
    atomic_store(&control->inside, 0);
    if (!atomic_load(&control->kickers))
        return;
    pthread_mutex_lock(&control->lock);
    pthread_mutex_unlock(&control->lock);
}

void rift_kvm_control_detach(struct rift_kvm_control *control) {
    pthread_mutex_lock(&control->lock);
    control->owned = 0;
    control->cpu = NULL;
    pthread_mutex_unlock(&control->lock);
}

/* Makes the owner leave the guest, or not enter it; under the lock. */
static void interrupt(struct rift_kvm_control *control) {
    if (!control->cpu)
        return;
    if (control->before_interrupt)
        control->before_interrupt(control->cpu);
    *(volatile __u8 *)&control->cpu->run->immediate_exit = 1;
    while (control->owned && atomic_load(&control->inside) && pthread_kill(control->owner, control->signal) == EAGAIN)
        sched_yield(); /* RLIMIT_SIGPENDING: others have filled the user's queue */
}

void rift_kvm_control_kick(struct rift_kvm_control *control) {
    pthread_mutex_lock(&control->lock);
    atomic_fetch_add(&control->kickers, 1);
    if (!atomic_exchange(&control->kick, 1))
        interrupt(control);
    atomic_fetch_sub(&control->kickers, 1);
    pthread_mutex_unlock(&control->lock);
}

void rift_kvm_control_interrupt(struct rift_kvm_control *control) {
    pthread_mutex_lock(&control->lock);
    atomic_fetch_add(&control->kickers, 1);
    interrupt(control);
    atomic_fetch_sub(&control->kickers, 1);
    pthread_mutex_unlock(&control->lock);
}

uint64_t rift_kvm_control_exits(const struct rift_kvm_control *control) {
    return atomic_load_explicit(&control->exits, memory_order_relaxed);
}
