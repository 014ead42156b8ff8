/* Shared by the C files of the ISA-independent half. */
#ifndef RIFT_KVM_INTERNAL_H
#define RIFT_KVM_INTERNAL_H

#include "kvm.h"
#include "rift_dispatch.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

/* A memory slot; bytes == 0: its number is free. */
struct rift_kvm_slot {
    uint64_t gpa, bytes;
    uint8_t *host;
    int writable;
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
    void *flush_page;
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

/* kvm_control.c */
struct rift_kvm_control *rift_kvm_control_create(struct rift_kvm_cpu *cpu, const struct rift_kvm_binding *binding,
                                                 int signal);
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
