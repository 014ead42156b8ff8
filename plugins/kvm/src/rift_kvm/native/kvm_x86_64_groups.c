/* Transfers of register groups between the binding's copy and KVM, and the whole state in one piece. */
#include "kvm_x86_64.h"

#include <errno.h>
#include <string.h>

const uint32_t rift_kvm_x86_msrs[X86_MSR_COUNT] = {
    0xC0000081, /* STAR */
    0xC0000082, /* LSTAR */
    0xC0000083, /* CSTAR */
    0xC0000084, /* SFMASK */
    0xC0000102, /* KERNEL_GS_BASE */
    0xC0000103, /* TSC_AUX */
    0x10,       /* TSC */
    0x277,      /* PAT */
    0x174,      /* SYSENTER_CS */
    0x175,      /* SYSENTER_ESP */
    0x176,      /* SYSENTER_EIP */
};

/* struct kvm_msrs, with room for all. */
struct msr_batch {
    uint32_t count, pad;
    struct kvm_msr_entry entries[X86_MSR_COUNT];
};

/* KVM stops at the first MSR that it does not have: note that one and go on behind it. */
static int fetch_msrs(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    uint32_t at = 0;
    while (at < X86_MSR_COUNT) {
        struct msr_batch batch = {.count = X86_MSR_COUNT - at};
        for (uint32_t next = at; next < X86_MSR_COUNT; ++next)
            batch.entries[next - at].index = rift_kvm_x86_msrs[next];
        int count = rift_kvm_x86_call(cpu, KVM_GET_MSRS, &batch, "KVM_GET_MSRS", error);
        if (count < 0)
            return -1;
        for (uint32_t got = 0; got < (uint32_t)count && at < X86_MSR_COUNT; ++got, ++at)
            x86->msrs[at] = batch.entries[got].data;
        if (at < X86_MSR_COUNT)
            x86->msrs_absent |= 1u << at++;
    }
    return 0;
}

int rift_kvm_x86_store_msrs(struct rift_kvm_cpu *cpu, uint32_t mask, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct msr_batch batch = {.count = 0};
    for (uint32_t at = 0; at < X86_MSR_COUNT; ++at)
        if (mask & 1u << at)
            batch.entries[batch.count++] =
                (struct kvm_msr_entry){.index = rift_kvm_x86_msrs[at], .data = x86->msrs[at]};
    int count = rift_kvm_x86_call(cpu, KVM_SET_MSRS, &batch, "KVM_SET_MSRS", error);
    if (count >= 0 && (uint32_t)count == batch.count)
        return 0;
    if (count >= 0) {
        error->code = EINVAL;
        error->operation = "KVM_SET_MSRS";
    }
    x86->valid &= ~(uint32_t)X86_MSRS;
    return -1;
}

int rift_kvm_x86_fetch(struct rift_kvm_cpu *cpu, uint32_t group, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    if (group == X86_REGS)
        x86->used = 1;
    if (x86->valid & group)
        return 0;
    int status = 0;
    switch (group) {
    case X86_REGS:
        status = rift_kvm_x86_call(cpu, KVM_GET_REGS, x86->regs, "KVM_GET_REGS", error);
        break;
    case X86_SREGS:
        status = rift_kvm_x86_call(cpu, KVM_GET_SREGS, &x86->sregs, "KVM_GET_SREGS", error);
        break;
    case X86_XSAVE:
        status = rift_kvm_x86_call(cpu, KVM_GET_XSAVE, &x86->xsave, "KVM_GET_XSAVE", error);
        break;
    case X86_DEBUGREGS:
        status = rift_kvm_x86_call(cpu, KVM_GET_DEBUGREGS, &x86->debugregs, "KVM_GET_DEBUGREGS", error);
        break;
    case X86_XCRS:
        status = rift_kvm_x86_call(cpu, KVM_GET_XCRS, &x86->xcrs, "KVM_GET_XCRS", error);
        break;
    default:
        status = fetch_msrs(cpu, error);
        break;
    }
    if (status < 0)
        return -1;
    x86->valid |= group;
    return 0;
}

int rift_kvm_x86_store(struct rift_kvm_cpu *cpu, uint32_t group, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    int status = 0;
    switch (group) {
    case X86_REGS:
        status = rift_kvm_x86_call(cpu, KVM_SET_REGS, x86->regs, "KVM_SET_REGS", error);
        if (status == 0)
            x86->regs_changed = 0;
        return status < 0 ? -1 : 0;
    case X86_SREGS:
        cpu->run->cr8 = x86->sregs.cr8;
        status = rift_kvm_x86_call(cpu, KVM_SET_SREGS, &x86->sregs, "KVM_SET_SREGS", error);
        break;
    case X86_XSAVE:
        status = rift_kvm_x86_call(cpu, KVM_SET_XSAVE, &x86->xsave, "KVM_SET_XSAVE", error);
        break;
    case X86_DEBUGREGS:
        status = rift_kvm_x86_call(cpu, KVM_SET_DEBUGREGS, &x86->debugregs, "KVM_SET_DEBUGREGS", error);
        break;
    default:
        status = rift_kvm_x86_call(cpu, KVM_SET_XCRS, &x86->xcrs, "KVM_SET_XCRS", error);
        break;
    }
    if (status >= 0)
        return 0;
    x86->valid &= ~group; /* the copy holds what KVM refused */
    return -1;
}

/* -- the whole state -------------------------------------------------------------------------------- */

#define STATE_MAGIC UINT64_C(0x31363878666972) /* "rifx861" */

struct saved {
    uint64_t magic, bytes;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    uint32_t msrs_absent;
    uint64_t msrs[X86_MSR_COUNT];
    uint8_t xsave[4096];
};

int rift_kvm_x86_save(struct rift_kvm_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    size_t room = *bytes;
    *bytes = sizeof(struct saved);
    if (room < sizeof(struct saved)) {
        error->code = ENOSPC;
        error->operation = "save";
        return -1;
    }
    struct saved *saved = memset(buffer, 0, sizeof(*saved));
    for (uint32_t group = X86_REGS; group <= X86_XCRS; group <<= 1)
        if (rift_kvm_x86_fetch(cpu, group, error))
            return -1;
    if (rift_kvm_x86_call(cpu, KVM_GET_VCPU_EVENTS, &saved->events, "KVM_GET_VCPU_EVENTS", error) < 0)
        return -1;
    if (rift_kvm_x86_call(cpu, KVM_GET_MP_STATE, &saved->mp_state, "KVM_GET_MP_STATE", error) < 0)
        return -1;
    saved->magic = STATE_MAGIC;
    saved->bytes = sizeof(*saved);
    saved->regs = *x86->regs;
    saved->sregs = x86->sregs;
    saved->debugregs = x86->debugregs;
    saved->xcrs = x86->xcrs;
    saved->msrs_absent = x86->msrs_absent;
    memcpy(saved->msrs, x86->msrs, sizeof(saved->msrs));
    memcpy(saved->xsave, x86->bytes, sizeof(saved->xsave));
    return 0;
}

int rift_kvm_x86_restore(struct rift_kvm_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct saved saved;
    if (bytes == sizeof(saved))
        memcpy(&saved, buffer, sizeof(saved));
    if (bytes != sizeof(saved) || saved.magic != STATE_MAGIC || saved.bytes != sizeof(saved)) {
        error->code = EINVAL;
        error->operation = "restore";
        return -1;
    }
    x86->sregs = saved.sregs;
    x86->debugregs = saved.debugregs;
    x86->xcrs = saved.xcrs;
    memcpy(x86->msrs, saved.msrs, sizeof(x86->msrs));
    memcpy(x86->bytes, saved.xsave, sizeof(x86->bytes));
    *x86->regs = saved.regs;
    x86->valid = 0;
    x86->batch_count = 0;
    x86->mmio_next = 0;
    x86->redirected = x86->fault_here = 0;
    if (rift_kvm_x86_store(cpu, X86_SREGS, error) || rift_kvm_x86_store(cpu, X86_XCRS, error) ||
        rift_kvm_x86_store(cpu, X86_XSAVE, error) || rift_kvm_x86_store(cpu, X86_DEBUGREGS, error) ||
        rift_kvm_x86_store_msrs(cpu, ((1u << X86_MSR_COUNT) - 1) & ~saved.msrs_absent, error) ||
        rift_kvm_x86_store(cpu, X86_REGS, error))
        return -1;
    if (rift_kvm_x86_call(cpu, KVM_SET_VCPU_EVENTS, &saved.events, "KVM_SET_VCPU_EVENTS", error) < 0)
        return -1;
    return rift_kvm_x86_call(cpu, KVM_SET_MP_STATE, &saved.mp_state, "KVM_SET_MP_STATE", error) < 0 ? -1 : 0;
}
