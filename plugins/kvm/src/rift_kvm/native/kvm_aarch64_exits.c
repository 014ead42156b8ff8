/* Entering the guest, and what its exits mean. */
#include "kvm_aarch64.h"

#include <errno.h>
#include <string.h>

/* Exit reasons that older kernel headers do not have: Documentation/virt/kvm/api.rst. */
#define EXIT_MEMORY_FAULT 39
struct memory_fault {
    uint64_t flags, gpa, size;
};

static struct rift_kvm_arm_machine *machine_of(const struct rift_kvm_cpu *cpu) {
    return cpu->machine->state;
}

/* PSCI SYSTEM_OFF and SYSTEM_RESET switch all vCPUs off, and KVM_RUN would sleep for ever: whoever enters after
 * that exit means it, so that the vCPU is switched on again. */
static int switch_on(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    uint32_t now = __atomic_load_n(&machine_of(cpu)->powered_off, __ATOMIC_ACQUIRE);
    if (arm->powered_off == now)
        return 0;
    arm->powered_off = now;
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};
    return rift_kvm_arm_call(cpu, KVM_SET_MP_STATE, &state, "KVM_SET_MP_STATE", error) < 0 ? -1 : 0;
}

/* Completing a device access is KVM's own work at the next entry, told by run->exit_reason, which therefore stays. */
int rift_kvm_arm_enter(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    if (switch_on(cpu, error) || rift_kvm_arm_finish_call(cpu, error))
        return -1;
    rift_kvm_arm_forget(arm);
    arm->faulted = arm->halted = 0;
    rift_kvm_arm_halt_before(&arm->halt);
    int status = cpu->machine->ioctl(cpu->fd, KVM_RUN, NULL), code = status < 0 ? errno : 0;
    arm->halted = rift_kvm_arm_halt_after(cpu, code == EINTR);
    arm->faulted = code == EFAULT;
    return !code || arm->halted || arm->faulted ? 0 : rift_kvm_arm_fail(error, code, "KVM_RUN");
}

/* The program counter moves on at the next entry, after a store as well: both are open until then. */
static void decode_mmio(struct rift_kvm_cpu *cpu, struct rift_exit *exit) {
    struct kvm_run *run = cpu->run;
    exit->kind = RIFT_EXIT_MMIO;
    exit->address = run->mmio.phys_addr;
    exit->size = run->mmio.len;
    exit->is_write = run->mmio.is_write;
    if (run->mmio.is_write)
        memcpy(&exit->value, run->mmio.data, run->mmio.len <= 8 ? run->mmio.len : 8);
    else
        memset(run->mmio.data, 0, sizeof(run->mmio.data));
    cpu->open = RIFT_KVM_ACCESS;
}

static void decode_event(struct rift_kvm_cpu *cpu, struct rift_exit *exit) {
    switch (cpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        exit->kind = RIFT_EXIT_POWER_OFF;
        break;
    case KVM_SYSTEM_EVENT_RESET:
        exit->kind = RIFT_EXIT_RESET;
        break;
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        return;
    }
    __atomic_add_fetch(&machine_of(cpu)->powered_off, 1, __ATOMIC_ACQ_REL);
}

static int decode_failure(struct rift_kvm_cpu *cpu, struct rift_exit *exit, uint64_t value, struct rift_error *error) {
    exit->kind = RIFT_EXIT_FAIL_ENTRY;
    exit->value = value;
    return rift_kvm_arm_read(cpu, &(uint32_t){ARM_PC}, 1, &exit->address, error) ? -1 : RIFT_KVM_DISPATCH;
}

/* Memory that the host has taken away; older kernels fail with EFAULT and do not say where. */
static void decode_memory_fault(const struct kvm_run *run, struct rift_exit *exit) {
    exit->kind = RIFT_EXIT_MEMORY_FAULT;
    if (run->exit_reason != EXIT_MEMORY_FAULT)
        return;
    struct memory_fault fault;
    memcpy(&fault, &run->hw, sizeof(fault));
    exit->address = fault.gpa;
    exit->size = (uint32_t)fault.size;
    exit->info[0] = fault.flags;
}

int rift_kvm_arm_decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const struct kvm_run *run = cpu->run;
    const struct rift_kvm_arm *arm = cpu->state;
    *exit = (struct rift_exit){.raw_reason = run->exit_reason};
    cpu->open = RIFT_KVM_COMPLETE;
    if (arm->faulted) {
        decode_memory_fault(run, exit);
        return RIFT_KVM_DISPATCH;
    }
    if (arm->halted) {
        exit->kind = RIFT_EXIT_HALT;
        return rift_kvm_arm_read(cpu, &(uint32_t){ARM_PC}, 1, &exit->address, error) ? -1 : RIFT_KVM_DISPATCH;
    }
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        decode_mmio(cpu, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_SYSTEM_EVENT:
        decode_event(cpu, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_HYPERCALL:
        return rift_kvm_arm_decode_call(cpu, exit, error);
    case KVM_EXIT_DEBUG:
        return rift_kvm_arm_decode_debug(cpu, exit, error);
    case EXIT_MEMORY_FAULT:
        decode_memory_fault(run, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_ARM_NISV: /* a device access that the CPU does not describe: of two registers, say, or a vector */
        return decode_failure(cpu, exit, run->arm_nisv.esr_iss, error);
    case KVM_EXIT_FAIL_ENTRY:
        return decode_failure(cpu, exit, run->fail_entry.hardware_entry_failure_reason, error);
    case KVM_EXIT_INTERNAL_ERROR:
        return decode_failure(cpu, exit, run->internal.suberror, error);
    case KVM_EXIT_INTR:
        return RIFT_KVM_REENTER;
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        return RIFT_KVM_DISPATCH;
    }
}

void rift_kvm_arm_complete(struct rift_kvm_cpu *cpu, uint64_t value) {
    struct kvm_run *run = cpu->run;
    struct rift_kvm_arm *arm = cpu->state;
    arm->call_answer = value;
    if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
        memcpy(run->mmio.data, &value, sizeof(value));
}
