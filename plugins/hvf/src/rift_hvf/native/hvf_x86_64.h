/* Shared by the C files of the x86-64 binding.
 *
 * Numbers: hv_arch_vmx.h and hv_arch_x86.h of the macOS 11.3 SDK, which repeat the Intel SDM, volume 3, appendix B
 * (VMCS fields), appendix C (exit reasons) and chapter 25 (controls). */
#ifndef RIFT_HVF_X86_64_H
#define RIFT_HVF_X86_64_H

#include "hvf_internal.h"

/* hv_x86_reg_t */
enum hv_x86_register {
    HV_RIP = 0, HV_RFLAGS = 1, HV_RAX = 2, HV_RCX = 3, HV_RDX = 4, HV_RBX = 5, HV_RSI = 6, HV_RDI = 7, HV_RSP = 8,
    HV_RBP = 9, HV_R8 = 10, HV_R15 = 17, HV_CR2 = 38, HV_DR0 = 41, HV_DR6 = 47, HV_XCR0 = 50
};

enum hv_vmcs_field {
    VMCS_GUEST_ES = 0x0800,
    VMCS_GUEST_LINK_POINTER = 0x2800,
    VMCS_GUEST_IA32_PAT = 0x2804,
    VMCS_GUEST_IA32_EFER = 0x2806,
    VMCS_GUEST_PHYSICAL_ADDRESS = 0x2400,
    VMCS_CTRL_PIN_BASED = 0x4000,
    VMCS_CTRL_CPU_BASED = 0x4002,
    VMCS_CTRL_EXC_BITMAP = 0x4004,
    VMCS_CTRL_VMEXIT_CONTROLS = 0x400c,
    VMCS_CTRL_VMENTRY_CONTROLS = 0x4012,
    VMCS_CTRL_VMENTRY_IRQ_INFO = 0x4016,
    VMCS_CTRL_VMENTRY_EXC_ERROR = 0x4018,
    VMCS_CTRL_VMENTRY_INSTR_LEN = 0x401a,
    VMCS_CTRL_TPR_THRESHOLD = 0x401c,
    VMCS_CTRL_CPU_BASED2 = 0x401e,
    VMCS_RO_EXIT_REASON = 0x4402,
    VMCS_RO_VMEXIT_IRQ_INFO = 0x4404,
    VMCS_RO_VMEXIT_IRQ_ERROR = 0x4406,
    VMCS_RO_IDT_VECTOR_INFO = 0x4408,
    VMCS_RO_IDT_VECTOR_ERROR = 0x440a,
    VMCS_RO_VMEXIT_INSTR_LEN = 0x440c,
    VMCS_GUEST_ES_LIMIT = 0x4800,
    VMCS_GUEST_GDTR_LIMIT = 0x4810,
    VMCS_GUEST_IDTR_LIMIT = 0x4812,
    VMCS_GUEST_ES_AR = 0x4814,
    VMCS_GUEST_CS_AR = 0x4816,
    VMCS_GUEST_SS_AR = 0x4818,
    VMCS_GUEST_INTERRUPTIBILITY = 0x4824,
    VMCS_GUEST_ACTIVITY_STATE = 0x4826,
    VMCS_GUEST_SYSENTER_CS = 0x482a,
    VMCS_CTRL_CR0_MASK = 0x6000,
    VMCS_CTRL_CR4_MASK = 0x6002,
    VMCS_CTRL_CR0_SHADOW = 0x6004,
    VMCS_CTRL_CR4_SHADOW = 0x6006,
    VMCS_RO_EXIT_QUALIFIC = 0x6400,
    VMCS_GUEST_CR0 = 0x6800,
    VMCS_GUEST_CR3 = 0x6802,
    VMCS_GUEST_CR4 = 0x6804,
    VMCS_GUEST_ES_BASE = 0x6806,
    VMCS_GUEST_GDTR_BASE = 0x6816,
    VMCS_GUEST_IDTR_BASE = 0x6818,
    VMCS_GUEST_DR7 = 0x681a,
    VMCS_GUEST_DEBUG_EXC = 0x6822,
    VMCS_GUEST_SYSENTER_ESP = 0x6824,
    VMCS_GUEST_SYSENTER_EIP = 0x6826
};

/* Segments in the order of the VMCS fields, which are 2 apart. */
enum x86_segment { SEGMENT_ES, SEGMENT_CS, SEGMENT_SS, SEGMENT_DS, SEGMENT_FS, SEGMENT_GS, SEGMENT_LDTR, SEGMENT_TR };

enum { SEGMENT_UNUSABLE = 0x10000 }; /* in a segment's access rights */

enum hv_vmx_capability { /* what hv_vmx_read_capability tells: low half must be 1, high half may be */
    HV_VMX_CAP_PINBASED = 0,
    HV_VMX_CAP_PROCBASED = 1,
    HV_VMX_CAP_PROCBASED2 = 2,
    HV_VMX_CAP_ENTRY = 3,
    HV_VMX_CAP_EXIT = 4
};

enum { PIN_INTR = 1 << 0, PIN_NMI = 1 << 3, PIN_VIRTUAL_NMI = 1 << 5 };
enum {
    CPU_IRQ_WINDOW = 1 << 2,
    CPU_TSC_OFFSET = 1 << 3,
    CPU_HLT = 1 << 7,
    CPU_MWAIT = 1 << 10,
    CPU_RDPMC = 1 << 11,
    CPU_CR8_LOAD = 1 << 19,
    CPU_CR8_STORE = 1 << 20,
    CPU_MOV_DR = 1 << 23,
    CPU_UNCONDITIONAL_IO = 1 << 24,
    CPU_MONITOR_TRAP = 1 << 27,
    CPU_MSR_BITMAPS = 1 << 28,
    CPU_MONITOR = 1 << 29
};
#define CPU_SECONDARY (1u << 31)
enum { CPU2_EPT = 1 << 1, CPU2_RDTSCP = 1 << 3, CPU2_VPID = 1 << 5, CPU2_UNRESTRICTED = 1 << 7, CPU2_INVPCID = 1 << 12 };
enum { ENTRY_IA32E = 1 << 9, ENTRY_LOAD_PAT = 1 << 14, ENTRY_LOAD_EFER = 1 << 15 };

#define CR0_PE (UINT64_C(1) << 0)
#define CR0_TS (UINT64_C(1) << 3)
#define CR0_ET (UINT64_C(1) << 4)
#define CR0_NE (UINT64_C(1) << 5)
#define CR0_WP (UINT64_C(1) << 16)
#define CR0_NW (UINT64_C(1) << 29)
#define CR0_CD (UINT64_C(1) << 30)
#define CR0_PG (UINT64_C(1) << 31)
#define CR4_PAE (UINT64_C(1) << 5)
#define CR4_LA57 (UINT64_C(1) << 12)
#define CR4_VMXE (UINT64_C(1) << 13)
#define CR4_PCIDE (UINT64_C(1) << 17)
#define CR4_OSXSAVE (UINT64_C(1) << 18)
#define CR4_SMAP (UINT64_C(1) << 21)
#define EFER_SCE (UINT64_C(1) << 0)
#define EFER_LME (UINT64_C(1) << 8)
#define EFER_LMA (UINT64_C(1) << 10)
#define EFER_NXE (UINT64_C(1) << 11)
#define RFLAGS_DF (UINT64_C(1) << 10)
#define RFLAGS_TF (UINT64_C(1) << 8)
#define RFLAGS_IF (UINT64_C(1) << 9)
#define RFLAGS_RF (UINT64_C(1) << 16)
#define RFLAGS_AC (UINT64_C(1) << 18)
#define RFLAGS_ARITHMETIC UINT64_C(0x8d5) /* OF SF ZF AF PF CF */

enum { VECTOR_DB = 1, VECTOR_BP = 3, VECTOR_OF = 4, VECTOR_UD = 6, VECTOR_GP = 13, VECTOR_PF = 14 };

/* The interruption-information word: SDM volume 3, 25.8.3. */
#define EVENT_VALID (1u << 31)
#define EVENT_HAS_CODE (1u << 11)
#define EVENT_TYPE 0x700u
enum { EVENT_EXTERNAL = 0 << 8, EVENT_EXCEPTION = 3 << 8, EVENT_SOFT_INTERRUPT = 4 << 8, EVENT_PRIVILEGED = 5 << 8,
       EVENT_SOFT_EXCEPTION = 6 << 8 };

/* What waits to be finished: rift_hvf_x86.open. */
enum x86_open { OPEN_NOTHING, OPEN_IN, OPEN_INS, OPEN_MMIO, OPEN_RDMSR, OPEN_WRMSR, OPEN_HYPERCALL };

/* -- instructions that access memory ------------------------------------------------------------------ */

enum x86_operation {
    OP_NONE,
    OP_LOAD,         /* register = memory, zero-extended */
    OP_LOAD_SIGNED,  /* register = memory, sign-extended */
    OP_LOAD_VECTOR,  /* vector register = memory, the rest zero */
    OP_STORE,        /* memory = register */
    OP_STORE_VECTOR, /* memory = vector register */
    OP_STORE_IMMEDIATE,
    OP_STORE_FLAG,   /* SETcc; `condition` */
    OP_ADD, OP_OR, OP_ADC, OP_SBB, OP_AND, OP_SUB, OP_XOR, OP_COMPARE, OP_TEST, /* 7 to 14, as `direction` says */
    OP_INCREMENT, OP_DECREMENT, OP_NOT, OP_NEGATE,
    OP_EXCHANGE, OP_EXCHANGE_ADD, OP_COMPARE_EXCHANGE,
    OP_BIT_TEST, OP_BIT_SET, OP_BIT_RESET, OP_BIT_COMPLEMENT, /* with the bit number in `immediate` */
    OP_MOVE_STRING, OP_STORE_STRING, OP_LOAD_STRING, OP_INPUT_STRING, OP_OUTPUT_STRING
};

/* Where the other operand of an arithmetic operation is, and where its result goes. */
enum x86_direction { TO_MEMORY_FROM_REGISTER, TO_MEMORY_FROM_IMMEDIATE, TO_REGISTER_FROM_MEMORY };

#define NO_REGISTER 0xFF

struct x86_instruction {
    uint8_t length;
    uint8_t operation; /* enum x86_operation */
    uint8_t direction; /* enum x86_direction */
    uint8_t size;      /* of the access: 1, 2, 4, 8 or 16 bytes */
    uint8_t width;     /* of the register: 1, 2, 4, 8 or 16 bytes */
    uint8_t reg;       /* 0 to 15, the manual's encoding */
    uint8_t high;      /* the register is AH, CH, DH or BH */
    uint8_t condition; /* of SETcc: the low 4 bits of the opcode */
    uint8_t repeated;  /* REP */
    uint8_t address_size; /* 4 or 8 */
    uint8_t segment;   /* enum x86_segment that the address uses */
    uint8_t base, index, scale; /* registers, or NO_REGISTER; scale as a shift */
    uint8_t rip_relative;
    uint64_t immediate;    /* sign-extended */
    uint64_t displacement; /* sign-extended; the whole address of the MOVs with an absolute one */
};

/* Decodes a 64-bit mode instruction that accesses memory, from at most `bytes` (15) bytes. Returns 0; 1: more
 * bytes are needed; -1: it is none that can be carried out here. */
int rift_hvf_x86_instruction(const uint8_t *code, uint32_t bytes, struct x86_instruction *instruction);

/* The result of an arithmetic operation on `size` bytes, and its flags in *flags (RFLAGS_ARITHMETIC). */
uint64_t rift_hvf_x86_arithmetic(uint32_t operation, uint32_t size, uint64_t left, uint64_t right, uint64_t *flags);

/* Whether condition code `condition` holds: SDM volume 1, appendix B. */
int rift_hvf_x86_condition(uint32_t condition, uint64_t flags);

/* -- the state of a vCPU ------------------------------------------------------------------------------ */

enum { X86_FPU_BYTES = 4096 }; /* hv_vcpu_read_fpstate's buffer: an XSAVE image in the standard format */

enum { X86_MSR_COUNT = 11 };
/* The MSRs that are registers of the table, or native, or both. */
extern const uint32_t rift_hvf_x86_msrs[X86_MSR_COUNT];

struct rift_hvf_x86 {
    uint32_t cpu_based;      /* what CTRL_CPU_BASED has without debugging and windows */
    uint32_t cpu_may;        /* bits of it that may be 1 */
    uint32_t entry_controls; /* what CTRL_VMENTRY_CONTROLS has, but for IA32E */
    uint32_t entry_may;
    uint64_t cr8, pat, apic_base;  /* registers that the framework does not keep */
    uint64_t msrs[X86_MSR_COUNT];  /* those that could not be made native */
    uint32_t native;               /* bit mask of those that could, by index */
    uint32_t fpu_valid, fpu_changed;
    uint32_t avx_offset;           /* of the upper halves of YMM in the XSAVE image; 0: no AVX */
    uint32_t reason;               /* of the last exit */
    uint64_t qualification, rip;   /* rip: of the instruction that exited */
    uint32_t length;               /* its length, where the hypervisor tells */
    uint32_t event, event_code, event_length; /* to be delivered at the next entry; event 0: nothing */
    uint32_t repeats;              /* how often the same exit has led straight back into the guest */
    uint64_t repeated_gpa, repeated_rip;
    /* the open access */
    uint32_t open;                 /* enum x86_open */
    uint32_t open_size, open_msr;
    struct x86_instruction instruction;
    uint64_t access_gpa;
    uint64_t access_words[2]; /* read so far, or still to be written */
    uint32_t access_part;     /* of a 16-byte access: 0 or 1 */
    /* debugging: the host's points, and the guest's own DR0 to DR3 and DR7 meanwhile */
    uint32_t debug_step, debug_software, debug_count, debug_active;
    uint64_t debug_address[4], debug_control, guest_debug[5];
    uint8_t fpu[X86_FPU_BYTES] __attribute__((aligned(64)));
};

static inline struct rift_hvf_x86 *x86_of(const struct rift_hvf_cpu *cpu) {
    return cpu->state;
}

/* -- hvf_x86_64.c: calls, controls --------------------------------------------------------------------- */

int rift_hvf_x86_get(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_set(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error);
int rift_hvf_x86_vmread(const struct rift_hvf_cpu *cpu, uint32_t field, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_vmwrite(const struct rift_hvf_cpu *cpu, uint32_t field, uint64_t value, struct rift_error *error);
int rift_hvf_x86_flush(struct rift_hvf_cpu *cpu, struct rift_error *error);
/* The framework's number of a general register in the manual's encoding (0 RAX, 1 RCX, ... 15 R15). */
uint32_t rift_hvf_x86_general(uint32_t encoding);
/* CTRL_CPU_BASED and the exception bitmap, as debugging wants them. */
int rift_hvf_x86_apply_controls(struct rift_hvf_cpu *cpu, struct rift_error *error);

/* -- hvf_x86_64_system.c: control registers, MSRs, CPUID, XSETBV ---------------------------------------- */

int rift_hvf_x86_write_cr0(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
int rift_hvf_x86_write_cr4(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
int rift_hvf_x86_write_efer(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
/* A control register as the guest sees it: bits that its mask covers come from the shadow. */
int rift_hvf_x86_read_masked(const struct rift_hvf_cpu *cpu, uint32_t field, uint32_t mask, uint32_t shadow,
                             uint64_t *value, struct rift_error *error);
int rift_hvf_x86_read_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_write_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t value, struct rift_error *error);
/* The exits; each finishes its instruction, or queues the exception that it raises. Return as `decode`. */
int rift_hvf_x86_exit_cpuid(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_xsetbv(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_mov_cr(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_msr(struct rift_hvf_cpu *cpu, int write, struct rift_exit *exit, struct rift_error *error);

/* -- hvf_x86_64_cpuid.c -------------------------------------------------------------------------------- */

/* What the guest sees, in EAX, EBX, ECX, EDX. `osxsave`: CR4 has the bit. */
void rift_hvf_x86_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t index, int osxsave, uint64_t xcr0, uint32_t result[4]);
/* The XCR0 bits that the host's CPU has and that a guest may use; 0 on a host of another kind. */
uint64_t rift_hvf_x86_host_xcr0(void);
/* Bits of a physical address. */
uint32_t rift_hvf_x86_host_address_bits(void);
/* Where YMM_Hi128 stands in the standard XSAVE format; 0: there is no AVX. */
uint32_t rift_hvf_x86_host_avx_offset(void);

/* -- hvf_x86_64_exits.c -------------------------------------------------------------------------------- */

int rift_hvf_x86_enter(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_decode(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_complete(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error);
/* RIP to behind the instruction that exited. */
int rift_hvf_x86_advance(struct rift_hvf_cpu *cpu, uint32_t length, struct rift_error *error);
/* An exception of the guest at the instruction that exited. Returns RIFT_HVF_REENTER. */
int rift_hvf_x86_raise(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code);
/* The privilege level, 0 to 3. */
int rift_hvf_x86_privilege(const struct rift_hvf_cpu *cpu, uint32_t *level, struct rift_error *error);
int rift_hvf_x86_inject(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error);

/* -- hvf_x86_64_io.c, hvf_x86_64_mmio.c: accesses to ports and to guest-physical addresses without memory ---- */

int rift_hvf_x86_exit_io(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_complete_io(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
int rift_hvf_x86_exit_ept(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_complete_mmio(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit,
                               struct rift_error *error);
/* An instruction that this code cannot carry out: FAIL_ENTRY with its bytes. */
int rift_hvf_x86_cannot(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
/* A general register as an operand of `width` bytes; `high`: AH to BH. Written as the CPU does: 4 bytes clear the
 * upper half, 1 and 2 keep the rest. */
int rift_hvf_x86_read_operand(const struct rift_hvf_cpu *cpu, uint32_t encoding, uint32_t width, int high,
                              uint64_t *value, struct rift_error *error);
int rift_hvf_x86_write_operand(const struct rift_hvf_cpu *cpu, uint32_t encoding, uint32_t width, int high,
                               uint64_t value, struct rift_error *error);
/* RSI and RDI one element on, RCX one less, and RIP on when the string is done. */
int rift_hvf_x86_string_step(struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction, int source,
                             int destination, struct rift_error *error);

/* -- hvf_x86_64_memory.c: the guest's memory as its own code sees it ------------------------------------ */

enum x86_access { ACCESS_READ = 0, ACCESS_WRITE = 2, ACCESS_FETCH = 16 }; /* the bits of a #PF's error code */

/* The instruction at x86->rip: as many of 15 bytes as can be read. */
int rift_hvf_x86_fetch(const struct rift_hvf_cpu *cpu, uint8_t code[15], uint32_t *bytes, struct rift_error *error);
/* The linear address of the instruction's memory operand. */
int rift_hvf_x86_linear(const struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction, uint64_t *linear,
                        struct rift_error *error);
/* Copies `bytes` from or (ACCESS_WRITE) to a linear address. Returns 0; 1: there is no memory; 2: a page fault, with
 * its error code in *code and its address in *fault; -1: a call failed. */
int rift_hvf_x86_copy(const struct rift_hvf_cpu *cpu, uint64_t linear, void *data, uint32_t bytes,
                      enum x86_access access, uint64_t *fault, uint32_t *code, struct rift_error *error);
/* Whether a copy would work; the same results. */
int rift_hvf_x86_check(const struct rift_hvf_cpu *cpu, uint64_t linear, uint32_t bytes, enum x86_access access,
                       uint64_t *fault, uint32_t *code, struct rift_error *error);

/* -- hvf_x86_64_registers.c, hvf_x86_64_state.c, hvf_x86_64_debug.c -------------------------------------- */

enum { X86_REGISTER_COUNT = 130 };
extern const struct rift_hvf_register rift_hvf_x86_registers[X86_REGISTER_COUNT];
int rift_hvf_x86_read(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error);
int rift_hvf_x86_write(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error);
/* Fetches the XSAVE image, or writes it if it was changed. */
int rift_hvf_x86_fetch_fpu(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_store_fpu(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_save(struct rift_hvf_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_hvf_x86_restore(struct rift_hvf_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);

int rift_hvf_x86_set_debug(struct rift_hvf_cpu *cpu, const struct rift_hvf_debug *debug, struct rift_error *error);
/* DR0 to DR3 and DR7 (`which` 4) as the guest sees them. */
int rift_hvf_x86_read_debug(const struct rift_hvf_cpu *cpu, uint32_t which, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_write_debug(struct rift_hvf_cpu *cpu, uint32_t which, uint64_t value, struct rift_error *error);
int rift_hvf_x86_exit_exception(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_exit_mov_dr(struct rift_hvf_cpu *cpu, struct rift_error *error);

#endif
