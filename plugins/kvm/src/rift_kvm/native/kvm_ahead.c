/* The first vCPU is made by a thread of its own while the machine's memory is filled: KVM_CREATE_VCPU and what belongs to
 * it take as long as all the rest. It begins with the first slot, since KVM makes slots and vCPUs wait for each other.
 * Whoever asks for that vCPU waits for the thread. */
#include "kvm_internal.h"

#include <signal.h>

static void *make(void *argument) {
    struct rift_kvm_vm *vm = argument;
    vm->ahead.vcpu = rift_kvm_vcpu_make(vm, 0, &vm->ahead.error);
    return NULL;
}

/* The thread takes no signal: Python's are for its main thread, the kick's for owners of vCPUs. */
void rift_kvm_ahead_start(struct rift_kvm_vm *vm) {
    sigset_t all, before;
    if (vm->ahead.tried || vm->running || !vm->machine.system_calls || !(vm->binding->flags & RIFT_KVM_VCPU_AHEAD))
        return; /* it is being made, or was; or a test wants to see every call in order */
    vm->ahead.tried = 1;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before))
        return;
    vm->ahead.state = pthread_create(&vm->ahead.thread, NULL, make, vm) ? RIFT_KVM_AHEAD_NONE : RIFT_KVM_AHEAD_BUSY;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void rift_kvm_ahead_wait(struct rift_kvm_vm *vm) {
    if (vm->ahead.state != RIFT_KVM_AHEAD_BUSY)
        return;
    pthread_join(vm->ahead.thread, NULL);
    vm->ahead.state = RIFT_KVM_AHEAD_DONE;
}

int rift_kvm_ahead_take(struct rift_kvm_vm *vm, struct rift_kvm_vcpu **vcpu, struct rift_error *error) {
    rift_kvm_ahead_wait(vm);
    if (vm->ahead.state == RIFT_KVM_AHEAD_NONE)
        return 0;
    *vcpu = vm->ahead.vcpu;
    if (!*vcpu)
        *error = vm->ahead.error;
    vm->ahead.vcpu = NULL;
    vm->ahead.state = RIFT_KVM_AHEAD_NONE;
    return 1;
}
