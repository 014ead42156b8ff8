/* The x86-64 stand-in: VMCS and registers of a vCPU over /dev/kvm. */
#ifndef STAND_IN_X86_64_H
#define STAND_IN_X86_64_H

#include "stand_in.h"

#include <linux/kvm.h>

enum { MOST_VCPUS = 64, VMCS_FIELDS = 0x6c1a, X86_REGISTERS = 51, MOST_NATIVE = 64 };

/* hv_x86_reg_t */
enum { R_RIP, R_RFLAGS, R_RAX, R_RCX, R_RDX, R_RBX, R_RSI, R_RDI, R_RSP, R_RBP, R_R8, R_R15 = 17, R_CR0 = 36, R_CR2 = 38,
       R_CR3 = 39, R_CR4 = 40, R_DR0 = 41, R_DR6 = 47, R_DR7 = 48, R_XCR0 = 50 };

/* Fields that the stand-in itself looks at. */
enum {
    F_LINK_POINTER = 0x2800, F_PAT = 0x2804, F_EFER = 0x2806, F_GPA = 0x2400, F_PIN = 0x4000, F_CPU = 0x4002,
    F_EXC_BITMAP = 0x4004, F_EXIT = 0x400c, F_ENTRY = 0x4012, F_IRQ_INFO = 0x4016, F_EXC_ERROR = 0x4018,
    F_INSTR_LEN = 0x401a, F_CPU2 = 0x401e, F_RO_REASON = 0x4402, F_RO_IRQ_INFO = 0x4404, F_RO_IRQ_ERROR = 0x4406,
    F_RO_IDT_INFO = 0x4408, F_RO_LENGTH = 0x440c, F_INTERRUPTIBILITY = 0x4824, F_ACTIVITY = 0x4826, F_SYSENTER_CS = 0x482a,
    F_CR0_MASK = 0x6000, F_CR4_MASK = 0x6002, F_CR0_SHADOW = 0x6004, F_CR4_SHADOW = 0x6006, F_RO_QUALIFICATION = 0x6400,
    F_RO_LINEAR = 0x640a, F_CR0 = 0x6800, F_CR3 = 0x6802, F_CR4 = 0x6804, F_DR7 = 0x681a, F_RSP = 0x681c, F_RIP = 0x681e,
    F_RFLAGS = 0x6820, F_SYSENTER_ESP = 0x6824, F_SYSENTER_EIP = 0x6826
};

struct region {
    uint64_t gpa, bytes;
    uint8_t *host;
    uint64_t flags;
    uint32_t slot;
};

struct vcpu {
    int used;
    pthread_t owner;
    int fd;
    struct kvm_run *run;
    uint64_t vmcs[VMCS_FIELDS];
    uint64_t registers[X86_REGISTERS];
    int system_valid, system_changed; /* the guest state of the VMCS that KVM keeps in kvm_sregs */
    int general_changed;
    uint32_t native[MOST_NATIVE];
    unsigned natives;
    atomic_int asked_to_exit, inside;
    int debugging;
    uint32_t advances_out; /* whether RIP is behind an OUT or a store when it exits: 0 unknown */
};

struct machine {
    int device, fd;
    uint32_t run_bytes;
    struct kvm_cpuid2 *cpuid;
    pthread_rwlock_t lock;
    struct region regions[1024];
    unsigned region_count;
    struct vcpu *vcpus[MOST_VCPUS];
    int spare[1024]; /* vCPUs of KVM, which frees none before the VM */
    struct kvm_run *spare_run[1024];
    unsigned spares, next_id;
};

extern struct machine *machine;

/* x86_64_state.c */
int state_load_system(struct vcpu *vcpu);
int state_load_general(struct vcpu *vcpu);
int state_store(struct vcpu *vcpu); /* all that has changed, before an entry */
int state_is_system(uint32_t field);
int state_msr(struct vcpu *vcpu, uint32_t msr, uint64_t *value, int write);
int state_debug_register(struct vcpu *vcpu, unsigned number, uint64_t *value, int write);

/* x86_64_entry.c: the checks of VM entry (Intel SDM volume 3, 26.2 and 26.3), as far as they concern what a
 * hypervisor sets. Returns NULL, or what is wrong. */
const char *entry_check(const struct vcpu *vcpu);
uint64_t control_word(unsigned at);

/* x86_64_exits.c: the exit that KVM gave, as a VMX exit. Returns an hv_return_t. */
int exit_translate(struct vcpu *vcpu);
void exit_set(struct vcpu *vcpu, uint32_t reason, uint64_t qualification, uint32_t length);
struct region *region_at(uint64_t gpa);

#endif
