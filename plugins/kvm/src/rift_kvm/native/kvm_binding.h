/* What joins KVM with one instruction set: a struct of function pointers that the run loop calls.
 *
 * Public: a distribution of its own can bring a binding for another ISA (rift_kvm.get_include() is the
 * folder of this header). It hands the address of its struct to Rift as rift_core.backend.Binding.native.
 * The file is also part of the cdef: declarations only, and a preprocessor line stands alone on its line.
 *
 * Every function but `describe` and `before_interrupt` is called on the vCPU's owning thread, with the interpreter lock
 * released.
 * A function that takes a struct rift_error returns 0, or -1 with the error filled in (code: an errno;
 * operation: a static string, the call's name as in the kernel's documentation). */
#ifndef RIFT_KVM_BINDING_H
#define RIFT_KVM_BINDING_H

#include "rift_abi.h"

/* Raised by any change of this header. A binding of another version is refused. */
#define RIFT_KVM_BINDING_VERSION 4

struct kvm_run;

/* ioctl(2); an integer argument is passed as a pointer. Bindings call KVM through this and nothing else,
 * so that tests can put a failing one in its place. */
typedef int rift_kvm_ioctl_fn(int fd, unsigned long request, void *argument);

enum rift_kvm_machine_flag {
    RIFT_KVM_SYSTEM_REGISTER_EXITS = 1, /* accesses to unknown system registers are wanted as exits */
    RIFT_KVM_HOST_COUNTER = 2 /* guests read the host's own time counter: one that is written does not last */
};

/* A VM, as its binding sees it. */
struct rift_kvm_machine {
    int device;         /* descriptor of /dev/kvm */
    int fd;             /* descriptor of the VM */
    uint32_t run_bytes; /* size of the mapping behind run */
    uint32_t flags;     /* enum rift_kvm_machine_flag */
    uint32_t gpa_bits;  /* guest-physical addresses are below 2^gpa_bits */
    uint32_t system_calls; /* 1: `ioctl` is ioctl(2) itself, and what it says of every VM may be remembered */
    rift_kvm_ioctl_fn *ioctl;
    const void *description; /* what `describe` found, the same for all VMs of the process */
    size_t description_bytes;
    void *state; /* the binding's own */
};

/* How much of the instruction that caused the last exit is still to be done. */
enum rift_kvm_open {
    RIFT_KVM_COMPLETE = 0, /* nothing: registers are right as they are */
    RIFT_KVM_ACCESS = 1,   /* the next entry completes it, with the answer that `complete` stored */
    RIFT_KVM_BATCH = 2     /* further accesses of it follow, which `enter` gives without entering the guest */
};

/* A vCPU, as its binding sees it. */
struct rift_kvm_cpu {
    struct rift_kvm_machine *machine;
    struct kvm_run *run;
    int fd;
    uint32_t index; /* its number in Rift */
    uint32_t id;    /* its number in KVM */
    uint32_t open;  /* enum rift_kvm_open; set by `decode`, cleared by the loop after an interrupted entry */
    uint32_t completing; /* 1: the next entry only completes an access, and registers are read afterwards */
    uint32_t reserved;
    /* The loop's, for any thread while the vCPU exists: the entry in progress, or the next, ends with EINTR. */
    void (*interrupt)(struct rift_kvm_cpu *cpu);
    void *state; /* the binding's own */
};

/* A register by its name in the manual, lower case. A register takes (bits + 63) / 64 words in a batch. */
struct rift_kvm_register {
    const char *name;
    uint32_t bits;
    uint16_t group, place; /* the binding's own */
};

enum rift_kvm_decoded {
    RIFT_KVM_DISPATCH = 0, /* *exit is filled in */
    RIFT_KVM_REENTER = 1   /* nothing that anybody needs to see: enter again */
};

/* What a place in the guest's memory is watched for. */
enum rift_kvm_watch { RIFT_KVM_EXECUTE = 0, RIFT_KVM_WRITE = 1, RIFT_KVM_READ = 2, RIFT_KVM_READ_WRITE = 3 };

struct rift_kvm_debug_point {
    uint64_t address;
    uint32_t size; /* bytes: 1, 2, 4 or 8; of RIFT_KVM_EXECUTE it means nothing */
    uint32_t kind; /* enum rift_kvm_watch */
};

/* What stops the guest with a DEBUG exit. */
struct rift_kvm_debug {
    uint32_t single_step;
    uint32_t software; /* the ISA's breakpoint instruction */
    uint32_t count;
    uint32_t reserved;
    const struct rift_kvm_debug_point *points;
};

/* See inject_exception. */
enum rift_kvm_injected { RIFT_KVM_COMPLETE_FIRST = 1 };

enum rift_kvm_binding_flag {
    RIFT_KVM_STORES_STAY_OPEN = 1, /* the program counter moves on at the next entry, after a store as well */
    RIFT_KVM_VCPU_AHEAD = 2 /* `vcpu_setup` of vCPU 0 may run on another thread, and before it is asked for */
};

struct rift_kvm_binding {
    uint32_t version; /* RIFT_KVM_BINDING_VERSION */
    uint32_t bytes;   /* sizeof(struct rift_kvm_binding) */
    const char *isa;
    const struct rift_kvm_register *registers; /* ids are indices of this table */
    uint32_t register_count;
    uint32_t flags; /* enum rift_kvm_binding_flag */

    /* Writes up to *bytes bytes that are the same for all VMs of the process (such as the CPU's
     * identification) and sets *bytes; called once, and its result is cached. May be NULL. */
    int (*describe)(int device, rift_kvm_ioctl_fn *ioctl, void *buffer, size_t *bytes, struct rift_error *error);

    /* The argument of KVM_CREATE_VM; called before there is a VM. NULL: 0. */
    uintptr_t (*vm_type)(const struct rift_kvm_machine *machine);

    /* Prepare a new VM or vCPU; the release functions accept one whose setup has failed or not happened. */
    int (*vm_setup)(struct rift_kvm_machine *machine, struct rift_error *error);
    void (*vm_release)(struct rift_kvm_machine *machine);
    int (*vcpu_setup)(struct rift_kvm_cpu *cpu, struct rift_error *error);
    void (*vcpu_release)(struct rift_kvm_cpu *cpu);
    /* In a forked child: closes the descriptors that `vcpu_setup` opened, and nothing else. May be NULL. */
    void (*vcpu_forget)(struct rift_kvm_cpu *cpu);

    /* By any thread that is about to end the entry in progress, or the next, with EINTR; one at a time for a vCPU. What
     * KVM does not tell afterwards can be found out here: whether the guest sleeps, say. May be NULL. */
    void (*before_interrupt)(struct rift_kvm_cpu *cpu);

    /* Transfer changed registers and KVM_RUN. A code of EINTR means that no exit happened; all accesses are
     * complete then. The loop alone writes run->immediate_exit. */
    int (*enter)(struct rift_kvm_cpu *cpu, struct rift_error *error);
    /* Translate the exit that `enter` gave. Returns enum rift_kvm_decoded, or -1. An open read that nobody
     * answers must read as 0, so decode clears the place of the answer. */
    int (*decode)(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
    /* Store the answer to the open read, if the open access is one. */
    void (*complete)(struct rift_kvm_cpu *cpu, uint64_t value);

    /* Called when nothing is open, or with the guest inside a batch (reads only). */
    int (*read_registers)(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                          struct rift_error *error);
    int (*write_registers)(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                           struct rift_error *error);

    /* Deliver an exception at the next entry. With an open access: either make the exception its answer and
     * return 0, or return RIFT_KVM_COMPLETE_FIRST and be called again when it is complete. */
    int (*inject_exception)(struct rift_kvm_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error);
    /* Nothing is open: forget what `inject_exception` or KVM would deliver at the next entry. */
    int (*drop_events)(struct rift_kvm_cpu *cpu, struct rift_error *error);
    /* Replaces what was chosen before. ENOSPC: more points than the CPU has; EOPNOTSUPP: one that it cannot watch;
     * EINVAL: a size or alignment that it cannot watch. */
    int (*set_debug)(struct rift_kvm_cpu *cpu, const struct rift_kvm_debug *debug, struct rift_error *error);

    /* The whole state. `save` with *bytes too small sets the size that is needed and fails with ENOSPC. */
    int (*save)(struct rift_kvm_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
    int (*restore)(struct rift_kvm_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);
};

#endif
