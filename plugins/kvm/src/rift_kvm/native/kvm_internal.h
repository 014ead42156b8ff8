/* Shared by the C files of the ISA-independent half. */
#ifndef RIFT_KVM_INTERNAL_H
#define RIFT_KVM_INTERNAL_H

#include "kvm.h"
#include "rift_dispatch.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

/* A memory slot; bytes == 0: its number is free. */
struct rift_kvm_slot {
    uint64_t gpa, bytes;
    uint8_t *host;
    int writable;
};

/* See kvm_ahead.c. */
enum rift_kvm_ahead_state { RIFT_KVM_AHEAD_NONE, RIFT_KVM_AHEAD_PREPARED, RIFT_KVM_AHEAD_BUSY, RIFT_KVM_AHEAD_DONE };

struct rift_kvm_ahead {
    enum rift_kvm_ahead_state state;
    sem_t go, done;
    int given_up;               /* behind `go` the thread makes nothing */
    struct rift_kvm_vcpu *vcpu; /* NULL: `error` says why */
    struct rift_error error;
};

struct rift_kvm_vm {
    struct rift_kvm_machine machine;
    const struct rift_kvm_binding *binding;
    struct rift_dispatch *dispatch;
    uint64_t gpa_end;
    pthread_mutex_t lock; /* slots and vcpus: handlers look memory up while other threads change it */
    struct rift_kvm_slot *slots;
    uint32_t slot_count, slot_limit;
    struct rift_kvm_vcpu *vcpus; /* open ones */
    uint32_t next_id;
    int running; /* a vCPU was asked for */
    void *flush_page;
    struct rift_kvm_ahead ahead;
};

/* Outlives its vCPU, so that a late kick is harmless. */
struct rift_kvm_control {
    atomic_uint references;
    atomic_uint kick;         /* somebody wants the owner out of the guest */
    atomic_uint inside;       /* the owner is in rift_kvm_vcpu_run */
    atomic_uint dispatching;  /* the owner is in a native handler */
    atomic_uint kickers;      /* threads in rift_kvm_control_kick */
    atomic_ulong exits;       /* written by the owner only */
    pthread_mutex_t lock;     /* the rest */
    struct rift_kvm_cpu *cpu; /* NULL: the vCPU is gone */
    void (*before_interrupt)(struct rift_kvm_cpu *cpu); /* the binding's, or NULL */
    int owned;                /* 0: parked */
    pthread_t owner;
    int signal;
};

#define RIFT_KVM_DEFERRED 64

struct rift_kvm_vcpu {
    struct rift_kvm_cpu cpu;
    const struct rift_kvm_binding *binding;
    struct rift_kvm_vm *vm;
    struct rift_kvm_control *control;
    struct rift_host host;
    struct rift_kvm_window window;
    struct rift_exit pending; /* an exit that happened while an access was completed */
    int has_pending;
    int on_main;
    uint32_t deferred_ids[RIFT_KVM_DEFERRED]; /* what a native handler wrote in the middle of an access */
    uint64_t deferred_words[RIFT_KVM_DEFERRED];
    uint32_t deferred;
    struct rift_kvm_vcpu *next;
};

/* Fills in the error; returns -1. */
int rift_kvm_fail(struct rift_error *error, int code, const char *operation);

/* kvm.c: a vCPU that nobody owns yet; and its end. */
struct rift_kvm_vcpu *rift_kvm_vcpu_make(struct rift_kvm_vm *vm, uint32_t index, struct rift_error *error);
void rift_kvm_vcpu_destroy(struct rift_kvm_vcpu *vcpu);

/* kvm_ahead.c: vCPU 0 before it is asked for. One thread at a time calls these. */
void rift_kvm_ahead_prepare(struct rift_kvm_vm *vm);
void rift_kvm_ahead_start(struct rift_kvm_vm *vm);
void rift_kvm_ahead_wait(struct rift_kvm_vm *vm);
void rift_kvm_ahead_end(struct rift_kvm_vm *vm);
/* Returns whether it was made, or tried, ahead; then *vcpu is it, or NULL and *error says why. */
int rift_kvm_ahead_take(struct rift_kvm_vm *vm, struct rift_kvm_vcpu **vcpu, struct rift_error *error);

/* kvm_control.c */
struct rift_kvm_control *rift_kvm_control_create(struct rift_kvm_cpu *cpu, const struct rift_kvm_binding *binding);
void rift_kvm_control_own(struct rift_kvm_control *control); /* by the calling thread */
void rift_kvm_control_disown(struct rift_kvm_control *control);
void rift_kvm_control_leave(struct rift_kvm_control *control); /* the end of rift_kvm_vcpu_run */
void rift_kvm_control_detach(struct rift_kvm_control *control);
void rift_kvm_control_interrupt(struct rift_kvm_control *control); /* one entry ends with EINTR; it is no kick */

/* kvm_host.c: fills in what native handlers may call. */
void rift_kvm_host_init(struct rift_kvm_vcpu *vcpu);

/* kvm_run.c: completes an open access before registers are read or (`writing`) written. */
int rift_kvm_vcpu_settle(struct rift_kvm_vcpu *vcpu, int writing, struct rift_error *error);

#endif
