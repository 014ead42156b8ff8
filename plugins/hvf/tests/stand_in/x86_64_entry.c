/* The checks that a CPU makes before it enters a guest: Intel SDM volume 3, 26.2 (controls) and 26.3 (guest state). */
#include "x86_64.h"

/* What a real Mac was seen to demand of its five control words, must in the low half, and what this stand-in can do
 * in the high half. PIN, CPU, CPU2, ENTRY, EXIT. */
static const uint64_t control_words[5] = {
    UINT64_C(0x0000007f00000016),
    UINT64_C(0xfff9fffe94006172),
    UINT64_C(0x00001cef00000022),
    UINT64_C(0x0000d3ff000091ff),
    UINT64_C(0x007fffff00236fff),
};

/* CR3 loads and stores, INVLPG, RDPMC, RDTSC, MOV DR and PAUSE: a CPU that shows them all to the hypervisor. */
enum { MUST_EXIT_TOO = 1 << 15 | 1 << 16 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 23 | 1 << 30 };

uint64_t control_word(unsigned at) {
    return control_words[at] | (at == 1 && stand_in_options.demanding ? MUST_EXIT_TOO : 0);
}

#define LMA (UINT64_C(1) << 10)
#define LME (UINT64_C(1) << 8)

static int control_is_right(uint64_t value, uint64_t word) {
    const uint32_t must = (uint32_t)word, may = (uint32_t)(word >> 32);
    return (value & must) == must && !(value & ~(uint64_t)may);
}

static const char *check_controls(const uint64_t *vmcs) {
    static const uint32_t fields[5] = {F_PIN, F_CPU, F_CPU2, F_ENTRY, F_EXIT};
    static const char *const names[5] = {"PIN_BASED", "CPU_BASED", "CPU_BASED2", "VMENTRY_CONTROLS", "VMEXIT_CONTROLS"};
    for (unsigned at = 0; at < 5; ++at)
        if (!control_is_right(vmcs[fields[at]], control_word(at)))
            return names[at];
    const uint64_t event = vmcs[F_IRQ_INFO];
    if (event >> 31 & 1) {
        const unsigned type = event >> 8 & 7, vector = event & 0xFF, has_code = event >> 11 & 1;
        if (type == 1 || type == 7)
            return "VMENTRY_IRQ_INFO: type";
        if (type == 3 && vector > 31)
            return "VMENTRY_IRQ_INFO: no such exception";
        const unsigned pushes = type == 3 && (1u << vector & (1u << 8 | 0x1Fu << 10 | 1u << 17 | 1u << 21));
        if (has_code != (pushes != 0))
            return "VMENTRY_IRQ_INFO: error code";
        if (event & 0x7FFFF000)
            return "VMENTRY_IRQ_INFO: reserved bits";
        if (type >= 4 && (vmcs[F_INSTR_LEN] < 1 || vmcs[F_INSTR_LEN] > 15))
            return "VMENTRY_INSTR_LEN";
    }
    return 0;
}

static const char *check_segments(const uint64_t *vmcs) {
    const uint64_t cs = vmcs[0x4816], ss = vmcs[0x4818], tr = vmcs[0x4822], ldtr = vmcs[0x4820];
    if (cs & 0x10000 || (cs & 0x9B) != 0x9B || !(cs & 0x8))
        return "CS access rights";
    if ((cs & 0x6000) == 0x6000)
        return "CS.L and CS.D";
    if (!(ss & 0x10000) && ((ss >> 5 & 3) != (vmcs[0x804] & 3) || (ss >> 5 & 3) != (cs >> 5 & 3)))
        return "SS.DPL";
    if (tr & 0x10000 || (tr & 0xF) != 11 || !(tr & 0x80) || tr & 0x10)
        return "TR is no busy TSS";
    if (vmcs[0x80e] & 4)
        return "TR selector";
    if (!(ldtr & 0x10000) && ((ldtr & 0xF) != 2 || !(ldtr & 0x80)))
        return "LDTR access rights";
    for (unsigned at = 0; at < 8; ++at) { /* granularity and limit agree, where the segment is usable */
        const uint64_t rights = vmcs[0x4814 + 2 * at], limit = vmcs[0x4800 + 2 * at];
        if (rights & 0x10000)
            continue;
        if ((limit & 0xFFF) != 0xFFF && (rights & 0x8000))
            return "a segment's granularity";
        if (limit >> 20 && !(rights & 0x8000))
            return "a segment's limit";
        if (rights & 0xFFFE0F00)
            return "a segment's reserved bits";
    }
    return 0;
}

static int canonical(uint64_t address) {
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

const char *entry_check(const struct vcpu *vcpu) {
    const uint64_t *vmcs = vcpu->vmcs;
    const uint64_t cr0 = vmcs[F_CR0], cr4 = vmcs[F_CR4], efer = vmcs[F_EFER];
    const char *wrong = check_controls(vmcs);
    if (wrong)
        return wrong;
    if (!(cr0 & 1 << 5))
        return "CR0.NE";
    if ((cr0 >> 31 & 1) && !(cr0 & 1))
        return "CR0.PG without PE";
    if (!(cr4 >> 13 & 1))
        return "CR4.VMXE";
    const int long_mode = vmcs[F_ENTRY] >> 9 & 1;
    if (long_mode != ((efer & LMA) != 0))
        return "the entry control IA32E and EFER.LMA";
    if ((cr0 >> 31 & 1) && ((efer & LMA) != 0) != ((efer & LME) != 0))
        return "EFER.LMA and LME";
    if (long_mode && (!(cr0 >> 31 & 1) || !(cr4 >> 5 & 1)))
        return "long mode without CR0.PG or CR4.PAE";
    if (vmcs[F_LINK_POINTER] != ~UINT64_C(0))
        return "link pointer";
    if ((vcpu->registers[R_RFLAGS] & 0xFFFFFFFFFFC08028) || !(vcpu->registers[R_RFLAGS] & 2))
        return "RFLAGS";
    if (long_mode && !canonical(vcpu->registers[R_RIP]))
        return "RIP";
    if (vmcs[F_ACTIVITY] > 3)
        return "activity state";
    if ((vmcs[F_INTERRUPTIBILITY] & 3) == 3 ||
        ((vmcs[F_INTERRUPTIBILITY] & 1) && !(vcpu->registers[R_RFLAGS] & 1 << 9)))
        return "interruptibility";
    if (!canonical(vmcs[0x6816]) || !canonical(vmcs[0x6818]) || vmcs[0x4810] >> 16 || vmcs[0x4812] >> 16)
        return "GDTR or IDTR";
    return check_segments(vmcs);
}
