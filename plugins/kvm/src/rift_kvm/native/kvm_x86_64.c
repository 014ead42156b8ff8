/* The x86-64 binding: set-up, exceptions, debugging, and the struct that joins it all. */
#include "kvm.h"
#include "kvm_x86_64.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MOST_CPUID_ENTRIES 256

static int fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

int rift_kvm_x86_call(const struct rift_kvm_cpu *cpu, unsigned long request, void *argument, const char *name,
                      struct rift_error *error) {
    int result = cpu->machine->ioctl(cpu->fd, request, argument);
    return result < 0 ? fail(error, errno, name) : result;
}

/* The CPUID table that KVM can give a guest: a struct kvm_cpuid2 with its entries. */
static int describe(int device, rift_kvm_ioctl_fn *ioctl, void *buffer, size_t *bytes, struct rift_error *error) {
    struct kvm_cpuid2 *cpuid = buffer;
    size_t room = *bytes < sizeof(*cpuid) ? 0 : (*bytes - sizeof(*cpuid)) / sizeof(struct kvm_cpuid_entry2);
    cpuid->nent = room < MOST_CPUID_ENTRIES ? (uint32_t)room : MOST_CPUID_ENTRIES;
    cpuid->padding = 0;
    if (ioctl(device, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
        return fail(error, errno, "KVM_GET_SUPPORTED_CPUID");
    *bytes = sizeof(*cpuid) + cpuid->nent * sizeof(struct kvm_cpuid_entry2);
    return 0;
}

static int vm_setup(struct rift_kvm_machine *machine, struct rift_error *error) {
    if (!(machine->flags & RIFT_KVM_SYSTEM_REGISTER_EXITS))
        return 0;
    struct kvm_enable_cap enable = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args = {KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN},
    };
    if (machine->ioctl(machine->fd, KVM_ENABLE_CAP, &enable) < 0)
        return fail(error, errno, "KVM_ENABLE_CAP");
    return 0;
}

static void vm_release(struct rift_kvm_machine *machine) {
    (void)machine;
}

/* Gives the guest the CPU that KVM supports, with its own APIC id (leaf 1 EBX 31:24; leaves 0xB and 0x1F EDX:
 * Intel SDM volume 2, CPUID). */
static int set_cpuid(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    size_t bytes = cpu->machine->description_bytes;
    const struct kvm_cpuid2 *source = cpu->machine->description;
    if (!source || bytes < sizeof(*source) ||
        bytes < sizeof(*source) + source->nent * sizeof(struct kvm_cpuid_entry2))
        return fail(error, EINVAL, "KVM_GET_SUPPORTED_CPUID");
    struct kvm_cpuid2 *cpuid = malloc(bytes);
    if (!cpuid)
        return fail(error, ENOMEM, "malloc");
    memcpy(cpuid, source, bytes);
    for (uint32_t at = 0; at < cpuid->nent; ++at) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[at];
        if (entry->function == 1)
            entry->ebx = (entry->ebx & 0x00FFFFFFu) | cpu->id << 24;
        else if (entry->function == 0xB || entry->function == 0x1F)
            entry->edx = cpu->id;
        else if (entry->function == 0xD && entry->index == 2 && entry->eax &&
                 entry->ebx + entry->eax <= sizeof(x86->bytes)) /* leaf 0xD.2: offset and size of YMM_Hi128 */
            x86->avx_offset = entry->ebx;
    }
    int status = rift_kvm_x86_call(cpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2", error);
    free(cpuid);
    return status < 0 ? -1 : 0;
}

static int vcpu_setup(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = calloc(1, sizeof(*x86));
    if (!x86)
        return fail(error, ENOMEM, "calloc");
    cpu->state = x86;
    int sync = cpu->machine->ioctl(cpu->machine->fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_SYNC_REGS);
    if (sync < 0)
        return fail(error, errno, "KVM_CHECK_EXTENSION");
    x86->sync_regs = ((uint32_t)sync & KVM_SYNC_X86_REGS) != 0;
    x86->regs = x86->sync_regs ? &cpu->run->s.regs.regs : &x86->own_regs;
    return set_cpuid(cpu, error) ? -1 : rift_kvm_x86_reset_state(cpu, error);
}

static void vcpu_release(struct rift_kvm_cpu *cpu) {
    free(cpu->state);
    cpu->state = NULL;
}

/* Whether the exception pushes an error code: Intel SDM volume 3, table 6-1 (#VC and #SX: AMD APM volume 2, 8.2). */
static int pushes_code(uint32_t vector) {
    return vector < 32 && (1u << vector & (1u << 8 | 0x1Fu << 10 | 1u << 17 | 1u << 21 | 1u << 29 | 1u << 30)) != 0;
}

static int inject_exception(struct rift_kvm_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    if (vector >= 32)
        return fail(error, EINVAL, "inject_exception");
    if (cpu->open) {
        uint32_t reason = cpu->run->exit_reason;
        if (vector == 13 && (reason == KVM_EXIT_X86_RDMSR || reason == KVM_EXIT_X86_WRMSR)) {
            cpu->run->msr.error = 1; /* KVM raises #GP itself */
            return 0;
        }
        if (rift_kvm_x86_fetch(cpu, X86_REGS, error))
            return -1;
        x86->before = *x86->regs;
        x86->fault_here = 1;
        return RIFT_KVM_COMPLETE_FIRST;
    }
    if (x86->fault_here) {
        *x86->regs = x86->before;
        x86->valid |= X86_REGS;
        x86->regs_changed = 1;
        x86->fault_here = 0;
    }
    struct kvm_vcpu_events events;
    if (rift_kvm_x86_call(cpu, KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS", error) < 0)
        return -1;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = (uint8_t)vector;
    events.exception.has_error_code = (uint8_t)pushes_code(vector);
    events.exception.error_code = has_code && pushes_code(vector) ? code : 0;
    return rift_kvm_x86_call(cpu, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS", error) < 0 ? -1 : 0;
}

/* An exception stays queued when its delivery was cut short: by an exit in the middle, by a kick. */
static int drop_events(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    ((struct rift_kvm_x86 *)cpu->state)->fault_here = 0;
    struct kvm_vcpu_events events;
    if (rift_kvm_x86_call(cpu, KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS", error) < 0)
        return -1;
    memset(&events.exception, 0, sizeof events.exception);
    events.exception_has_payload = 0;
    events.interrupt.injected = 0;
    events.nmi.injected = events.nmi.pending = 0;
    return rift_kvm_x86_call(cpu, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS", error) < 0 ? -1 : 0;
}

/* DR7 (Intel SDM volume 3, 17.2.4 and 17.2.5): G0 to G3 are bits 1, 3, 5, 7; bit 10 is always 1; from bit 16 on
 * four bits a register: R/W (0 execution, 1 write, 3 read or write) and LEN (0: 1 byte, 1: 2, 3: 4, 2: 8). */
static int debug_register(const struct rift_kvm_debug_point *point, uint32_t at, struct kvm_guest_debug *debug) {
    uint64_t length = 0;
    if (point->kind == RIFT_KVM_READ)
        return EOPNOTSUPP;
    if (point->kind != RIFT_KVM_EXECUTE) {
        if (point->size != 1 && point->size != 2 && point->size != 4 && point->size != 8)
            return EINVAL;
        if (point->address % point->size)
            return EINVAL;
        length = point->size == 8 ? 2 : point->size - 1;
    }
    debug->arch.debugreg[at] = point->address;
    debug->arch.debugreg[7] |= UINT64_C(2) << 2 * at | (point->kind | length << 2) << (16 + 4 * at);
    return 0;
}

static int set_debug(struct rift_kvm_cpu *cpu, const struct rift_kvm_debug *wanted, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    if (wanted->count > 4)
        return fail(error, ENOSPC, "KVM_SET_GUEST_DEBUG");
    struct kvm_guest_debug debug = {0};
    if (wanted->single_step || wanted->software || wanted->count)
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    if (wanted->single_step)
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
    if (wanted->count) {
        debug.control |= KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[7] = 0x400;
    }
    for (uint32_t at = 0; at < wanted->count; ++at) {
        int refused = debug_register(&wanted->points[at], at, &debug);
        if (refused)
            return fail(error, refused, "KVM_SET_GUEST_DEBUG");
    }
    /* After the registers: KVM may tie the trap flag to the RIP of this moment. */
    if (x86->regs_changed && rift_kvm_x86_store(cpu, X86_REGS, error))
        return -1;
    if (rift_kvm_x86_call(cpu, KVM_SET_GUEST_DEBUG, &debug, "KVM_SET_GUEST_DEBUG", error) < 0)
        return -1;
    x86->debug = debug;
    x86->valid &= ~(uint32_t)(X86_REGS | X86_DEBUGREGS); /* RFLAGS.TF may have changed */
    return 0;
}

static const struct rift_kvm_binding x86_64 = {
    .version = RIFT_KVM_BINDING_VERSION,
    .bytes = sizeof(struct rift_kvm_binding),
    .isa = "x86_64",
    .registers = rift_kvm_x86_registers,
    .register_count = X86_REGISTER_COUNT,
    .flags = RIFT_KVM_VCPU_AHEAD,
    .describe = describe,
    .vm_setup = vm_setup,
    .vm_release = vm_release,
    .vcpu_setup = vcpu_setup,
    .vcpu_release = vcpu_release,
    .enter = rift_kvm_x86_enter,
    .decode = rift_kvm_x86_decode,
    .complete = rift_kvm_x86_complete,
    .read_registers = rift_kvm_x86_read,
    .write_registers = rift_kvm_x86_write,
    .inject_exception = inject_exception,
    .drop_events = drop_events,
    .set_debug = set_debug,
    .save = rift_kvm_x86_save,
    .restore = rift_kvm_x86_restore,
};

const struct rift_kvm_binding *rift_kvm_host_binding(void) {
    return &x86_64;
}
