/* Shared by the C files of the x86-64 binding. */
#ifndef RIFT_KVM_X86_64_H
#define RIFT_KVM_X86_64_H

#include "kvm_binding.h"
#include "rift_xsave.h"

#include <linux/kvm.h>

/* Groups of registers that KVM transfers together: bits of x86->valid. */
enum x86_group { X86_REGS = 1, X86_SREGS = 2, X86_XSAVE = 4, X86_MSRS = 8, X86_DEBUGREGS = 16, X86_XCRS = 32 };

/* Where a register lies: rift_kvm_register.group. `place` is an offset or an index. */
enum x86_kind {
    X86_GENERAL,    /* 64 bits of struct kvm_regs */
    X86_SYSTEM,     /* 64 bits of struct kvm_sregs */
    X86_CR8,        /* of struct kvm_sregs, and kvm_run->cr8, which wins at entry */
    X86_LIMIT,      /* 32 bits of struct kvm_sregs */
    X86_SELECTOR,   /* 16 bits of struct kvm_sregs */
    X86_ATTRIBUTES, /* a struct kvm_segment of struct kvm_sregs */
    X86_MSR,        /* index into rift_kvm_x86_msrs */
    X86_DEBUGREG,   /* 64 bits of struct kvm_debugregs */
    X86_XCR0,
    X86_XMM, /* this and the rest as enum rift_xsave_part */
    X86_YMM,
    X86_ST,
    X86_TAG,
    X86_X87,
    X86_MXCSR
};

#define X86_MSR_COUNT 11
#define X86_MSR_TSC 6 /* its index */
extern const uint32_t rift_kvm_x86_msrs[X86_MSR_COUNT];

/* The binding's state of a vCPU: registers as last fetched or written. */
struct rift_kvm_x86 {
    struct kvm_regs *regs; /* in kvm_run when KVM synchronises it, else own_regs */
    struct kvm_regs own_regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    uint64_t msrs[X86_MSR_COUNT];
    uint32_t msrs_absent; /* bit mask of indices */
    uint32_t valid;       /* groups that are as in KVM */
    int regs_changed;     /* *regs is newer than KVM's; written at the next entry */
    int sync_regs;        /* KVM_CAP_SYNC_REGS */
    int used;             /* general registers were wanted since the last exit */
    int faulted;          /* KVM_RUN failed with EFAULT */
    uint32_t batch_count, batch_at; /* a string access: how many, and which is being answered */
    uint64_t mmio_next;             /* where the rest of a split MMIO store would go; 0: it was not split */
    int redirected;                 /* rip was written while such a rest may be left ... */
    uint64_t redirect;              /* ... to here */
    int fault_here;                 /* restore `before`: an injected fault belongs to the instruction */
    struct kvm_regs before;
    struct kvm_guest_debug debug;
    uint32_t avx_offset; /* of the upper halves of YMM in the XSAVE image; 0: no AVX */
    union {
        struct kvm_xsave xsave;
        uint8_t bytes[4096];
    };
};

/* A KVM call on the vCPU: 0 or more, or -1. */
int rift_kvm_x86_call(const struct rift_kvm_cpu *cpu, unsigned long request, void *argument, const char *name,
                      struct rift_error *error);

/* kvm_x86_64_groups.c: transfers. */
int rift_kvm_x86_fetch(struct rift_kvm_cpu *cpu, uint32_t group, struct rift_error *error);
int rift_kvm_x86_store(struct rift_kvm_cpu *cpu, uint32_t group, struct rift_error *error);
int rift_kvm_x86_store_msrs(struct rift_kvm_cpu *cpu, uint32_t mask, struct rift_error *error);
int rift_kvm_x86_save(struct rift_kvm_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_kvm_x86_restore(struct rift_kvm_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);

/* kvm_x86_64_reset.c: fills the copy of a vCPU that has just been made. */
int rift_kvm_x86_reset_state(struct rift_kvm_cpu *cpu, struct rift_error *error);

/* kvm_x86_64_registers.c: the table, and access by its ids. */
enum { X86_REGISTER_COUNT = 130 };
extern const struct rift_kvm_register rift_kvm_x86_registers[X86_REGISTER_COUNT];
int rift_kvm_x86_read(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error);
int rift_kvm_x86_write(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error);

/* kvm_x86_64_exits.c */
int rift_kvm_x86_enter(struct rift_kvm_cpu *cpu, struct rift_error *error);
int rift_kvm_x86_decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
void rift_kvm_x86_complete(struct rift_kvm_cpu *cpu, uint64_t value);

#endif
