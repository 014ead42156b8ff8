/* The AArch64 binding: set-up, and the struct that joins it all. */
#include "kvm.h"
#include "kvm_aarch64.h"

#include <errno.h>
#include <stdlib.h>

int rift_kvm_arm_fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

int rift_kvm_arm_call(const struct rift_kvm_cpu *cpu, unsigned long request, void *argument, const char *name,
                      struct rift_error *error) {
    int result = cpu->machine->ioctl(cpu->fd, request, argument);
    return result < 0 ? rift_kvm_arm_fail(error, errno, name) : result;
}

/* A capability of the VM, 0 if it has none; an error counts as none. */
static uint32_t capability(const struct rift_kvm_machine *machine, uintptr_t number) {
    int value = machine->ioctl(machine->fd, KVM_CHECK_EXTENSION, (void *)number);
    return value > 0 ? (uint32_t)value : 0;
}

/* The size of guest-physical addresses. Kernels that cannot choose it take nothing but 0, which means 40 bits. */
static uintptr_t vm_type(const struct rift_kvm_machine *machine) {
    int most = machine->ioctl(machine->device, KVM_CHECK_EXTENSION, (void *)KVM_CAP_ARM_VM_IPA_SIZE);
    return most > 0 ? KVM_VM_TYPE_ARM_IPA_SIZE(machine->gpa_bits) : 0;
}

static int vm_setup(struct rift_kvm_machine *machine, struct rift_error *error) {
    struct rift_kvm_arm_machine *arm = calloc(1, sizeof(*arm));
    if (!arm)
        return rift_kvm_arm_fail(error, ENOMEM, "calloc");
    machine->state = arm;
    arm->breakpoints = capability(machine, KVM_CAP_GUEST_DEBUG_HW_BPS);
    arm->watchpoints = capability(machine, KVM_CAP_GUEST_DEBUG_HW_WPS);
    arm->serror_syndrome = capability(machine, KVM_CAP_ARM_INJECT_SERROR_ESR) != 0;
    arm->statistics = capability(machine, KVM_CAP_BINARY_STATS_FD) != 0;
    /* A device access by an instruction that the CPU does not describe is an exit, not a failure of KVM_RUN. */
    struct kvm_enable_cap enable = {.cap = KVM_CAP_ARM_NISV_TO_USER};
    if (capability(machine, KVM_CAP_ARM_NISV_TO_USER) && machine->ioctl(machine->fd, KVM_ENABLE_CAP, &enable) < 0)
        return rift_kvm_arm_fail(error, errno, "KVM_ENABLE_CAP");
    return rift_kvm_arm_calls_setup(machine, error);
}

static void vm_release(struct rift_kvm_machine *machine) {
    free(machine->state);
    machine->state = NULL;
}

static int vcpu_setup(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    const struct rift_kvm_machine *machine = cpu->machine;
    struct rift_kvm_arm *arm = calloc(1, sizeof(*arm));
    if (!arm)
        return rift_kvm_arm_fail(error, ENOMEM, "calloc");
    cpu->state = arm;
    arm->halt.stats = -1;
    arm->powered_off = ((const struct rift_kvm_arm_machine *)machine->state)->powered_off;
    struct kvm_vcpu_init init;
    if (machine->ioctl(machine->fd, KVM_ARM_PREFERRED_TARGET, &init) < 0)
        return rift_kvm_arm_fail(error, errno, "KVM_ARM_PREFERRED_TARGET");
    init.features[0] |= 1u << KVM_ARM_VCPU_PSCI_0_2;
    if (rift_kvm_arm_call(cpu, KVM_ARM_VCPU_INIT, &init, "KVM_ARM_VCPU_INIT", error) < 0)
        return -1;
    return rift_kvm_arm_halt_setup(cpu, error);
}

static void vcpu_release(struct rift_kvm_cpu *cpu) {
    struct rift_kvm_arm *arm = cpu->state;
    if (!arm)
        return;
    rift_kvm_arm_halt_release(cpu);
    free(arm->state_ids);
    free(arm);
    cpu->state = NULL;
}

static const struct rift_kvm_binding aarch64 = {
    .version = RIFT_KVM_BINDING_VERSION,
    .bytes = sizeof(struct rift_kvm_binding),
    .isa = "aarch64",
    .registers = rift_kvm_arm_registers,
    .register_count = ARM_REGISTER_COUNT,
    .flags = RIFT_KVM_STORES_STAY_OPEN,
    .vm_type = vm_type,
    .vm_setup = vm_setup,
    .vm_release = vm_release,
    .vcpu_setup = vcpu_setup,
    .vcpu_release = vcpu_release,
    .vcpu_forget = rift_kvm_arm_halt_forget,
    .before_interrupt = rift_kvm_arm_halt_sample,
    .enter = rift_kvm_arm_enter,
    .decode = rift_kvm_arm_decode,
    .complete = rift_kvm_arm_complete,
    .read_registers = rift_kvm_arm_read,
    .write_registers = rift_kvm_arm_write,
    .inject_exception = rift_kvm_arm_inject,
    .drop_events = rift_kvm_arm_drop_events,
    .set_debug = rift_kvm_arm_set_debug,
    .save = rift_kvm_arm_save,
    .restore = rift_kvm_arm_restore,
};

const struct rift_kvm_binding *rift_kvm_host_binding(void) {
    return &aarch64;
}
