/* Shared by the C files of the AArch64 binding. "Arm ARM" is DDI 0487. */
#ifndef RIFT_KVM_AARCH64_H
#define RIFT_KVM_AARCH64_H

#include "kvm_aarch64_sleep.h"
#include "kvm_binding.h"

#include <linux/kvm.h>

/* Where a register lies: rift_kvm_register.group. `place` is its part of the number that KVM_GET_ONE_REG takes. */
enum arm_kind {
    ARM_CORE,      /* 64 bits of struct kvm_regs */
    ARM_CORE_32,   /* 32 bits of it */
    ARM_FLAGS,     /* 64 bits of it, of which 32 mean something */
    ARM_VECTOR,    /* 128 bits of it */
    ARM_SYSTEM,    /* a system register: op0, op1, CRn, CRm, op2 */
    ARM_IDENTITY,  /* the same; it cannot be written */
    ARM_CURRENT_SP /* sp_el0 or sp_el1, as pstate says */
};

/* Ids that the binding itself uses: the first rows of the table, in this order. */
enum { ARM_X0 = 0, ARM_PC = 31, ARM_PSTATE, ARM_SP_EL0, ARM_SP_EL1, ARM_SP, ARM_NAMED };

/* PSTATE as in SPSR_EL1: Arm ARM, C5.2.20. */
#define PSTATE_SP 0x1u    /* M[0]: SP_EL1, not SP_EL0 */
#define PSTATE_EL 0xCu    /* M[3:2] */
#define PSTATE_EL1H 0x5u
#define PSTATE_MASKED 0x3C0u /* D, A, I, F */
#define PSTATE_SSBS (1u << 12)
#define PSTATE_PAN (1u << 22)
#define PSTATE_DIT (1u << 24)
#define PSTATE_FLAGS 0xF0000000u /* N, Z, C, V */

/* The binding's state of a VM: what its KVM can do. */
struct rift_kvm_arm_machine {
    uint32_t breakpoints, watchpoints;
    int serror_syndrome; /* KVM_CAP_ARM_INJECT_SERROR_ESR */
    int statistics; /* KVM_CAP_BINARY_STATS_FD */
    uint32_t counters_at[ARM_COUNTERS]; /* offsets in a vCPU's statistics; 0: it has none */
    uint32_t powered_off; /* counts SYSTEM_EVENT exits, each of which leaves all vCPUs switched off */
};

/* What kvm_aarch64_halt.c keeps of a vCPU. */
struct rift_kvm_arm_halt {
    struct rift_kvm_cpu *cpu;
    struct rift_kvm_arm_halt *next;
    int stats;        /* descriptor of KVM's counters, -1: none */
    uint32_t entries; /* counts entries and exits: odd while the vCPU is in the guest */
    uint32_t sampled; /* the entry, as counted by `entries`, that `before` belongs to */
    struct rift_kvm_arm_counters before; /* somebody was about to end that entry; written before `sampled` */
    uint32_t seen;    /* `entries` at the watcher's last look */
    uint32_t called;  /* `entries` when the watcher ended one */
    uint32_t pause;   /* looks that the watcher leaves out: it sleeps for good reason */
};

/* The binding's state of a vCPU. */
struct rift_kvm_arm {
    uint64_t words[256];   /* registers as last read or written, at most two words each ... */
    uint8_t valid[128];    /* ... if they still are as in KVM */
    int faulted;           /* KVM_RUN failed with EFAULT */
    int halted;            /* it was ended because the guest slept */
    uint32_t powered_off;  /* of struct rift_kvm_arm_machine, as far as undone for this vCPU */
    int in_call;           /* an HVC or SMC is open: x0 becomes call_answer */
    uint64_t call_answer;
    int fault_here;        /* restore `before`: an injected fault belongs to the instruction */
    uint64_t before[32];   /* x0 to x30, pc */
    struct kvm_guest_debug debug;
    struct rift_kvm_arm_halt halt;
    uint64_t *state_ids;   /* what `save` saves, once it is known */
    uint32_t state_count;
};

/* A KVM call on the vCPU: 0 or more, or -1. */
int rift_kvm_arm_call(const struct rift_kvm_cpu *cpu, unsigned long request, void *argument, const char *name,
                      struct rift_error *error);
int rift_kvm_arm_fail(struct rift_error *error, int code, const char *operation);

/* kvm_aarch64_registers.c: the table, and access by its ids. */
enum { ARM_REGISTER_COUNT = 110 };
extern const struct rift_kvm_register rift_kvm_arm_registers[ARM_REGISTER_COUNT];
int rift_kvm_arm_read(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error);
int rift_kvm_arm_write(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error);
void rift_kvm_arm_forget(struct rift_kvm_arm *arm); /* the guest has run: what was read is old */

/* kvm_aarch64_state.c: the whole state in one piece. */
int rift_kvm_arm_save(struct rift_kvm_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_kvm_arm_restore(struct rift_kvm_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);

/* kvm_aarch64_exits.c */
int rift_kvm_arm_enter(struct rift_kvm_cpu *cpu, struct rift_error *error);
int rift_kvm_arm_decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
void rift_kvm_arm_complete(struct rift_kvm_cpu *cpu, uint64_t value);

/* kvm_aarch64_calls.c: HVC and SMC */
int rift_kvm_arm_calls_setup(struct rift_kvm_machine *machine, struct rift_error *error);
int rift_kvm_arm_decode_call(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_kvm_arm_finish_call(struct rift_kvm_cpu *cpu, struct rift_error *error); /* before an entry */

/* kvm_aarch64_halt.c: finds out that the guest sleeps, which KVM does not tell. */
int rift_kvm_arm_halt_setup(struct rift_kvm_cpu *cpu, struct rift_error *error);
void rift_kvm_arm_halt_release(struct rift_kvm_cpu *cpu);
void rift_kvm_arm_halt_forget(struct rift_kvm_cpu *cpu);
void rift_kvm_arm_halt_sample(struct rift_kvm_cpu *cpu); /* somebody is about to end the entry in progress */
void rift_kvm_arm_halt_before(struct rift_kvm_arm_halt *halt); /* KVM_RUN */
int rift_kvm_arm_halt_after(struct rift_kvm_cpu *cpu, int cut_short); /* KVM_RUN; with EINTR: 1 if the guest slept */

/* kvm_aarch64_faults.c: exceptions and debugging. */
int rift_kvm_arm_inject(struct rift_kvm_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error);
int rift_kvm_arm_drop_events(struct rift_kvm_cpu *cpu, struct rift_error *error);
int rift_kvm_arm_set_debug(struct rift_kvm_cpu *cpu, const struct rift_kvm_debug *wanted, struct rift_error *error);
int rift_kvm_arm_decode_debug(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error);

#endif
