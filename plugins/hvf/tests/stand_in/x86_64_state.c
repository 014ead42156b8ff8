/* The VMCS's guest state and the registers, as KVM has them. */
#include "x86_64.h"

#include <string.h>
#include <sys/ioctl.h>

#define VMXE (UINT64_C(1) << 13)
#define NE (UINT64_C(1) << 5)
#define UNUSABLE 0x10000u

/* ES CS SS DS FS GS LDTR TR: the order of the fields. */
static struct kvm_segment *segment_of(struct kvm_sregs *sregs, unsigned at) {
    struct kvm_segment *all[8] = {&sregs->es, &sregs->cs, &sregs->ss, &sregs->ds,
                                  &sregs->fs, &sregs->gs, &sregs->ldt, &sregs->tr};
    return all[at];
}

int state_is_system(uint32_t field) {
    return (field >= 0x800 && field <= 0x80e) || (field >= 0x4800 && field <= 0x4822) ||
           (field >= F_CR0 && field <= 0x6818) || field == F_EFER || field == F_CR0_SHADOW || field == F_CR4_SHADOW;
}

int state_load_system(struct vcpu *vcpu) {
    struct kvm_sregs sregs;
    if (vcpu->system_valid)
        return 0;
    if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
        return -1;
    uint64_t *vmcs = vcpu->vmcs;
    for (unsigned at = 0; at < 8; ++at) {
        const struct kvm_segment *segment = segment_of(&sregs, at);
        vmcs[0x800 + 2 * at] = segment->selector;
        vmcs[0x4800 + 2 * at] = segment->limit;
        vmcs[0x6806 + 2 * at] = segment->base;
        vmcs[0x4814 + 2 * at] = (uint64_t)segment->type | (uint64_t)segment->s << 4 | (uint64_t)segment->dpl << 5 |
                                (uint64_t)segment->present << 7 | (uint64_t)segment->avl << 12 |
                                (uint64_t)segment->l << 13 | (uint64_t)segment->db << 14 | (uint64_t)segment->g << 15 |
                                (segment->unusable || !segment->present ? UNUSABLE : 0);
    }
    vmcs[0x6816] = sregs.gdt.base;
    vmcs[0x4810] = sregs.gdt.limit;
    vmcs[0x6818] = sregs.idt.base;
    vmcs[0x4812] = sregs.idt.limit;
    vmcs[F_CR0] = sregs.cr0 | NE;
    vmcs[F_CR3] = sregs.cr3;
    vmcs[F_CR4] = sregs.cr4 | VMXE;
    vmcs[F_CR0_SHADOW] = (vmcs[F_CR0_SHADOW] & ~vmcs[F_CR0_MASK]) | (sregs.cr0 & vmcs[F_CR0_MASK]);
    vmcs[F_CR4_SHADOW] = (vmcs[F_CR4_SHADOW] & ~vmcs[F_CR4_MASK]) | (sregs.cr4 & vmcs[F_CR4_MASK]);
    vmcs[F_EFER] = sregs.efer;
    vcpu->registers[R_CR2] = sregs.cr2;
    vcpu->system_valid = 1;
    return 0;
}

static int store_system(struct vcpu *vcpu) {
    struct kvm_sregs sregs;
    const uint64_t *vmcs = vcpu->vmcs;
    if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
        return -1;
    for (unsigned at = 0; at < 8; ++at) {
        struct kvm_segment *segment = segment_of(&sregs, at);
        const uint64_t attributes = vmcs[0x4814 + 2 * at];
        segment->selector = (uint16_t)vmcs[0x800 + 2 * at];
        segment->limit = (uint32_t)vmcs[0x4800 + 2 * at];
        segment->base = vmcs[0x6806 + 2 * at];
        segment->type = attributes & 15;
        segment->s = attributes >> 4 & 1;
        segment->dpl = attributes >> 5 & 3;
        segment->present = attributes >> 7 & 1;
        segment->avl = attributes >> 12 & 1;
        segment->l = attributes >> 13 & 1;
        segment->db = attributes >> 14 & 1;
        segment->g = attributes >> 15 & 1;
        segment->unusable = (attributes & UNUSABLE) != 0;
        if (segment->unusable)
            segment->present = 0;
    }
    sregs.gdt.base = vmcs[0x6816];
    sregs.gdt.limit = (uint16_t)vmcs[0x4810];
    sregs.idt.base = vmcs[0x6818];
    sregs.idt.limit = (uint16_t)vmcs[0x4812];
    /* What the guest sees: a masked bit is the shadow's. */
    sregs.cr0 = (vmcs[F_CR0] & ~vmcs[F_CR0_MASK]) | (vmcs[F_CR0_SHADOW] & vmcs[F_CR0_MASK]);
    sregs.cr3 = vmcs[F_CR3];
    sregs.cr4 = (vmcs[F_CR4] & ~vmcs[F_CR4_MASK]) | (vmcs[F_CR4_SHADOW] & vmcs[F_CR4_MASK]);
    sregs.efer = vmcs[F_EFER];
    sregs.cr2 = vcpu->registers[R_CR2];
    memset(sregs.interrupt_bitmap, 0, sizeof(sregs.interrupt_bitmap));
    return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
}

int state_load_general(struct vcpu *vcpu) {
    struct kvm_regs regs;
    if (ioctl(vcpu->fd, KVM_GET_REGS, &regs))
        return -1;
    const uint64_t values[18] = {regs.rip, regs.rflags, regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsi, regs.rdi, regs.rsp,
                                 regs.rbp, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15};
    memcpy(vcpu->registers, values, sizeof(values));
    return 0;
}

static int store_general(const struct vcpu *vcpu) {
    const uint64_t *r = vcpu->registers;
    struct kvm_regs regs = {
        .rip = r[R_RIP], .rflags = r[R_RFLAGS], .rax = r[R_RAX], .rcx = r[R_RCX], .rdx = r[R_RDX], .rbx = r[R_RBX],
        .rsi = r[R_RSI], .rdi = r[R_RDI], .rsp = r[R_RSP], .rbp = r[R_RBP], .r8 = r[R_R8], .r9 = r[R_R8 + 1],
        .r10 = r[R_R8 + 2], .r11 = r[R_R8 + 3], .r12 = r[R_R8 + 4], .r13 = r[R_R8 + 5], .r14 = r[R_R8 + 6], .r15 = r[R_R15],
    };
    return ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

int state_msr(struct vcpu *vcpu, uint32_t msr, uint64_t *value, int write) {
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } call = {.head = {.nmsrs = 1}, .entry = {.index = msr, .data = *value}};
    if (ioctl(vcpu->fd, write ? KVM_SET_MSRS : KVM_GET_MSRS, &call) != 1)
        return -1;
    *value = call.entry.data;
    return 0;
}

int state_debug_register(struct vcpu *vcpu, unsigned number, uint64_t *value, int write) {
    struct kvm_debugregs registers;
    if (ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &registers))
        return -1;
    __u64 *place = number < 4 ? &registers.db[number] : number == 6 ? &registers.dr6 : &registers.dr7;
    if (!write) {
        *value = *place;
        return 0;
    }
    *place = *value;
    return ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &registers);
}

/* An event of VMENTRY_IRQ_INFO. */
static int store_event(struct vcpu *vcpu) {
    struct kvm_vcpu_events events;
    const uint64_t info = vcpu->vmcs[F_IRQ_INFO];
    if (!(info >> 31 & 1))
        return 0;
    if (ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events))
        return -1;
    const unsigned type = info >> 8 & 7;
    if (type == 0 || type == 4) {
        events.interrupt.injected = 1;
        events.interrupt.nr = info & 0xFF;
        events.interrupt.soft = type == 4;
    } else {
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = info & 0xFF;
        events.exception.has_error_code = info >> 11 & 1;
        events.exception.error_code = (uint32_t)vcpu->vmcs[F_EXC_ERROR];
    }
    vcpu->vmcs[F_IRQ_INFO] &= ~(UINT64_C(1) << 31);
    return ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
}

/* The monitor trap flag, and intercepted #DB and #BP. */
static int store_debugging(struct vcpu *vcpu) {
    struct kvm_guest_debug debug = {0};
    const uint64_t exceptions = vcpu->vmcs[F_EXC_BITMAP];
    if (vcpu->vmcs[F_CPU] >> 27 & 1)
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    if (exceptions >> 3 & 1)
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    uint64_t dr7 = 0;
    if ((exceptions >> 1 & 1) && !state_debug_register(vcpu, 7, &dr7, 0) && (dr7 & 0xFF)) {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        for (unsigned at = 0; at < 4; ++at) {
            uint64_t value;
            if (state_debug_register(vcpu, at, &value, 0))
                return -1;
            debug.arch.debugreg[at] = value;
        }
        debug.arch.debugreg[7] = dr7;
    }
    if (!debug.control && !vcpu->debugging)
        return 0;
    vcpu->debugging = debug.control != 0;
    return ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug);
}

int state_store(struct vcpu *vcpu) {
    if (vcpu->system_changed && store_system(vcpu))
        return -1;
    if (vcpu->general_changed && store_general(vcpu))
        return -1;
    vcpu->system_changed = vcpu->general_changed = 0;
    return store_event(vcpu) || store_debugging(vcpu) ? -1 : 0;
}
