/* Shared by the C files of the ISA-independent half. */
#ifndef RIFT_HVF_INTERNAL_H
#define RIFT_HVF_INTERNAL_H

#include "hvf.h"
#include "hvf_framework.h"
#include "rift_dispatch.h"

#include <pthread.h>
#include <stdatomic.h>

/* A region of guest-physical memory; kept sorted by address. */
struct rift_hvf_region {
    uint64_t gpa, bytes;
    uint8_t *host;
    uint32_t permissions; /* HV_MEMORY_* */
};

struct rift_hvf_vm {
    struct rift_hvf_framework *framework;
    const struct rift_hvf_binding *binding;
    struct rift_dispatch *dispatch;
    uint64_t gpa_end;
    uint32_t page, flags;
    pthread_mutex_t lock; /* regions and vcpus: exits look memory up while other threads change it */
    struct rift_hvf_region *regions;
    uint32_t region_count, region_room;
    struct rift_hvf_vcpu *vcpus; /* open ones */
    int had_vcpu;
    atomic_uint entered; /* a vCPU of the hypervisor's VM has been in a guest: translations may be cached */
    void *service; /* a page for a binding's own code; NULL: not needed so far */
    uint64_t service_gpa;
};

/* Outlives its vCPU, so that a late kick is harmless. */
struct rift_hvf_control {
    atomic_uint references;
    atomic_uint kick;        /* somebody wants the owner out of rift_hvf_vcpu_run */
    atomic_uint flush;       /* translations must be forgotten before the next entry */
    atomic_uint running;     /* the owner is in rift_hvf_vcpu_run */
    atomic_uint in_guest;    /* the owner is in the framework's run call, or about to be */
    atomic_uint holding;     /* the owner may hold pointers into guest memory */
    atomic_ulong exits;      /* written by the owner only */
    pthread_mutex_t lock;    /* the rest */
    pthread_cond_t kicked;   /* for a native handler that waits */
    const struct rift_hvf_framework *framework;
    uint64_t id; /* of the hypervisor's vCPU */
    int seated;  /* there is one */
};

/* A hypervisor vCPU and the thread that it belongs to, which alone can destroy it. A thread can have one. */
struct rift_hvf_seat {
    const struct rift_hvf_framework *framework;
    uint64_t id;
    struct rift_hvf_vcpu *occupant; /* NULL: its vCPU was closed by another thread */
};

#define RIFT_HVF_DEFERRED 64

struct rift_hvf_vcpu {
    struct rift_hvf_cpu cpu;
    const struct rift_hvf_binding *binding;
    struct rift_hvf_vm *vm;
    struct rift_hvf_control *control;
    struct rift_hvf_seat *seat; /* NULL: `saved` has the state */
    void *saved;
    size_t saved_bytes, saved_room;
    struct rift_host host;
    struct rift_hvf_window window;
    struct rift_exit pending; /* an exit that happened while an access was completed, or is to be shown again */
    int has_pending;
    uint32_t deferred_ids[RIFT_HVF_DEFERRED]; /* what a native handler wrote in the middle of an access */
    uint64_t deferred_words[RIFT_HVF_DEFERRED];
    uint32_t deferred;
    struct rift_hvf_vcpu *next;
};

/* Fills in the error; returns -1. */
int rift_hvf_fail(struct rift_error *error, int code, const char *operation);

/* hvf_process.c: what the hypervisor allows once a process, or once a thread. */
/* The process's VM. Returns 0; 1: it had another machine before; -1. */
int rift_hvf_process_enter(struct rift_hvf_framework *framework, uint32_t gpa_bits, struct rift_error *error);
void rift_hvf_process_leave(void);
int rift_hvf_seat_take(struct rift_hvf_vcpu *vcpu, struct rift_error *error);  /* create on this thread, then restore */
int rift_hvf_seat_leave(struct rift_hvf_vcpu *vcpu, struct rift_error *error); /* save, then destroy; its thread */
void rift_hvf_seat_abandon(struct rift_hvf_vcpu *vcpu);                        /* any thread; the state is lost */

/* hvf_memory.c: bytes of guest-physical memory that lie in one region with `permissions`, or NULL. */
void *rift_hvf_memory_find(struct rift_hvf_vm *vm, uint64_t gpa, uint64_t bytes, uint32_t permissions);
/* The permissions of the region at `gpa`; 0: there is none. */
uint32_t rift_hvf_memory_permissions(struct rift_hvf_vm *vm, uint64_t gpa);

/* A page of the VM at the end of the guest-physical addresses that holds `code`, made at the first call. */
int rift_hvf_memory_service(struct rift_hvf_vm *vm, const void *code, size_t bytes, uint64_t *gpa,
                            struct rift_error *error);

void rift_hvf_memory_end_service(struct rift_hvf_vm *vm);

/* hvf_control.c */
struct rift_hvf_control *rift_hvf_control_create(const struct rift_hvf_framework *framework);
void rift_hvf_control_seat(struct rift_hvf_control *control, uint64_t id);
void rift_hvf_control_unseat(struct rift_hvf_control *control);
void rift_hvf_control_flush(struct rift_hvf_control *control);

/* hvf_host.c: sleeps for so long, or until a kick. */
void rift_hvf_control_sleep(struct rift_hvf_control *control, uint64_t nanoseconds);
/* Fills in what native handlers may call. */
void rift_hvf_host_init(struct rift_hvf_vcpu *vcpu);

/* hvf_run.c: completes an open access before registers are read or (`writing`) written. */
int rift_hvf_vcpu_settle(struct rift_hvf_vcpu *vcpu, int writing, struct rift_error *error);

/* The two bindings. */
extern const struct rift_hvf_binding rift_hvf_x86_64;
extern const struct rift_hvf_binding rift_hvf_aarch64;

#endif
