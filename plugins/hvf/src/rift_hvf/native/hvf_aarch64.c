/* The AArch64 binding: calls, making a vCPU, and the struct that joins it all. */
#include "hvf_aarch64.h"

#include <errno.h>

#define PAGE 0x4000 /* hv_vm_map takes multiples of 16 KiB in address, guest-physical address and size */
#define DEFAULT_IPA_BITS 36 /* where the framework cannot be asked, before macOS 13 */
#define DEFAULT_VCPUS 64

/* hv_feature_reg_t of the registers in rift_hvf_limits.features, in this order: ID_AA64MMFR0, MMFR1, PFR0, ISAR0. */
static const uint8_t feature_registers[4] = {4, 5, 7, 2};

int rift_hvf_arm_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error) {
    int status = cpu->framework->arm.get_reg(cpu->id, number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_get_reg");
}

int rift_hvf_arm_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    int status = cpu->framework->arm.set_reg(cpu->id, number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_reg");
}

int rift_hvf_arm_system_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error) {
    int status = cpu->framework->arm.get_sys_reg(cpu->id, (uint16_t)number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_get_sys_reg");
}

int rift_hvf_arm_system_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    int status = cpu->framework->arm.set_sys_reg(cpu->id, (uint16_t)number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_sys_reg");
}

int rift_hvf_arm_counter(const struct rift_hvf_cpu *cpu, uint64_t *ticks) {
    if (!cpu->framework->arm.absolute_time)
        return -1;
    *ticks = cpu->framework->arm.absolute_time();
    return 0;
}

int rift_hvf_arm_nanoseconds(const struct rift_hvf_cpu *cpu, uint64_t ticks, uint64_t *nanoseconds) {
    uint32_t ratio[2]; /* mach_timebase_info_data_t: numerator, denominator */
    if (!cpu->framework->arm.timebase_info || cpu->framework->arm.timebase_info(ratio) || !ratio[1])
        return -1;
    *nanoseconds = ticks / ratio[1] * ratio[0] + ticks % ratio[1] * ratio[0] / ratio[1];
    return 0;
}

int rift_hvf_arm_virtual_counter(const struct rift_hvf_cpu *cpu, uint64_t *ticks) {
    uint64_t offset;
    if (rift_hvf_arm_counter(cpu, ticks) || !cpu->framework->arm.get_vtimer_offset ||
        cpu->framework->arm.get_vtimer_offset(cpu->id, &offset) != HV_SUCCESS)
        return -1;
    *ticks -= offset;
    return 0;
}

/* features: the guest's identification registers, of which 0 means that they are not known. */
static int limits(const struct rift_hvf_framework *framework, struct rift_hvf_limits *limits,
                  struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &framework->arm;
    uint32_t vcpus = 0, bits = 0;
    (void)error;
    if (!calls->get_max_vcpu_count || calls->get_max_vcpu_count(&vcpus) != HV_SUCCESS || !vcpus)
        vcpus = DEFAULT_VCPUS;
    if (!calls->vm_config_get_default_ipa_size || calls->vm_config_get_default_ipa_size(&bits) != HV_SUCCESS || !bits)
        bits = DEFAULT_IPA_BITS;
    limits->page = PAGE;
    limits->gpa_bits = limits->most_gpa_bits = bits;
    if (calls->vm_config_create && calls->vm_config_set_ipa_size && calls->vm_config_get_max_ipa_size &&
        calls->vm_config_get_max_ipa_size(&bits) == HV_SUCCESS && bits > limits->most_gpa_bits)
        limits->most_gpa_bits = bits;
    limits->max_vcpus = vcpus;
    void *config = calls->vcpu_config_create && calls->vcpu_config_get_feature_reg ? calls->vcpu_config_create() : NULL;
    for (uint32_t at = 0; config && at < 4; ++at)
        if (calls->vcpu_config_get_feature_reg(config, feature_registers[at], &limits->features[at]) != HV_SUCCESS)
            limits->features[at] = 0;
    if (config && calls->os_release)
        calls->os_release(config);
    return 0;
}

/* The default configuration unless it has to be another one: it is what every macOS since 11 takes. */
static int vm_create(const struct rift_hvf_framework *framework, uint32_t gpa_bits, struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &framework->arm;
    struct rift_hvf_limits usual = {0};
    if (limits(framework, &usual, error))
        return -1;
    void *config = NULL;
    int status = HV_SUCCESS;
    const char *operation = "hv_vm_create";
    if (gpa_bits != usual.gpa_bits) {
        if (!calls->vm_config_create || !calls->vm_config_set_ipa_size || !(config = calls->vm_config_create()))
            return rift_hvf_fail(error, EOPNOTSUPP, "hv_vm_config_create");
        status = calls->vm_config_set_ipa_size(config, gpa_bits);
        operation = "hv_vm_config_set_ipa_size";
    }
    if (status == HV_SUCCESS) {
        status = calls->vm_create(config);
        operation = "hv_vm_create";
    }
    if (config && calls->os_release)
        calls->os_release(config);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, operation);
}

static int setup(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    struct rift_hvf_arm *arm = arm_of(cpu);
    struct rift_error ignored; /* a framework that gives the numbers itself leaves them to be told apart as well */
    /* Affinity 0 is the number; bit 31 is always 1: Arm ARM, D19.2.101. */
    rift_hvf_arm_system_set(cpu, SYS_MPIDR_EL1, UINT64_C(0x80000000) | cpu->index, &ignored);
    if (rift_hvf_arm_set(cpu, HV_CPSR, PSTATE_EL1H | PSTATE_MASKED, error))
        return -1;
    if (calls->set_vtimer_mask)
        calls->set_vtimer_mask(cpu->id, false);
    arm->timer_masked = 0;
    arm->open = ARM_OPEN_NOTHING;
    arm->flush = 1; /* the VM may have had other page tables before */
    return rift_hvf_arm_apply_debug(cpu, error);
}

static int vcpu_create(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm_exit *exit = NULL;
    int status = cpu->framework->arm.vcpu_create(&cpu->id, &exit, NULL);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_create");
    cpu->exit_info = exit;
    cpu->open = 0;
    cpu->stepped = 0;
    if (setup(cpu, error)) {
        cpu->framework->arm.vcpu_destroy(cpu->id);
        return -1;
    }
    return 0;
}

static int vcpu_destroy(const struct rift_hvf_framework *framework, uint64_t id) {
    return framework->arm.vcpu_destroy(id);
}

static void vcpu_exit(const struct rift_hvf_framework *framework, uint64_t id) {
    framework->arm.vcpus_exit(&id, 1);
}

const struct rift_hvf_binding rift_hvf_aarch64 = {
    .version = RIFT_HVF_BINDING_VERSION,
    .bytes = sizeof(struct rift_hvf_binding),
    .isa = "aarch64",
    .registers = rift_hvf_arm_registers,
    .register_count = ARM_REGISTER_COUNT,
    .state_bytes = sizeof(struct rift_hvf_arm),
    .limits = limits,
    .vm_create = vm_create,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .vcpu_exit = vcpu_exit,
    .enter = rift_hvf_arm_enter,
    .decode = rift_hvf_arm_decode,
    .complete = rift_hvf_arm_complete,
    .read_registers = rift_hvf_arm_read,
    .write_registers = rift_hvf_arm_write,
    .inject_exception = rift_hvf_arm_inject,
    .inject_interrupt = rift_hvf_arm_interrupt,
    .drop_events = rift_hvf_arm_drop_events,
    .set_debug = rift_hvf_arm_set_debug,
    .save = rift_hvf_arm_save,
    .restore = rift_hvf_arm_restore,
    .flush = rift_hvf_arm_flush,
};
