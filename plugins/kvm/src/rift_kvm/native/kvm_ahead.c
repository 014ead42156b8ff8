/* The first vCPU is made by a thread of its own while the machine's memory is filled: KVM_CREATE_VCPU and what belongs to
 * it take as long as all the rest. It begins behind the first slot, since KVM makes slots and vCPUs wait for each other;
 * the thread is there before. Whoever asks for that vCPU waits for it. */
#include "kvm_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

/* Either side waits for less than it takes to wake a thread that sleeps, so at first it does not sleep. */
#define AWAKE_NANOSECONDS 300000

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void await(sem_t *word) {
    const uint64_t end = now() + AWAKE_NANOSECONDS;
    do {
        if (!sem_trywait(word))
            return;
        sched_yield(); /* to the other side, where it has no CPU of its own */
    } while (now() < end);
    while (sem_wait(word) && errno == EINTR) {
    }
}

static void *make(void *argument) {
    struct rift_kvm_vm *vm = argument;
    await(&vm->ahead.go);
    if (!vm->ahead.given_up)
        vm->ahead.vcpu = rift_kvm_vcpu_make(vm, 0, &vm->ahead.error);
    sem_post(&vm->ahead.done); /* the VM may be gone behind this */
    return NULL;
}

/* The thread takes no signal: Python's are for its main thread, the kick's for owners of vCPUs. */
void rift_kvm_ahead_prepare(struct rift_kvm_vm *vm) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    if (!vm->machine.system_calls || !(vm->binding->flags & RIFT_KVM_VCPU_AHEAD))
        return; /* a test wants to see every call in order, on its thread */
    sigfillset(&all);
    if (pthread_attr_init(&attributes))
        return;
    sem_init(&vm->ahead.go, 0, 0);
    sem_init(&vm->ahead.done, 0, 0);
    if (!pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) &&
        !pthread_sigmask(SIG_SETMASK, &all, &before)) {
        if (!pthread_create(&thread, &attributes, make, vm))
            vm->ahead.state = RIFT_KVM_AHEAD_PREPARED;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attributes);
}

void rift_kvm_ahead_start(struct rift_kvm_vm *vm) {
    if (vm->ahead.state != RIFT_KVM_AHEAD_PREPARED || vm->running)
        return;
    vm->ahead.state = RIFT_KVM_AHEAD_BUSY;
    sem_post(&vm->ahead.go);
}

void rift_kvm_ahead_wait(struct rift_kvm_vm *vm) {
    if (vm->ahead.state != RIFT_KVM_AHEAD_BUSY)
        return;
    await(&vm->ahead.done);
    vm->ahead.state = RIFT_KVM_AHEAD_DONE;
}

void rift_kvm_ahead_end(struct rift_kvm_vm *vm) {
    if (vm->ahead.state == RIFT_KVM_AHEAD_PREPARED) {
        vm->ahead.given_up = 1;
        vm->ahead.state = RIFT_KVM_AHEAD_BUSY;
        sem_post(&vm->ahead.go);
    }
    rift_kvm_ahead_wait(vm);
    if (vm->ahead.vcpu)
        rift_kvm_vcpu_destroy(vm->ahead.vcpu);
    vm->ahead.vcpu = NULL;
}

int rift_kvm_ahead_take(struct rift_kvm_vm *vm, struct rift_kvm_vcpu **vcpu, struct rift_error *error) {
    rift_kvm_ahead_wait(vm);
    if (vm->ahead.state != RIFT_KVM_AHEAD_DONE)
        return 0;
    *vcpu = vm->ahead.vcpu;
    if (!*vcpu)
        *error = vm->ahead.error;
    vm->ahead.vcpu = NULL;
    vm->ahead.state = RIFT_KVM_AHEAD_NONE;
    return 1;
}
