/* Hypervisor.framework of a Mac with Apple silicon, over the Unicorn engine: the functions. With OLD_MACOS defined, those
 * that macOS 13 has added are missing. */
#include "arm64.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct machine *machine;
pthread_mutex_t machine_lock = PTHREAD_MUTEX_INITIALIZER;

static atomic_uint entries_for_cancel, entries_for_abort;

/* -- configuration objects -------------------------------------------------------------------------------------------- */

struct config {
    uint64_t magic;
    unsigned ipa_bits;
};

enum { CONFIG_MAGIC = 0x52434647 };

EXPORT void os_release(void *object) {
    struct config *config = object;
    if (config->magic != CONFIG_MAGIC)
        stand_in_violation("os_release of something that is no object");
    config->magic = 0;
    free(config);
}

static void *new_config(void) {
    struct config *config = calloc(1, sizeof(*config));
    config->magic = CONFIG_MAGIC;
    config->ipa_bits = DEFAULT_IPA_BITS;
    return config;
}

static unsigned usual_ipa_bits(void) {
    return stand_in_options.ipa_bits ? stand_in_options.ipa_bits : DEFAULT_IPA_BITS;
}

#ifndef OLD_MACOS
EXPORT void *hv_vm_config_create(void) {
    return new_config();
}

EXPORT int hv_vm_config_get_max_ipa_size(uint32_t *bits) {
    CALL();
    *bits = MOST_IPA_BITS;
    return HV_SUCCESS;
}

EXPORT int hv_vm_config_get_default_ipa_size(uint32_t *bits) {
    CALL();
    *bits = usual_ipa_bits();
    return HV_SUCCESS;
}

EXPORT int hv_vm_config_set_ipa_size(void *object, uint32_t bits) {
    CALL();
    if (bits < 32 || bits > MOST_IPA_BITS)
        return HV_BAD_ARGUMENT;
    ((struct config *)object)->ipa_bits = bits;
    return HV_SUCCESS;
}
#endif

EXPORT void *hv_vcpu_config_create(void) {
    return new_config();
}

/* ID_AA64DFR0, DFR1, ISAR0, ISAR1, MMFR0, MMFR1, MMFR2, PFR0, PFR1, CTR_EL0, CLIDR_EL1, DCZID_EL0 */
EXPORT int hv_vcpu_config_get_feature_reg(void *object, uint32_t number, uint64_t *value) {
    CALL();
    static const uint16_t registers[12] = {0xc028, 0xc029, 0xc030, 0xc031, 0xc038, 0xc039,
                                           0xc03a, 0xc020, 0xc021, 0xd801, 0xc801, 0xd807};
    if (((struct config *)object)->magic != CONFIG_MAGIC || number >= 12)
        return HV_BAD_ARGUMENT;
    struct vcpu probe = {0};
    if (uc_open(UC_ARCH_ARM64, UC_MODE_ARM, &probe.engine) || uc_ctl_set_cpu_model(probe.engine, UC_CPU_ARM64_MAX))
        return HV_ERROR;
    *value = state_system(&probe, registers[number]);
    uc_close(probe.engine);
    return HV_SUCCESS;
}

/* -- the virtual machine ------------------------------------------------------------------------------------------------ */

EXPORT int hv_vm_get_max_vcpu_count(uint32_t *count) {
    CALL();
    *count = MOST_VCPUS;
    return HV_SUCCESS;
}

EXPORT int hv_vm_create(void *object) {
    CALL();
    const struct config *config = object;
    if (stand_in_options.deny)
        return HV_DENIED;
    if (stand_in_options.unsupported)
        return HV_UNSUPPORTED;
    if (config && config->magic != CONFIG_MAGIC)
        return HV_BAD_ARGUMENT;
    int status = HV_SUCCESS;
    pthread_mutex_lock(&machine_lock);
    if (machine) {
        status = HV_BUSY;
    } else if (state_find_places()) {
        fprintf(stderr, "stand-in: this version of the engine keeps its syndrome somewhere else\n");
        status = HV_UNSUPPORTED;
    } else {
        machine = calloc(1, sizeof(*machine));
        machine->ipa_bits = config ? config->ipa_bits : usual_ipa_bits();
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

EXPORT int hv_vm_destroy(void) {
    CALL();
    int status = machine ? HV_SUCCESS : HV_NO_DEVICE;
    pthread_mutex_lock(&machine_lock);
    for (unsigned at = 0; machine && at < MOST_VCPUS; ++at)
        if (machine->vcpus[at])
            status = HV_BUSY;
    if (status == HV_BUSY) {
        stand_in_violation("hv_vm_destroy while there are vCPUs");
    } else if (machine) {
        free(machine);
        machine = 0;
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

/* Makes running vCPUs take notice of changed memory, or code: returns when none is in an entry of before. */
static void disturb(void) {
    for (unsigned at = 0; at < MOST_VCPUS; ++at) {
        struct vcpu *vcpu = machine->vcpus[at];
        if (!vcpu || !atomic_load(&vcpu->entered))
            continue; /* it looks before it enters */
        atomic_store(&vcpu->disturbed, 1);
        while (atomic_load(&vcpu->entered) && atomic_load(&vcpu->disturbed))
            nanosleep(&(struct timespec){.tv_nsec = 50000}, 0);
    }
}

EXPORT int hv_vm_map(void *address, uint64_t ipa, size_t bytes, uint64_t flags) {
    CALL();
    if (!machine)
        return HV_NO_DEVICE;
    if (!bytes || ((uintptr_t)address | ipa | bytes) % PAGE || (flags & ~UINT64_C(7)) || ipa + bytes < ipa ||
        ipa + bytes > UINT64_C(1) << machine->ipa_bits)
        return HV_BAD_ARGUMENT;
    int status = HV_SUCCESS;
    pthread_mutex_lock(&machine_lock);
    for (unsigned at = 0; at < machine->region_count; ++at) {
        const struct region *region = &machine->regions[at];
        if (region->ipa < ipa + bytes && ipa < region->ipa + region->bytes)
            status = HV_BAD_ARGUMENT;
    }
    if (machine->region_count == 1024)
        status = HV_NO_RESOURCES;
    if (status == HV_SUCCESS) {
        machine->regions[machine->region_count++] =
            (struct region){.ipa = ipa, .bytes = bytes, .host = address, .flags = flags};
        atomic_fetch_add(&machine->generation, 1);
        disturb();
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

EXPORT int hv_vm_unmap(uint64_t ipa, size_t bytes) {
    CALL();
    if (!machine)
        return HV_NO_DEVICE;
    int status = HV_BAD_ARGUMENT;
    pthread_mutex_lock(&machine_lock);
    for (unsigned at = 0; at < machine->region_count; ++at)
        if (machine->regions[at].ipa == ipa && machine->regions[at].bytes == bytes) {
            machine->regions[at] = machine->regions[--machine->region_count];
            atomic_fetch_add(&machine->generation, 1);
            disturb();
            status = HV_SUCCESS;
            break;
        }
    if (status != HV_SUCCESS)
        stand_in_violation("hv_vm_unmap(%#lx, %#zx) is not what was mapped", (unsigned long)ipa, bytes);
    pthread_mutex_unlock(&machine_lock);
    return status;
}

/* What has been translated of it is forgotten: without this call the engine goes on with what was there before. */
EXPORT void sys_icache_invalidate(void *start, size_t bytes) {
    (void)start, (void)bytes;
    stand_in_call(__func__);
    pthread_mutex_lock(&machine_lock);
    for (unsigned at = 0; machine && at < MOST_VCPUS; ++at)
        if (machine->vcpus[at])
            atomic_store(&machine->vcpus[at]->code_changed, 1);
    if (machine)
        disturb();
    pthread_mutex_unlock(&machine_lock);
}

EXPORT uint64_t mach_absolute_time(void) {
    return run_counter();
}

EXPORT int mach_timebase_info(uint32_t ratio[2]) {
    ratio[0] = 16;
    ratio[1] = 1;
    return 0;
}

/* -- vCPUs ---------------------------------------------------------------------------------------------------------------- */

static struct vcpu **place_of(uint64_t number) {
    number -= stand_in_options.first_id;
    return machine && number < MOST_VCPUS ? &machine->vcpus[number] : 0;
}

static struct vcpu *own(uint64_t number) {
    struct vcpu *vcpu = place_of(number) ? *place_of(number) : 0;
    if (!vcpu || !pthread_equal(vcpu->owner, pthread_self())) {
        stand_in_violation("vCPU %lu is not this thread's", (unsigned long)number);
        return 0;
    }
    return vcpu;
}

#define OWN(vcpu, number)            \
    struct vcpu *vcpu = own(number); \
    if (!vcpu)                       \
        return HV_BAD_ARGUMENT

static void vcpu_free(struct vcpu *vcpu) {
    if (vcpu->context)
        uc_context_free(vcpu->context);
    if (vcpu->engine)
        uc_close(vcpu->engine);
    memset(vcpu->exit, 0xA5, sizeof(*vcpu->exit)); /* nobody looks at it any more */
    free(vcpu->exit);
    free(vcpu);
}

static struct vcpu *vcpu_new(void) {
    struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
    const uint64_t scr = 1 | 1 << 8 | 1 << 10; /* NS, HCE, RW: HVC is defined, and lower levels are AArch64 */
    const uint64_t hcr = UINT64_C(1) << 31;    /* RW: so is EL1 */
    vcpu->owner = pthread_self();
    vcpu->exit = calloc(1, sizeof(*vcpu->exit));
    vcpu->mpidr = UINT64_C(1) << 31;
    vcpu->regions_seen = ~0u;
    if (uc_open(UC_ARCH_ARM64, UC_MODE_ARM, &vcpu->engine) || uc_ctl_set_cpu_model(vcpu->engine, UC_CPU_ARM64_MAX) ||
        uc_context_alloc(vcpu->engine, &vcpu->context) || run_hooks(vcpu)) {
        vcpu_free(vcpu);
        return 0;
    }
    state_set_system(vcpu, S_SCR_EL3, scr);
    state_set_system(vcpu, S_HCR_EL2, hcr);
    state_set_pstate(vcpu, 0x3C5);
    return vcpu;
}

EXPORT int hv_vcpu_create(uint64_t *number, struct exit_info **exit, void *config) {
    CALL();
    (void)config;
    if (!machine)
        return HV_NO_DEVICE;
    int status = HV_NO_RESOURCES;
    pthread_mutex_lock(&machine_lock);
    for (unsigned at = 0; at < MOST_VCPUS; ++at)
        if (machine->vcpus[at] && pthread_equal(machine->vcpus[at]->owner, pthread_self()))
            status = HV_BUSY;
    for (unsigned at = 0; at < MOST_VCPUS && status == HV_NO_RESOURCES; ++at) {
        if (machine->vcpus[at])
            continue;
        struct vcpu *vcpu = vcpu_new();
        status = vcpu ? HV_SUCCESS : HV_ERROR;
        machine->vcpus[at] = vcpu;
        *number = at + stand_in_options.first_id;
        *exit = vcpu ? vcpu->exit : 0;
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

EXPORT int hv_vcpu_destroy(uint64_t number) {
    CALL();
    OWN(vcpu, number);
    pthread_mutex_lock(&machine_lock);
    *place_of(number) = 0;
    pthread_mutex_unlock(&machine_lock);
    vcpu_free(vcpu);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_run(uint64_t number) {
    CALL();
    OWN(vcpu, number);
    if (stand_in_due(&entries_for_cancel, stand_in_options.irq)) {
        *vcpu->exit = (struct exit_info){.reason = EXIT_CANCELED};
        return HV_SUCCESS;
    }
    if (stand_in_due(&entries_for_abort, stand_in_options.spurious_ept) && machine->region_count) {
        *vcpu->exit = (struct exit_info){
            .reason = EXIT_EXCEPTION, .syndrome = 0x92000007, .physical_address = machine->regions[0].ipa};
        return HV_SUCCESS;
    }
    return run_vcpu(vcpu);
}

EXPORT int hv_vcpus_exit(uint64_t *numbers, uint32_t count) {
    CALL();
    int status = HV_SUCCESS;
    pthread_mutex_lock(&machine_lock);
    for (uint32_t at = 0; at < count; ++at) {
        struct vcpu *vcpu = place_of(numbers[at]) ? *place_of(numbers[at]) : 0;
        if (!vcpu) {
            status = HV_BAD_ARGUMENT;
            continue;
        }
        if (stand_in_options.lose_kicks && !atomic_load(&vcpu->inside))
            continue;
        atomic_store(&vcpu->asked_to_exit, 1);
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

EXPORT int hv_vcpu_get_reg(uint64_t number, uint32_t which, uint64_t *value) {
    CALL();
    OWN(vcpu, number);
    *value = 0;
    if (which < R_FP)
        uc_reg_read(vcpu->engine, UC_ARM64_REG_X0 + (int)which, value);
    else if (which == R_FP || which == R_LR)
        uc_reg_read(vcpu->engine, which == R_FP ? UC_ARM64_REG_X29 : UC_ARM64_REG_X30, value);
    else if (which == R_PC)
        *value = state_pc(vcpu);
    else if (which == R_FPCR || which == R_FPSR)
        uc_reg_read(vcpu->engine, which == R_FPCR ? UC_ARM64_REG_FPCR : UC_ARM64_REG_FPSR, value);
    else if (which == R_CPSR)
        *value = state_pstate(vcpu);
    else
        return HV_BAD_ARGUMENT;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_reg(uint64_t number, uint32_t which, uint64_t value) {
    CALL();
    OWN(vcpu, number);
    if (which < R_FP)
        uc_reg_write(vcpu->engine, UC_ARM64_REG_X0 + (int)which, &value);
    else if (which == R_FP || which == R_LR)
        uc_reg_write(vcpu->engine, which == R_FP ? UC_ARM64_REG_X29 : UC_ARM64_REG_X30, &value);
    else if (which == R_PC)
        state_set_pc(vcpu, value);
    else if (which == R_FPCR || which == R_FPSR)
        uc_reg_write(vcpu->engine, which == R_FPCR ? UC_ARM64_REG_FPCR : UC_ARM64_REG_FPSR, &value);
    else if (which == R_CPSR)
        state_set_pstate(vcpu, value);
    else
        return HV_BAD_ARGUMENT;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_sys_reg(uint64_t number, uint16_t which, uint64_t *value) {
    CALL();
    OWN(vcpu, number);
    if (!state_knows_system(which))
        return HV_BAD_ARGUMENT;
    *value = state_system(vcpu, which);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_sys_reg(uint64_t number, uint16_t which, uint64_t value) {
    CALL();
    OWN(vcpu, number);
    if (!state_knows_system(which) || (which == S_MPIDR && stand_in_options.fixed_numbers))
        return HV_BAD_ARGUMENT;
    state_set_system(vcpu, which, value);
    return HV_SUCCESS;
}

typedef uint8_t vector __attribute__((vector_size(16)));

EXPORT int hv_vcpu_get_simd_fp_reg(uint64_t number, uint32_t which, vector *value) {
    CALL();
    OWN(vcpu, number);
    if (which > 31)
        return HV_BAD_ARGUMENT;
    uc_reg_read(vcpu->engine, UC_ARM64_REG_Q0 + (int)which, value);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_simd_fp_reg(uint64_t number, uint32_t which, vector value) {
    CALL();
    OWN(vcpu, number);
    if (which > 31)
        return HV_BAD_ARGUMENT;
    uc_reg_write(vcpu->engine, UC_ARM64_REG_Q0 + (int)which, &value);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_pending_interrupt(uint64_t number, uint32_t type, bool pending) {
    CALL();
    OWN(vcpu, number);
    if (type > 1)
        return HV_BAD_ARGUMENT;
    vcpu->pending[type] = pending;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_trap_debug_exceptions(uint64_t number, bool value) {
    CALL();
    OWN(vcpu, number);
    vcpu->trap_debug = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_trap_debug_reg_accesses(uint64_t number, bool value) {
    CALL();
    OWN(vcpu, number);
    vcpu->trap_debug_access = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_vtimer_mask(uint64_t number, bool *masked) {
    CALL();
    OWN(vcpu, number);
    *masked = vcpu->timer_masked;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_vtimer_mask(uint64_t number, bool masked) {
    CALL();
    OWN(vcpu, number);
    vcpu->timer_masked = masked;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_vtimer_offset(uint64_t number, uint64_t *offset) {
    CALL();
    OWN(vcpu, number);
    *offset = vcpu->timer_offset;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_vtimer_offset(uint64_t number, uint64_t offset) {
    CALL();
    OWN(vcpu, number);
    vcpu->timer_offset = offset;
    return HV_SUCCESS;
}
