/* The x86-64 binding: calls, controls, making a vCPU, and the struct that joins it all. */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

#define DEADLINE_FOREVER (~UINT64_C(0))
#define CAPABILITY_VCPUS 0 /* HV_CAP_VCPUMAX */
#define GPA_BITS_LIMIT 39  /* every Mac's CPU has at least as many address bits; that more can be used nobody has said */

enum { MSR_TSC = 0x10 };

const uint32_t rift_hvf_x86_msrs[X86_MSR_COUNT] = {
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, /* STAR, LSTAR, CSTAR, FMASK */
    0xC0000102, 0xC0000103, MSR_TSC,                /* KERNEL_GS_BASE, TSC_AUX */
    0x174, 0x175, 0x176,                            /* SYSENTER_CS, _ESP, _EIP: fields of the VMCS as well */
    0xDA0,                                          /* XSS */
};

int rift_hvf_x86_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error) {
    int status = cpu->framework->x86.read_register((uint32_t)cpu->id, number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_read_register");
}

int rift_hvf_x86_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    int status = cpu->framework->x86.write_register((uint32_t)cpu->id, number, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_write_register");
}

int rift_hvf_x86_vmread(const struct rift_hvf_cpu *cpu, uint32_t field, uint64_t *value, struct rift_error *error) {
    int status = cpu->framework->x86.read_vmcs((uint32_t)cpu->id, field, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vmx_vcpu_read_vmcs");
}

int rift_hvf_x86_vmwrite(const struct rift_hvf_cpu *cpu, uint32_t field, uint64_t value, struct rift_error *error) {
    int status = cpu->framework->x86.write_vmcs((uint32_t)cpu->id, field, value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vmx_vcpu_write_vmcs");
}

uint32_t rift_hvf_x86_general(uint32_t encoding) {
    static const uint8_t low[8] = {HV_RAX, HV_RCX, HV_RDX, HV_RBX, HV_RSP, HV_RBP, HV_RSI, HV_RDI};
    return encoding < 8 ? low[encoding] : HV_R8 + (encoding - 8);
}

/* Changed page tables, or a control register written by the host: entries are tagged, so that no entry to the guest
 * flushes them by itself. */
int rift_hvf_x86_flush(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    if (!cpu->framework->x86.invalidate_tlb)
        return 0;
    int status = cpu->framework->x86.invalidate_tlb((uint32_t)cpu->id);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_invalidate_tlb");
}

static int limits(const struct rift_hvf_framework *framework, struct rift_hvf_limits *limits,
                  struct rift_error *error) {
    (void)error;
    uint64_t vcpus = 0;
    if (!framework->x86.capability || framework->x86.capability(CAPABILITY_VCPUS, &vcpus) != HV_SUCCESS || !vcpus)
        vcpus = 8;
    uint32_t bits = rift_hvf_x86_host_address_bits();
    limits->page = 4096;
    limits->gpa_bits = limits->most_gpa_bits = bits < GPA_BITS_LIMIT ? bits : GPA_BITS_LIMIT;
    limits->max_vcpus = vcpus < 64 ? (uint32_t)vcpus : 64;
    return 0;
}

static int vm_create(const struct rift_hvf_framework *framework, uint32_t gpa_bits, struct rift_error *error) {
    (void)gpa_bits;
    int status = framework->x86.vm_create(0); /* HV_VM_DEFAULT */
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vm_create");
}

/* (wanted | what must be) & what may be: SDM volume 3, A.3 to A.5. Sets *may where it is wanted. */
static int write_controls(struct rift_hvf_cpu *cpu, uint32_t capability, uint32_t field, uint32_t wanted,
                          uint32_t *chosen, uint32_t *may, struct rift_error *error) {
    uint64_t word;
    int status = cpu->framework->x86.read_capability(capability, &word);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vmx_read_capability");
    uint32_t value = (wanted | (uint32_t)word) & (uint32_t)(word >> 32);
    if (chosen)
        *chosen = value;
    if (may)
        *may = (uint32_t)(word >> 32);
    return rift_hvf_x86_vmwrite(cpu, field, value, error);
}

/* What the hypervisor shall stop at, and what not. INVLPG, CR3, RDTSC and PAUSE are the guest's own business. */
static int setup_controls(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint32_t primary = CPU_HLT | CPU_MWAIT | CPU_MONITOR | CPU_RDPMC | CPU_CR8_LOAD | CPU_CR8_STORE |
                             CPU_UNCONDITIONAL_IO | CPU_TSC_OFFSET | CPU_MSR_BITMAPS | CPU_SECONDARY;
    const uint32_t secondary = CPU2_EPT | CPU2_RDTSCP | CPU2_VPID | CPU2_UNRESTRICTED | CPU2_INVPCID;
    if (write_controls(cpu, HV_VMX_CAP_PINBASED, VMCS_CTRL_PIN_BASED, PIN_INTR | PIN_NMI | PIN_VIRTUAL_NMI, NULL, NULL,
                       error) ||
        write_controls(cpu, HV_VMX_CAP_PROCBASED, VMCS_CTRL_CPU_BASED, primary, &x86->cpu_based, &x86->cpu_may,
                       error) ||
        write_controls(cpu, HV_VMX_CAP_PROCBASED2, VMCS_CTRL_CPU_BASED2, secondary, &x86->cpu_based2, NULL, error) ||
        write_controls(cpu, HV_VMX_CAP_EXIT, VMCS_CTRL_VMEXIT_CONTROLS, EXIT_SAVE_EFER, &x86->exit_controls, NULL,
                       error) ||
        write_controls(cpu, HV_VMX_CAP_ENTRY, VMCS_CTRL_VMENTRY_CONTROLS, ENTRY_LOAD_EFER, &x86->entry_controls,
                       &x86->entry_may, error))
        return -1;
    x86->entry_controls &= ~(uint32_t)ENTRY_IA32E; /* as EFER.LMA says: rift_hvf_x86_write_efer */
    return rift_hvf_x86_apply_controls(cpu, error);
}

int rift_hvf_x86_apply_controls(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t primary = x86->cpu_based, exceptions = 0;
    if (x86->window)
        primary |= CPU_IRQ_WINDOW;
    if (x86->debug_step)
        primary |= CPU_MONITOR_TRAP;
    if (x86->debug_count) {
        primary |= CPU_MOV_DR & x86->cpu_may;
        exceptions |= 1u << VECTOR_DB;
    }
    if (x86->debug_software)
        exceptions |= 1u << VECTOR_BP;
    if (rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_CPU_BASED, primary, error))
        return -1;
    return rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_EXC_BITMAP, exceptions, error);
}

/* MSRs that the guest may use without exits. Which ones a framework takes depends on its version and the CPU; the
 * others are carried out at their exits. */
static void setup_native_msrs(struct rift_hvf_cpu *cpu) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    static const uint32_t bases[] = {0xC0000100, 0xC0000101}; /* FS.base and GS.base, which the VMCS holds */
    x86->native = 0;
    if (!cpu->framework->x86.enable_native_msr || !cpu->framework->x86.read_msr || !cpu->framework->x86.write_msr)
        return;
    for (uint32_t at = 0; at < X86_MSR_COUNT; ++at)
        if (cpu->framework->x86.enable_native_msr((uint32_t)cpu->id, rift_hvf_x86_msrs[at], true) == HV_SUCCESS)
            x86->native |= 1u << at;
    for (uint32_t at = 0; at < sizeof(bases) / sizeof(bases[0]); ++at)
        cpu->framework->x86.enable_native_msr((uint32_t)cpu->id, bases[at], true);
}

/* A guest that switches paging on by itself enters long mode, which changes EFER. Where no exit saves that, the switch
 * has to be an exit, or the next entry is refused: SDM volume 3, 26.6.6 and 28.3.1. */
static uint64_t cr0_mask(const struct rift_hvf_x86 *x86) {
    return CR0_NE | (x86->exit_controls & EXIT_SAVE_EFER ? 0 : CR0_PG);
}

/* A state that the ISA's registers complete: no segment but CS, SS and TR is usable, nothing is pending. */
static int setup_state(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    static const struct {
        uint32_t field;
        uint64_t value;
    } fields[] = {
        {VMCS_GUEST_LINK_POINTER, ~UINT64_C(0)},
        {VMCS_GUEST_INTERRUPTIBILITY, 0},
        {VMCS_GUEST_ACTIVITY_STATE, 0},
        {VMCS_GUEST_DEBUG_EXC, 0},
        {VMCS_CTRL_VMENTRY_IRQ_INFO, 0},
        {VMCS_CTRL_TPR_THRESHOLD, 0},
        {VMCS_CTRL_CR4_MASK, CR4_VMXE},
        {VMCS_GUEST_DR7, 0x400},
    };
    for (uint32_t at = 0; at < sizeof(fields) / sizeof(fields[0]); ++at)
        if (rift_hvf_x86_vmwrite(cpu, fields[at].field, fields[at].value, error))
            return -1;
    for (uint32_t segment = SEGMENT_ES; segment <= SEGMENT_TR; ++segment) {
        uint64_t attributes = segment == SEGMENT_CS   ? 0xA09B
                              : segment == SEGMENT_SS ? 0xC093
                              : segment == SEGMENT_TR ? 0x8B
                                                      : SEGMENT_UNUSABLE;
        if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_ES + 2 * segment, 0, error) ||
            rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_ES_BASE + 2 * segment, 0, error) ||
            rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_ES_LIMIT + 2 * segment,
                                 segment == SEGMENT_CS || segment == SEGMENT_SS ? 0xFFFFFFFF : 0x67, error) ||
            rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_ES_AR + 2 * segment, attributes, error))
            return -1;
    }
    if (rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_CR0_MASK, cr0_mask(x86_of(cpu)), error) ||
        rift_hvf_x86_write_cr0(cpu, CR0_PE | CR0_ET, error) || rift_hvf_x86_write_cr4(cpu, 0, error) ||
        rift_hvf_x86_write_efer(cpu, 0, error))
        return -1;
    for (uint32_t number = HV_RIP; number <= HV_R15; ++number)
        if (rift_hvf_x86_set(cpu, number, number == HV_RFLAGS ? 2 : 0, error))
            return -1;
    return 0;
}

static int vcpu_create(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t id;
    int status = cpu->framework->x86.vcpu_create(&id, 0); /* HV_VCPU_DEFAULT */
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_create");
    cpu->id = id;
    cpu->open = 0;
    if (!x86->pat) { /* the first time */
        x86->pat = UINT64_C(0x0007040600070406);        /* SDM volume 3, table 12-12 */
        x86->apic_base = UINT64_C(0xFEE00000) | 1 << 11 | (cpu->index == 0 ? 1 << 8 : 0); /* enabled; the first is BSP */
        x86->avx_offset = rift_hvf_x86_host_avx_offset();
    }
    x86->fpu_valid = x86->fpu_changed = 0;
    x86->debug_active = 0;
    x86->window = 0;
    x86->event = 0;
    x86->open = OPEN_NOTHING;
    if (setup_controls(cpu, error) || setup_state(cpu, error) || rift_hvf_x86_apply_debug(cpu, error)) {
        cpu->framework->x86.vcpu_destroy(id);
        return -1;
    }
    setup_native_msrs(cpu);
    return 0;
}

static int vcpu_destroy(const struct rift_hvf_framework *framework, uint64_t id) {
    return framework->x86.vcpu_destroy((uint32_t)id);
}

static void vcpu_exit(const struct rift_hvf_framework *framework, uint64_t id) {
    uint32_t number = (uint32_t)id;
    framework->x86.interrupt(&number, 1);
}

/* -- into the guest ------------------------------------------------------------------------------------ */

static int write_event(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t type = x86->event & EVENT_TYPE;
    if ((x86->event & EVENT_HAS_CODE) &&
        rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_VMENTRY_EXC_ERROR, x86->event_code, error))
        return -1;
    if ((type == EVENT_SOFT_INTERRUPT || type == EVENT_SOFT_EXCEPTION || type == EVENT_PRIVILEGED) &&
        rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_VMENTRY_INSTR_LEN, x86->event_length, error))
        return -1;
    if (rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_VMENTRY_IRQ_INFO, x86->event, error))
        return -1;
    x86->event = 0;
    return 0;
}

/* With a deadline that never comes the framework itself deals with what concerns no one: a page that is touched for
 * the first time, an interrupt of the host. Where it cannot do that, such exits are entered again by `decode`. */
int rift_hvf_x86_enter(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const struct rift_hvf_x86_calls *calls = &cpu->framework->x86;
    if ((x86->fpu_changed && rift_hvf_x86_store_fpu(cpu, error)) ||
        ((x86->interrupt || x86->window) && rift_hvf_x86_offer_interrupt(cpu, error)) ||
        (x86->event && write_event(cpu, error)))
        return -1;
    x86->fpu_valid = 0;
    const char *operation = "hv_vcpu_run_until";
    int status = HV_UNSUPPORTED; /* without the preemption timer there are no deadlines */
    if (calls->run_until && !x86->no_deadlines)
        status = calls->run_until((uint32_t)cpu->id, DEADLINE_FOREVER);
    if (status == HV_UNSUPPORTED) {
        x86->no_deadlines = 1;
        operation = "hv_vcpu_run";
        status = calls->run((uint32_t)cpu->id);
    }
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, operation);
    uint64_t reason;
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_EXIT_REASON, &reason, error))
        return -1;
    x86->reason = (uint32_t)reason;
    return 0;
}

const struct rift_hvf_binding rift_hvf_x86_64 = {
    .version = RIFT_HVF_BINDING_VERSION,
    .bytes = sizeof(struct rift_hvf_binding),
    .isa = "x86_64",
    .registers = rift_hvf_x86_registers,
    .register_count = X86_REGISTER_COUNT,
    .state_bytes = sizeof(struct rift_hvf_x86),
    .limits = limits,
    .vm_create = vm_create,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .vcpu_exit = vcpu_exit,
    .enter = rift_hvf_x86_enter,
    .decode = rift_hvf_x86_decode,
    .complete = rift_hvf_x86_complete,
    .read_registers = rift_hvf_x86_read,
    .write_registers = rift_hvf_x86_write,
    .inject_exception = rift_hvf_x86_inject,
    .inject_interrupt = rift_hvf_x86_interrupt,
    .drop_events = rift_hvf_x86_drop_events,
    .set_debug = rift_hvf_x86_set_debug,
    .save = rift_hvf_x86_save,
    .restore = rift_hvf_x86_restore,
    .flush = rift_hvf_x86_flush,
};
