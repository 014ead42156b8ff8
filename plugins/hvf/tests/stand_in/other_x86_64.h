/* A second Hypervisor.framework of Intel Macs, over the Unicorn engine: shared by its files.
 *
 * Written from the headers and the Intel SDM for itself; it shares no code with the first, and makes other choices. It
 * is an older CPU: MOV CR3 always exits, INVPCID and XSAVES are missing, controls have few free bits. The engine is
 * stopped before each instruction that concerns the hypervisor or that the engine does not do as the manual says
 * (other_x86_64_instructions.c); exceptions are delivered here (other_x86_64_events.c).
 *
 * Not here: exceptions outside of long mode, NMIs, the local APIC, task switches, SMM. AVX state is kept, but the engine
 * does not execute AVX. A hostile guest can bring the engine into states that no CPU has, as IRET in long mode to virtual
 * 8086 mode, or a null TR: the next entry is refused then. */
#ifndef OTHER_X86_64_H
#define OTHER_X86_64_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unicorn/unicorn.h>

/* 1: the CPU has no preemption timer, so that there is no hv_vcpu_run_until, and exits do not save EFER. */
#ifndef POOR_CPU
#define POOR_CPU 0
#endif

typedef int32_t hv_return_t;

#define SUCCESS ((hv_return_t)0)
#define ERROR ((hv_return_t)0xfae94001)
#define BUSY ((hv_return_t)0xfae94002)
#define BAD_ARGUMENT ((hv_return_t)0xfae94003)
#define NO_RESOURCES ((hv_return_t)0xfae94005)
#define NO_DEVICE ((hv_return_t)0xfae94006)
#define UNSUPPORTED ((hv_return_t)0xfae9400f)

/* VMCS: SDM volume 3, appendix B. Of segments the first, ES; the others follow in the order of enum segment. */
enum field {
    F_SELECTOR = 0x0800, F_TSC_OFFSET = 0x2010, F_GPA = 0x2400, F_LINK = 0x2800, F_EFER = 0x2806, F_PIN = 0x4000,
    F_CPU = 0x4002, F_EXCEPTIONS = 0x4004, F_PF_MASK = 0x4006, F_PF_MATCH = 0x4008, F_EXIT = 0x400c, F_ENTRY = 0x4012,
    F_EVENT = 0x4016, F_EVENT_CODE = 0x4018, F_EVENT_LENGTH = 0x401a, F_CPU2 = 0x401e, F_REASON = 0x4402,
    F_INFO = 0x4404, F_INFO_CODE = 0x4406, F_VECTORING = 0x4408, F_VECTORING_CODE = 0x440a, F_LENGTH = 0x440c,
    F_INSTRUCTION = 0x440e, F_LIMIT = 0x4800, F_GDTR_LIMIT = 0x4810, F_IDTR_LIMIT = 0x4812, F_RIGHTS = 0x4814,
    F_SHADOW = 0x4824, F_ACTIVITY = 0x4826, F_SYSENTER_CS = 0x482a, F_CR0_MASK = 0x6000, F_CR4_MASK = 0x6002,
    F_CR0_SHADOW = 0x6004, F_CR4_SHADOW = 0x6006, F_QUALIFICATION = 0x6400, F_LINEAR = 0x640a, F_CR0 = 0x6800,
    F_CR3 = 0x6802, F_CR4 = 0x6804, F_BASE = 0x6806, F_GDTR_BASE = 0x6816, F_IDTR_BASE = 0x6818, F_DR7 = 0x681a,
    F_RSP = 0x681c, F_RIP = 0x681e, F_RFLAGS = 0x6820, F_PENDING_DEBUG = 0x6822, F_SYSENTER_ESP = 0x6824,
    F_SYSENTER_EIP = 0x6826, F_END = 0x6828
};

enum segment { ES, CS, SS, DS, FS, GS, LDTR, TR };
enum { UNUSABLE = 0x10000 };

enum { CPU_WINDOW = 1 << 2, CPU_TSC_OFFSET = 1 << 3, CPU_HLT = 1 << 7, CPU_MWAIT = 1 << 10, CPU_RDPMC = 1 << 11,
       CPU_RDTSC = 1 << 12, CPU_CR3_LOAD = 1 << 15, CPU_CR3_STORE = 1 << 16, CPU_CR8_LOAD = 1 << 19,
       CPU_CR8_STORE = 1 << 20, CPU_MOV_DR = 1 << 23, CPU_IO = 1 << 24, CPU_STEP = 1 << 27, CPU_MONITOR = 1 << 29 };
enum { CPU2_RDTSCP = 1 << 3, CPU2_WBINVD = 1 << 6 };
enum { ENTRY_LONG = 1 << 9, EXIT_SAVE_EFER = 1 << 20 };

enum { PE = 1, TS = 8, NE = 1 << 5, WP = 1 << 16 };
#define PG (1u << 31)
enum { PAE = 1 << 5, PCE = 1 << 8, TSD = 1 << 2, DE = 1 << 3, VMXE = 1 << 13, PCIDE = 1 << 17, SMEP = 1 << 20, SMAP = 1 << 21 };
enum { SCE = 1, LME = 1 << 8, LMA = 1 << 10, NXE = 1 << 11 };
enum { TF = 1 << 8, IF = 1 << 9, DF = 1 << 10, NT = 1 << 14, RF = 1 << 16, VM = 1 << 17, AC = 1 << 18 };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R11 = 11 };

/* Interruption information: SDM volume 3, 25.8.3. */
#define VALID (1u << 31)
enum { HAS_CODE = 1 << 11, EXTERNAL = 0 << 8, NMI = 2 << 8, EXCEPTION = 3 << 8, SOFT_INTERRUPT = 4 << 8,
       PRIVILEGED = 5 << 8, SOFT_EXCEPTION = 6 << 8, EVENT_TYPE = 7 << 8 };
enum { STEPPED = 1 << 14 }; /* BS */
enum { DB = 1, BP = 3, UD = 6, DOUBLE = 8, TS_FAULT = 10, NP = 11, SS_FAULT = 12, GP = 13, PF = 14 };

enum reason {
    R_EXCEPTION = 0, R_INTERRUPT = 1, R_TRIPLE_FAULT = 2, R_WINDOW = 7, R_CPUID = 10, R_HLT = 12, R_INVD = 13,
    R_RDPMC = 15, R_RDTSC = 16, R_VMCALL = 18, R_VMLAUNCH = 20, R_VMRESUME = 24, R_VMXOFF = 26, R_MOV_CR = 28,
    R_MOV_DR = 29, R_IO = 30, R_RDMSR = 31, R_WRMSR = 32, R_MWAIT = 36, R_STEP = 37, R_MONITOR = 39, R_EPT = 48,
    R_RDTSCP = 51, R_WBINVD = 54, R_XSETBV = 55
};
#define R_BAD_STATE 0x80000021u

enum { MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK, MSR_KERNEL_GS, MSR_TSC_AUX, MSR_KEPT };
enum { XSAVE_BYTES = 512 + 64 + 256, VCPUS = 8 };

/* Why the engine stopped: before an instruction, or in its middle. */
enum cause { C_NONE, C_SLICE, C_KICK, C_STEP, C_WINDOW, C_DEBUG, C_BREAKPOINT, C_INSTRUCTION, C_EXCEPTION, C_MEMORY };

/* What became of an attempt: go on in the guest, or an exit has been written down. */
enum outcome { GO_ON, LEFT };

struct vcpu {
    uint32_t number;
    pthread_t thread;
    uc_engine *uc;
    uc_context *context;
    unsigned layout;   /* of the memory that the engine has */
    bool forget;       /* translations, before the next entry */
    bool first_touch;  /* this run shows what the kernel deals with otherwise */
    atomic_int wanted; /* hv_vcpu_interrupt */
    uint64_t fields[F_END / 2];
    uint64_t general[16]; /* in the manual's order; RSP is F_RSP's */
    uint64_t cr2, cr8, xcr0, efer, dr[4], dr6, msr[MSR_KEPT];
    uint8_t avx[256];
    unsigned native; /* bits by index of the table in other_x86_64_state.c */
    /* of one entry */
    enum cause cause;
    unsigned vector, code; /* C_EXCEPTION; `address` is a page fault's */
    int access;            /* C_MEMORY: uc_mem_type */
    bool populated;        /* by a walk FOR_ENGINE */
    uint64_t address;      /* C_MEMORY: guest-physical */
    unsigned length;       /* of the instruction that was begun last */
    unsigned executed, left;
    uint64_t code_linear, code_gpa; /* the page of the instruction that was looked at last */
    uint64_t begun;        /* where the last of them is; what cannot be fetched has not begun */
    bool pass;             /* the instruction is the engine's, though it is on the list */
    unsigned shadow, next_shadow; /* 1 STI, 2 MOV SS */
    bool resume;           /* RFLAGS.RF: no breakpoint at the next instruction */
    unsigned hits;         /* debug conditions of the instruction before, as DR6 has them: B0 to B3, BS */
    unsigned delivering;   /* the event on its way, as interruption information; 0: none */
    uint32_t delivering_code;
    uint64_t watched[4];   /* guest-physical */
};

#define FIELD(cpu, field) ((cpu)->fields[(field) / 2])
#define SEGMENT(cpu, field, segment) ((cpu)->fields[((field) + 2 * (segment)) / 2])

static inline unsigned privilege(const struct vcpu *cpu) {
    return SEGMENT(cpu, F_RIGHTS, SS) >> 5 & 3;
}
static inline bool long_code(const struct vcpu *cpu) {
    return (cpu->efer & LMA) && (SEGMENT(cpu, F_RIGHTS, CS) >> 13 & 1);
}
static inline bool canonical(uint64_t address) {
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/* -- other_x86_64.c: the VM's memory, in whose use threads take turns */
void turn_take(void);
void turn_give(void);
bool turn_wanted(void);
/* The host's bytes up to the end of the page, if the VM has them with these flags; `flags` 0: any. */
uint8_t *memory_at(uint64_t gpa, unsigned flags);
unsigned memory_flags(uint64_t gpa); /* 0: there is none */
/* Lets the engine have what is around `gpa`. False: there is nothing, or it has it. */
bool memory_populate(struct vcpu *cpu, uint64_t gpa);
void memory_renew(struct vcpu *cpu);

struct vcpu *vcpu_of_thread(uint32_t number); /* NULL: there is none, or it is another thread's */

/* -- other_x86_64_run.c; `first_touch`: exits that the kernel deals with otherwise are shown */
hv_return_t vcpu_run(struct vcpu *cpu, bool first_touch);

/* -- other_x86_64_state.c */
hv_return_t vcpu_reset(struct vcpu *cpu);
uint64_t *msr_place(struct vcpu *cpu, uint32_t msr); /* of a native one that is enabled, but for the TSC; or NULL */
bool msr_is_native(const struct vcpu *cpu, uint32_t msr);
uint64_t tsc_now(const struct vcpu *cpu);
bool controls_allowed(const struct vcpu *cpu);

/* -- other_x86_64_engine.c */
bool engine_open(struct vcpu *cpu);
void engine_load(struct vcpu *cpu);
void engine_unload(struct vcpu *cpu);
void engine_run(struct vcpu *cpu); /* sets cpu->cause */

/* -- other_x86_64_entry.c */
bool entry_allowed(const struct vcpu *cpu);
void leave(struct vcpu *cpu, uint32_t reason, uint64_t qualification);
void leave_instruction(struct vcpu *cpu, uint32_t reason, uint64_t qualification); /* with its length */

/* -- other_x86_64_events.c */
/* 0; 1: a page fault with *code; 2: no memory behind a table, at *gpa. `access`: the bits of an error code; WHOEVER:
 * rights do not count; FOR_ENGINE: the engine is given the tables as well. */
enum { WHOEVER = 1 << 8, FOR_ENGINE = 1 << 9 };
int walk(struct vcpu *cpu, uint64_t linear, unsigned access, uint64_t *gpa, uint32_t *code);
/* As supervisor. NULL: there is nothing. */
const uint8_t *look(struct vcpu *cpu, uint64_t linear);
enum outcome ept_violation(struct vcpu *cpu, uint64_t gpa, unsigned access, bool translated);
/* An exception, an exit if the bitmap says so. `type`: how it came about. */
enum outcome raise_exception(struct vcpu *cpu, unsigned vector, unsigned type, uint32_t code, uint64_t qualification);
/* Any event, through the IDT. */
enum outcome deliver(struct vcpu *cpu, unsigned info, uint32_t code, uint64_t back);
bool port_allowed(struct vcpu *cpu, unsigned port, unsigned size);

/* -- other_x86_64_instructions.c */
bool instruction_concerns(struct vcpu *cpu, uint64_t rip); /* before each instruction, in the engine */
enum outcome instruction_carry_out(struct vcpu *cpu);

#endif
