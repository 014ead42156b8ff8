/* Opening the framework and looking its functions up. */
#include "hvf_internal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct symbol {
    const char *name;
    size_t place; /* of the pointer in struct rift_hvf_framework */
    int required; /* every framework since macOS 11 has it, and nothing works without it */
};

#define COMMON(name, field, required) {name, offsetof(struct rift_hvf_framework, calls.field), required}
#define X86(name, field, required) {name, offsetof(struct rift_hvf_framework, x86.field), required}
#define ARM(name, field, required) {name, offsetof(struct rift_hvf_framework, arm.field), required}

static const struct symbol common_symbols[] = {
    COMMON("hv_vm_destroy", vm_destroy, 1),
    COMMON("hv_vm_map", vm_map, 1),
    COMMON("hv_vm_unmap", vm_unmap, 1),
    COMMON("sys_icache_invalidate", icache_invalidate, 0),
};

static const struct symbol x86_symbols[] = {
    X86("hv_capability", capability, 0),
    X86("hv_vm_create", vm_create, 1),
    X86("hv_vcpu_create", vcpu_create, 1),
    X86("hv_vcpu_destroy", vcpu_destroy, 1),
    X86("hv_vcpu_read_register", read_register, 1),
    X86("hv_vcpu_write_register", write_register, 1),
    X86("hv_vcpu_read_fpstate", read_fpstate, 0),
    X86("hv_vcpu_write_fpstate", write_fpstate, 0),
    X86("hv_vcpu_enable_native_msr", enable_native_msr, 0),
    X86("hv_vcpu_read_msr", read_msr, 0),
    X86("hv_vcpu_write_msr", write_msr, 0),
    X86("hv_vcpu_invalidate_tlb", invalidate_tlb, 0),
    X86("hv_vcpu_run", run, 1),
    X86("hv_vcpu_run_until", run_until, 0),
    X86("hv_vcpu_interrupt", interrupt, 1),
    X86("hv_vmx_vcpu_read_vmcs", read_vmcs, 1),
    X86("hv_vmx_vcpu_write_vmcs", write_vmcs, 1),
    X86("hv_vmx_read_capability", read_capability, 1),
};

static const struct symbol arm_symbols[] = {
    ARM("hv_vm_get_max_vcpu_count", get_max_vcpu_count, 0),
    ARM("hv_vm_create", vm_create, 1),
    ARM("hv_vm_config_create", vm_config_create, 0),
    ARM("hv_vm_config_get_max_ipa_size", vm_config_get_max_ipa_size, 0),
    ARM("hv_vm_config_get_default_ipa_size", vm_config_get_default_ipa_size, 0),
    ARM("hv_vm_config_set_ipa_size", vm_config_set_ipa_size, 0),
    ARM("os_release", os_release, 0),
    ARM("mach_absolute_time", absolute_time, 0),
    ARM("mach_timebase_info", timebase_info, 0),
    ARM("hv_vcpu_config_create", vcpu_config_create, 0),
    ARM("hv_vcpu_config_get_feature_reg", vcpu_config_get_feature_reg, 0),
    ARM("hv_vcpu_create", vcpu_create, 1),
    ARM("hv_vcpu_destroy", vcpu_destroy, 1),
    ARM("hv_vcpu_run", run, 1),
    ARM("hv_vcpus_exit", vcpus_exit, 1),
    ARM("hv_vcpu_get_reg", get_reg, 1),
    ARM("hv_vcpu_set_reg", set_reg, 1),
    ARM("hv_vcpu_get_sys_reg", get_sys_reg, 1),
    ARM("hv_vcpu_set_sys_reg", set_sys_reg, 1),
    ARM("hv_vcpu_get_simd_fp_reg", get_simd_fp_reg, 0),
    ARM("hv_vcpu_set_simd_fp_reg", set_simd_fp_reg, 0),
    ARM("hv_vcpu_set_pending_interrupt", set_pending_interrupt, 0),
    ARM("hv_vcpu_set_trap_debug_exceptions", set_trap_debug_exceptions, 0),
    ARM("hv_vcpu_set_trap_debug_reg_accesses", set_trap_debug_reg_accesses, 0),
    ARM("hv_vcpu_get_vtimer_mask", get_vtimer_mask, 0),
    ARM("hv_vcpu_set_vtimer_mask", set_vtimer_mask, 0),
    ARM("hv_vcpu_get_vtimer_offset", get_vtimer_offset, 0),
    ARM("hv_vcpu_set_vtimer_offset", set_vtimer_offset, 0),
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* Looks up one table. Returns the name of a function that is missing though it is required, or NULL. */
static const char *look_up(struct rift_hvf_framework *framework, const struct symbol *symbols, size_t count) {
    for (size_t at = 0; at < count; ++at) {
        void *address = dlsym(framework->library, symbols[at].name);
        if (!address && symbols[at].required)
            return symbols[at].name;
        /* POSIX wants a pointer to an object to be usable as one to a function; C only knows memcpy for it. */
        memcpy((char *)framework + symbols[at].place, &address, sizeof(address));
    }
    return NULL;
}

static const char *fill(struct rift_hvf_framework *framework) {
    const char *missing = look_up(framework, common_symbols, COUNT(common_symbols));
    if (missing)
        return missing;
    if (dlsym(framework->library, "hv_vmx_vcpu_read_vmcs")) { /* only the framework of Intel Macs has it */
        framework->binding = &rift_hvf_x86_64;
        return look_up(framework, x86_symbols, COUNT(x86_symbols));
    }
    framework->binding = &rift_hvf_aarch64;
    return look_up(framework, arm_symbols, COUNT(arm_symbols));
}

struct rift_hvf_framework *rift_hvf_framework_open(const char *path, char *message, size_t bytes) {
    struct rift_hvf_framework *framework = calloc(1, sizeof(*framework));
    if (!framework) {
        snprintf(message, bytes, "out of memory");
        return NULL;
    }
    framework->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!framework->library) {
        const char *reason = dlerror();
        snprintf(message, bytes, "%s", reason ? reason : "dlopen failed");
        free(framework);
        return NULL;
    }
    const char *missing = fill(framework);
    if (missing) {
        snprintf(message, bytes, "it has no function %s", missing);
        dlclose(framework->library);
        free(framework);
        return NULL;
    }
    return framework;
}

const struct rift_hvf_binding *rift_hvf_framework_binding(const struct rift_hvf_framework *framework) {
    return framework->binding;
}

const struct rift_hvf_binding *rift_hvf_binding_x86_64(void) {
    return &rift_hvf_x86_64;
}

const struct rift_hvf_binding *rift_hvf_binding_aarch64(void) {
    return &rift_hvf_aarch64;
}

int rift_hvf_framework_has(const struct rift_hvf_framework *framework, const char *name) {
    return dlsym(framework->library, name) != NULL;
}

int rift_hvf_binding_check(const struct rift_hvf_binding *binding) {
    return binding->version == RIFT_HVF_BINDING_VERSION && binding->bytes == sizeof(*binding);
}

int rift_hvf_limits(const struct rift_hvf_framework *framework, struct rift_hvf_limits *limits,
                    struct rift_error *error) {
    *limits = (struct rift_hvf_limits){0};
    return framework->binding->limits(framework, limits, error);
}

uint32_t rift_hvf_abi_version(void) {
    return RIFT_ABI_VERSION;
}
