/* HVC and SMC: KVM answers them itself, and before Linux 6.4 there is no other way. Since then a filter sends ranges of
 * function numbers to the host: Documentation/virt/kvm/devices/vm.rst, 6.1, and api.rst on KVM_EXIT_HYPERCALL. */
#include "kvm_aarch64.h"

#include <errno.h>

/* What older kernel headers do not have: arch/arm64/include/uapi/asm/kvm.h. */
#define VM_SMCCC_CTRL 0 /* group of attributes of a VM */
#define VM_SMCCC_FILTER 0
#define FILTER_FORWARD 2
struct filter {
    uint32_t base, count;
    uint8_t action;
    uint8_t pad[15];
};

/* Function numbers by who defines them, in bits 29:24 of a fast call (Arm DEN 0028, 2.5 and 6). KVM keeps those of the
 * architecture (0; it takes no filter for them), and of standard services (4), with PSCI among them. */
static const struct range {
    uint32_t first, last;
} ranges[] = {
    {0x00000000, 0x7FFFFFFF}, /* yielding calls */
    {0x81000000, 0x83FFFFFF},
    {0x85000000, 0xBFFFFFFF},
    {0xC1000000, 0xC3FFFFFF},
    {0xC5000000, 0xFFFFFFFF},
};

/* Before any vCPU runs. A kernel that has no filter goes on without. */
int rift_kvm_arm_calls_setup(struct rift_kvm_machine *machine, struct rift_error *error) {
    struct filter filter = {.action = FILTER_FORWARD};
    struct kvm_device_attr attribute = {
        .group = VM_SMCCC_CTRL, .attr = VM_SMCCC_FILTER, .addr = (uintptr_t)&filter};
    if (machine->ioctl(machine->fd, KVM_HAS_DEVICE_ATTR, &attribute) < 0)
        return 0;
    for (uint32_t at = 0; at < sizeof(ranges) / sizeof(*ranges); ++at) {
        filter.base = ranges[at].first;
        filter.count = ranges[at].last - ranges[at].first + 1;
        if (machine->ioctl(machine->fd, KVM_SET_DEVICE_ATTR, &attribute) < 0)
            return rift_kvm_arm_fail(error, errno, "KVM_ARM_VM_SMCCC_FILTER");
    }
    return 0;
}

/* The program counter is behind the instruction already; X0 takes the answer at the next entry. */
int rift_kvm_arm_decode_call(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    static const uint32_t ids[] = {ARM_X0, ARM_X0 + 1, ARM_X0 + 2, ARM_X0 + 3, ARM_X0 + 4, ARM_X0 + 5, ARM_X0 + 6};
    struct rift_kvm_arm *arm = cpu->state;
    uint64_t words[7];
    if (rift_kvm_arm_read(cpu, ids, 7, words, error))
        return -1;
    exit->kind = RIFT_EXIT_HYPERCALL;
    exit->address = words[0];
    for (uint32_t at = 0; at < 6; ++at)
        exit->info[at] = words[at + 1];
    arm->call_answer = 0;
    arm->in_call = 1;
    cpu->open = RIFT_KVM_ACCESS;
    return RIFT_KVM_DISPATCH;
}

int rift_kvm_arm_finish_call(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    if (!arm->in_call)
        return 0;
    arm->in_call = 0;
    return rift_kvm_arm_write(cpu, &(uint32_t){ARM_X0}, 1, &arm->call_answer, error);
}
