/* Hypervisor.framework of a Mac with Apple silicon that runs nothing: its exits are those that a test has written down.
 * What the backend answers is in registers, which the test reads. Only code in memory that the guest cannot write, the
 * backend's own, is "run": up to its first HVC.
 *
 * A script is a row of exits; each begins with rift_script_exit and has what rift_script_register adds. */
#include "stand_in.h"

#include <string.h>

enum { R_PC = 31, REGISTERS = 35, SYSTEM_REGISTERS = 0x10000, MOST_EXITS = 64, MOST_CHANGES = 16, MOST_REGIONS = 16 };
enum { EXIT_CANCELED, EXIT_EXCEPTION, EXIT_VTIMER, NO_MORE = 999 };

typedef uint8_t vector __attribute__((vector_size(16)));

struct exit_info {
    uint32_t reason, padding;
    uint64_t syndrome, virtual_address, physical_address;
};

static struct {
    struct {
        struct exit_info info;
        struct {
            uint32_t number; /* of a general register, or 0x10000 + that of a system register */
            uint64_t value;
        } changes[MOST_CHANGES];
        unsigned count, times;
    } exits[MOST_EXITS];
    unsigned count, next;
    struct exit_info info;
    uint64_t registers[REGISTERS], system[SYSTEM_REGISTERS];
    vector vectors[32];
    struct {
        uint64_t ipa, bytes, flags;
        const uint8_t *host;
    } regions[MOST_REGIONS];
    unsigned region_count;
    uint64_t vtimer_offset;
    bool vtimer_masked, traps[2];
    int exists, has_vcpu;
} script;

/* hv_vcpu_set_pending_interrupt(vcpu, kind, true), one after the other */
static uint32_t raised[64];
static unsigned raised_count;

EXPORT uint32_t rift_script_raised(unsigned at) {
    return raised[at];
}

EXPORT unsigned rift_script_raised_count(void) {
    return raised_count;
}

EXPORT void rift_script_reset(void) {
    raised_count = 0;
    script.count = script.next = 0;
}

EXPORT void rift_script_exit(uint32_t reason, uint64_t syndrome, uint64_t virtual_address, uint64_t ipa, uint32_t times) {
    script.exits[script.count].info = (struct exit_info){reason, 0, syndrome, virtual_address, ipa};
    script.exits[script.count].times = times;
    script.exits[script.count++].count = 0;
}

EXPORT void rift_script_register(uint32_t number, uint64_t value) {
    unsigned at = script.count - 1, change = script.exits[at].count++;
    script.exits[at].changes[change].number = number;
    script.exits[at].changes[change].value = value;
}

EXPORT uint64_t rift_script_get_register(uint32_t number) {
    return number < 0x10000 ? script.registers[number] : script.system[number - 0x10000];
}

EXPORT int rift_script_timer_is_masked(void) {
    return script.vtimer_masked;
}

EXPORT int rift_script_traps(void) {
    return script.traps[0] + 2 * script.traps[1];
}

/* -- the framework's functions ----------------------------------------------------------------------------------------- */

EXPORT int hv_vm_create(void *config) {
    CALL();
    if (script.exists || config)
        return script.exists ? HV_BUSY : HV_BAD_ARGUMENT;
    script.exists = 1;
    script.region_count = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vm_destroy(void) {
    CALL();
    script.exists = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vm_map(void *address, uint64_t ipa, size_t bytes, uint64_t flags) {
    CALL();
    if (script.region_count == MOST_REGIONS)
        return HV_NO_RESOURCES;
    script.regions[script.region_count].ipa = ipa;
    script.regions[script.region_count].bytes = bytes;
    script.regions[script.region_count].flags = flags;
    script.regions[script.region_count++].host = address;
    return HV_SUCCESS;
}

EXPORT int hv_vm_unmap(uint64_t ipa, size_t bytes) {
    CALL();
    for (unsigned at = 0; at < script.region_count; ++at)
        if (script.regions[at].ipa == ipa && script.regions[at].bytes == bytes)
            script.regions[at] = script.regions[--script.region_count];
    return HV_SUCCESS;
}

EXPORT uint64_t mach_absolute_time(void) {
    return 1000000;
}

EXPORT int mach_timebase_info(uint32_t ratio[2]) {
    ratio[0] = 125; /* 24 MHz */
    ratio[1] = 3;
    return 0;
}

EXPORT int hv_vcpu_create(uint64_t *vcpu, struct exit_info **info, void *config) {
    CALL();
    if (script.has_vcpu || config)
        return HV_BUSY;
    memset(script.registers, 0, sizeof(script.registers));
    memset(script.system, 0, sizeof(script.system));
    script.system[0x8028 | 0x4000] = 0x10305006; /* ID_AA64DFR0_EL1: 6 breakpoints, 4 watchpoints */
    script.has_vcpu = 1;
    *vcpu = 0;
    *info = &script.info;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_destroy(uint64_t vcpu) {
    CALL();
    (void)vcpu;
    script.has_vcpu = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_reg(uint64_t vcpu, uint32_t number, uint64_t *value) {
    (void)vcpu;
    *value = number < REGISTERS ? script.registers[number] : 0;
    return number < REGISTERS ? HV_SUCCESS : HV_BAD_ARGUMENT;
}

EXPORT int hv_vcpu_set_reg(uint64_t vcpu, uint32_t number, uint64_t value) {
    (void)vcpu;
    if (number >= REGISTERS)
        return HV_BAD_ARGUMENT;
    script.registers[number] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_sys_reg(uint64_t vcpu, uint16_t number, uint64_t *value) {
    (void)vcpu;
    *value = script.system[number];
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_sys_reg(uint64_t vcpu, uint16_t number, uint64_t value) {
    (void)vcpu;
    script.system[number] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_simd_fp_reg(uint64_t vcpu, uint32_t number, vector *value) {
    (void)vcpu;
    *value = script.vectors[number % 32];
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_simd_fp_reg(uint64_t vcpu, uint32_t number, vector value) {
    (void)vcpu;
    script.vectors[number % 32] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_trap_debug_exceptions(uint64_t vcpu, bool value) {
    (void)vcpu;
    script.traps[0] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_trap_debug_reg_accesses(uint64_t vcpu, bool value) {
    (void)vcpu;
    script.traps[1] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_pending_interrupt(uint64_t vcpu, uint32_t kind, bool pending) {
    (void)vcpu;
    if (kind > 1)
        return HV_BAD_ARGUMENT;
    if (pending && raised_count < 64)
        raised[raised_count++] = kind;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_vtimer_mask(uint64_t vcpu, bool masked) {
    CALL();
    (void)vcpu;
    script.vtimer_masked = masked;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_get_vtimer_offset(uint64_t vcpu, uint64_t *offset) {
    (void)vcpu;
    *offset = script.vtimer_offset;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_set_vtimer_offset(uint64_t vcpu, uint64_t offset) {
    (void)vcpu;
    script.vtimer_offset = offset;
    return HV_SUCCESS;
}

EXPORT int hv_vcpus_exit(uint64_t *vcpus, uint32_t count) {
    CALL();
    (void)vcpus, (void)count;
    return HV_SUCCESS;
}

/* The backend's own code: to behind its HVC. */
static int runs_to_hvc(void) {
    const uint64_t pc = script.registers[R_PC];
    for (unsigned at = 0; at < script.region_count; ++at) {
        if ((script.regions[at].flags & 2) || pc < script.regions[at].ipa || pc - script.regions[at].ipa > 0x3F00)
            continue;
        for (uint64_t place = pc - script.regions[at].ipa;; place += 4) {
            uint32_t code;
            memcpy(&code, script.regions[at].host + place, 4);
            script.registers[R_PC] += 4;
            if ((code & 0xFFE0001F) == 0xD4000002) {
                script.info = (struct exit_info){.reason = EXIT_EXCEPTION, .syndrome = 0x5A000000 | (code >> 5 & 0xFFFF)};
                return 1;
            }
        }
    }
    return 0;
}

EXPORT int hv_vcpu_run(uint64_t vcpu) {
    CALL();
    (void)vcpu;
    if (runs_to_hvc())
        return HV_SUCCESS;
    if (script.next == script.count) {
        script.info = (struct exit_info){.reason = NO_MORE};
        return HV_SUCCESS;
    }
    const unsigned at = script.next;
    for (unsigned change = 0; change < script.exits[at].count; ++change) {
        const uint32_t number = script.exits[at].changes[change].number;
        *(number < 0x10000 ? &script.registers[number] : &script.system[number - 0x10000]) =
            script.exits[at].changes[change].value;
    }
    script.info = script.exits[at].info;
    if (script.info.reason == EXIT_VTIMER)
        script.vtimer_masked = true;
    if (script.exits[at].times <= 1)
        script.next += 1;
    else
        script.exits[at].times -= 1;
    return HV_SUCCESS;
}
