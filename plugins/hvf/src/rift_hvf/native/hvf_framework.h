/* Apple's Hypervisor.framework as a table of function pointers, filled in at run time.
 *
 * Nothing links against the framework: it is opened by a path that the configuration can set, functions are
 * looked up one by one, and those that an older macOS lacks are NULL. The x86-64 and the arm64 framework have
 * functions of the same name with other arguments, so each has a table of its own; which one a library is
 * follows from what it exports.
 *
 * Prototypes and constants: hv.h, hv_vmx.h, hv_arch_vmx.h, hv_vcpu_types.h, hv_vm_types.h and hv_error.h of
 * the macOS 10.15 to 15.5 SDKs. Comments say since which macOS a function exists where that is later than 11. */
#ifndef RIFT_HVF_FRAMEWORK_H
#define RIFT_HVF_FRAMEWORK_H

#include "rift_abi.h"

#include <stdbool.h>

/* hv_return_t is a signed 32-bit mach_error_t. */
#define HV_SUCCESS 0
#define HV_ERROR ((int32_t)0xfae94001)
#define HV_BUSY ((int32_t)0xfae94002)
#define HV_BAD_ARGUMENT ((int32_t)0xfae94003)
#define HV_NO_RESOURCES ((int32_t)0xfae94005)
#define HV_DENIED ((int32_t)0xfae94007)
#define HV_UNSUPPORTED ((int32_t)0xfae9400f)

enum { HV_MEMORY_READ = 1, HV_MEMORY_WRITE = 2, HV_MEMORY_EXEC = 4 }; /* hv_memory_flags_t */

/* What both frameworks have with the same arguments. */
struct rift_hvf_common_calls {
    int32_t (*vm_destroy)(void);
    int32_t (*vm_map)(void *address, uint64_t gpa, size_t bytes, uint64_t flags);
    int32_t (*vm_unmap)(uint64_t gpa, size_t bytes);
    void (*icache_invalidate)(void *start, size_t bytes); /* sys_icache_invalidate of libSystem; may be NULL */
};

struct rift_hvf_x86_calls {
    int32_t (*capability)(uint64_t capability, uint64_t *value);
    int32_t (*vm_create)(uint64_t flags);
    int32_t (*vcpu_create)(uint32_t *vcpu, uint64_t flags);
    int32_t (*vcpu_destroy)(uint32_t vcpu);
    int32_t (*read_register)(uint32_t vcpu, uint32_t number, uint64_t *value);
    int32_t (*write_register)(uint32_t vcpu, uint32_t number, uint64_t value);
    int32_t (*read_fpstate)(uint32_t vcpu, void *buffer, size_t bytes);
    int32_t (*write_fpstate)(uint32_t vcpu, const void *buffer, size_t bytes);
    int32_t (*enable_native_msr)(uint32_t vcpu, uint32_t msr, bool enable);
    int32_t (*read_msr)(uint32_t vcpu, uint32_t msr, uint64_t *value);
    int32_t (*write_msr)(uint32_t vcpu, uint32_t msr, uint64_t value);
    int32_t (*invalidate_tlb)(uint32_t vcpu);
    int32_t (*run)(uint32_t vcpu);
    int32_t (*run_until)(uint32_t vcpu, uint64_t deadline); /* FOREVER since 11 */
    int32_t (*interrupt)(uint32_t *vcpus, unsigned int count);
    int32_t (*read_vmcs)(uint32_t vcpu, uint32_t field, uint64_t *value);
    int32_t (*write_vmcs)(uint32_t vcpu, uint32_t field, uint64_t value);
    int32_t (*read_capability)(uint32_t field, uint64_t *value);
};

/* 16 bytes in one vector register: hv_vcpu_set_simd_fp_reg takes them by value, in v0. */
typedef uint8_t rift_hvf_vector __attribute__((vector_size(16)));

/* hv_vcpu_exit_t: written by the framework at each exit. */
struct rift_hvf_arm_exit {
    uint32_t reason;
    uint32_t padding;
    uint64_t syndrome, virtual_address, physical_address;
};

struct rift_hvf_arm_calls {
    int32_t (*get_max_vcpu_count)(uint32_t *count);
    int32_t (*vm_create)(void *config);
    void *(*vm_config_create)(void);                               /* 13 */
    int32_t (*vm_config_get_max_ipa_size)(uint32_t *bits);         /* 13 */
    int32_t (*vm_config_get_default_ipa_size)(uint32_t *bits);     /* 13 */
    int32_t (*vm_config_set_ipa_size)(void *config, uint32_t bits); /* 13 */
    void (*os_release)(void *object);                              /* this and the next two: libSystem */
    uint64_t (*absolute_time)(void);                               /* mach_absolute_time: the counter */
    int (*timebase_info)(uint32_t ratio[2]);                       /* mach_timebase_info */
    void *(*vcpu_config_create)(void);
    int32_t (*vcpu_config_get_feature_reg)(void *config, uint32_t number, uint64_t *value);
    int32_t (*vcpu_create)(uint64_t *vcpu, struct rift_hvf_arm_exit **exit, void *config);
    int32_t (*vcpu_destroy)(uint64_t vcpu);
    int32_t (*run)(uint64_t vcpu);
    int32_t (*vcpus_exit)(uint64_t *vcpus, uint32_t count);
    int32_t (*get_reg)(uint64_t vcpu, uint32_t number, uint64_t *value);
    int32_t (*set_reg)(uint64_t vcpu, uint32_t number, uint64_t value);
    int32_t (*get_sys_reg)(uint64_t vcpu, uint16_t number, uint64_t *value);
    int32_t (*set_sys_reg)(uint64_t vcpu, uint16_t number, uint64_t value);
    int32_t (*get_simd_fp_reg)(uint64_t vcpu, uint32_t number, rift_hvf_vector *value);
    int32_t (*set_simd_fp_reg)(uint64_t vcpu, uint32_t number, rift_hvf_vector value);
    int32_t (*set_pending_interrupt)(uint64_t vcpu, uint32_t type, bool pending);
    int32_t (*set_trap_debug_exceptions)(uint64_t vcpu, bool value);
    int32_t (*set_trap_debug_reg_accesses)(uint64_t vcpu, bool value);
    int32_t (*get_vtimer_mask)(uint64_t vcpu, bool *masked);
    int32_t (*set_vtimer_mask)(uint64_t vcpu, bool masked);
    int32_t (*get_vtimer_offset)(uint64_t vcpu, uint64_t *offset);
    int32_t (*set_vtimer_offset)(uint64_t vcpu, uint64_t offset);
};

struct rift_hvf_framework {
    void *library; /* never closed: vCPUs of other threads may need it until the process ends */
    const struct rift_hvf_binding *binding; /* the ISA that this library is for */
    struct rift_hvf_common_calls calls;
    struct rift_hvf_x86_calls x86;
    struct rift_hvf_arm_calls arm;
};

#endif
