/* Shared by the C files of the x86-64 binding. Numbers without another source: Intel SDM volume 3. */
#ifndef RIFT_EMULATOR_X86_64_H
#define RIFT_EMULATOR_X86_64_H

#include "emulator_binding.h"
#include "emulator_services.h"
#include "unicorn_engine.h"

/* Register ids of the engine's x86.h. */
enum {
    UNICORN_RIP = 41, UNICORN_CS = 11, UNICORN_CR2 = 52, UNICORN_CR0 = 50, UNICORN_CR3 = 53, UNICORN_CR4 = 54,
    UNICORN_DR0 = 66, UNICORN_DR3 = 69, UNICORN_DR6 = 72, UNICORN_DR7 = 73,
    UNICORN_RFLAGS = 253, UNICORN_FS_BASE = 250, UNICORN_GS_BASE = 251, UNICORN_MSR = 248,
    UNICORN_IDTR = 242, UNICORN_GDTR = 243, UNICORN_LDTR = 244, UNICORN_TR = 245,
    UNICORN_XMM0 = 122, UNICORN_ST0 = 114, UNICORN_FPSW = 31, UNICORN_FPCW = 246, UNICORN_FPTAG = 247,
    UNICORN_MXCSR = 249, UNICORN_FIP = 254, UNICORN_FCS = 255, UNICORN_FDP = 256, UNICORN_FDS = 257, UNICORN_FOP = 258
};

/* The general registers by their number in instructions: RAX RCX RDX RBX RSP RBP RSI RDI R8 ... R15. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, X86_GENERAL_COUNT = 16 };
extern const int rift_emulator_x86_general[X86_GENERAL_COUNT]; /* their ids */

/* uc_x86_mmr and uc_x86_msr. */
struct unicorn_table {
    uint16_t selector;
    uint64_t base;
    uint32_t limit, flags;
};
struct unicorn_msr {
    uint32_t number;
    uint64_t value;
};

/* Where the engine keeps what it has no name for: offsets into a saved context, found by emulator_x86_64_layout.c. */
struct x86_layout {
    size_t general, rip, hidden_flags, segments, cr, efer, xcr0, dr;
    size_t error_code, is_interrupt, next_rip, old_exception, vmcb, intercepts;
};
extern struct x86_layout rift_emulator_x86_layout;

/* SegmentCache: selector, base, limit, and flags, which are bits 63:32 of the descriptor. */
enum { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_LDTR, X86_TR, X86_GDTR, X86_IDTR };
#define SEGMENT_SIZE 24
#define SEGMENT_BASE 8
#define SEGMENT_LIMIT 16
#define SEGMENT_FLAGS 20

enum {
    FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_IOPL_SHIFT = 12, FLAG_NT = 1 << 14, FLAG_RF = 1 << 16,
    FLAG_VM = 1 << 17, FLAG_AC = 1 << 18
};
#define CR0_PG (UINT64_C(1) << 31)
#define CR0_WP (UINT64_C(1) << 16)
#define CR4_SMAP (UINT64_C(1) << 21)
#define CR4_LA57 (UINT64_C(1) << 12)
#define EFER_SCE UINT64_C(1)
#define EFER_LMA (UINT64_C(1) << 10)
#define EFER_NXE (UINT64_C(1) << 11)

/* Descriptor flags, as in bits 63:32. */
#define DESCRIPTOR_DPL_SHIFT 13
#define DESCRIPTOR_S (1u << 12)
#define DESCRIPTOR_P (1u << 15)
#define DESCRIPTOR_CODE (1u << 11)
#define DESCRIPTOR_CONFORMING (1u << 10)
#define DESCRIPTOR_ACCESSED (1u << 8)
#define DESCRIPTOR_L (1u << 21)
#define DESCRIPTOR_B (1u << 22)
#define DESCRIPTOR_G (1u << 23)

#define DR6_STEP (UINT64_C(1) << 14) /* BS */

/* The engine's hidden flags (hflags). */
#define HIDDEN_CPL 3u
#define HIDDEN_INHIBIT (1u << 3) /* the shadow of STI and MOV SS */
#define HIDDEN_GUEST (1u << 21)  /* intercepts are on */
#define HIDDEN_IO_BREAKPOINTS (1u << 24)

/* Exceptions. */
enum { X86_DB = 1, X86_BP = 3, X86_UD = 6, X86_DF = 8, X86_TS = 10, X86_NP = 11, X86_SS_FAULT = 12, X86_GP = 13, X86_PF = 14 };

/* What the engine reports of its own virtualization extension: EXCP_VMEXIT and AMD's exit codes (APM volume 2,
 * appendix C). */
enum { X86_VMEXIT = 0x100, X86_VMEXIT_HLT = 0x78, X86_VMEXIT_MSR = 0x7C, X86_VMEXIT_MWAIT = 0x8B };

/* What the last exit left open. */
enum x86_open { X86_CLOSED = 0, X86_READ = 1, X86_WRITE = 2 };
enum x86_open_kind { X86_OPEN_IN, X86_OPEN_INS, X86_OPEN_MSR, X86_OPEN_CALL };

struct x86_undo {
    uint64_t rip, rax, rcx, rdx, rsi, rdi;
};

/* An IN or OUT that must be the last instruction before the engine is left, or that must not happen. */
struct x86_port {
    int active;
    int verdict; /* enum rift_emulator_verdict, or X86_PORT_FAULT */
    uint32_t number, size, is_write;
    uint64_t value;
    uint64_t dr3, dr6, dr7; /* the guest's */
};
#define X86_PORT_FAULT (-1)

struct x86 {
    struct unicorn_context *view; /* for looks, while cpu->context is being edited */
    int armed;         /* the trap flag is ours */
    int guest_tf;      /* what the guest believes */
    uint64_t step_dr6; /* DR6 before the step */
    uint8_t step_opcode;
    struct x86_port port;
    struct x86_undo undo; /* registers before the instruction of the last exit */
    enum x86_open_kind kind;
    uint64_t open_address; /* INS: where the answer goes */
    uint32_t open_size;
    int pending_exception; /* a vector, or -1 */
    uint32_t pending_code;
    int pending_interrupt; /* a vector, or -1 */
};

/* -- the copy of the CPU's state: emulator_x86_64_image.c -------------------------------------------- */

static inline uint8_t *x86_at(struct unicorn_context *context, size_t offset) {
    return (uint8_t *)context + offset;
}
uint64_t x86_get(struct unicorn_context *context, size_t offset);
void x86_set(struct unicorn_context *context, size_t offset, uint64_t value);
uint32_t x86_get32(struct unicorn_context *context, size_t offset);
void x86_set32(struct unicorn_context *context, size_t offset, uint32_t value);
uint64_t x86_general(struct unicorn_context *context, int number);
void x86_set_general(struct unicorn_context *context, int number, uint64_t value);
uint64_t x86_flags(struct unicorn_context *context);
void x86_set_flags(struct unicorn_context *context, uint64_t value);
uint32_t x86_cpl(struct unicorn_context *context);
/* Sets a segment register; CS and SS take effect with x86_refresh. */
void x86_set_segment(struct unicorn_context *context, int segment, uint32_t selector, uint64_t base, uint32_t limit,
                     uint32_t flags);
/* Recomputes the hidden flags from segments and control registers. */
void x86_refresh(struct unicorn_context *context);
void x86_load(struct rift_emulator_cpu *cpu);  /* engine -> cpu->context */
void x86_store(struct rift_emulator_cpu *cpu); /* cpu->context -> engine */
uint64_t x86_register(struct rift_emulator_cpu *cpu, int id); /* of the engine, up to 64 bits */
void x86_set_register(struct rift_emulator_cpu *cpu, int id, uint64_t value);

/* -- memory: emulator_x86_64_memory.c ---------------------------------------------------------------- */

struct x86_fault {
    int vector;
    uint32_t code;
    uint64_t address; /* of a page fault */
};

/* As supervisor, by the page tables of `context`. 0, or -1 with the fault that it would be. */
int x86_read(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, void *data,
             uint32_t bytes, struct x86_fault *fault);
int x86_write(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, const void *data,
              uint32_t bytes, struct x86_fault *fault);
/* Without marks and checks. 0, or -1. */
int x86_look(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, uint64_t *physical);
int x86_translate(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *physical);

/* An instruction's opcode bytes behind its prefixes. */
struct x86_instruction {
    uint8_t opcode[3];
    uint32_t prefixes; /* bytes */
    int repeated, address32;
};
/* 0, or -1 if the bytes cannot be read. */
int x86_fetch(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t rip,
              struct x86_instruction *instruction);

/* -- exceptions: emulator_x86_64_delivery.c ----------------------------------------------------------- */

/* Delivers into cpu->context; `software`: INT n, INT3, INTO. Returns enum rift_emulator_flow: LEAVE after a triple
 * fault, whose exit has been made. */
int x86_deliver(struct rift_emulator_cpu *cpu, int vector, int software, uint32_t code);
int x86_has_code(int vector);

/* -- hooks -------------------------------------------------------------------------------------------- */

int x86_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error); /* emulator_x86_64_hooks.c */
int x86_arm(struct rift_emulator_cpu *cpu, uint64_t *pc);
void x86_disarm(struct rift_emulator_cpu *cpu);
/* Behind an instruction that leaves the engine: the shadow of STI ends with it, and the guest's own trap flag has its
 * #DB pending. With cpu->context loaded, and the guest's flags in it. */
void x86_instruction_over(struct rift_emulator_cpu *cpu);
void x86_end_step(struct rift_emulator_cpu *cpu, uint64_t rip); /* after an exception, with cpu->context loaded */
int x86_port_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error); /* emulator_x86_64_ports.c */
void x86_port_done(struct rift_emulator_cpu *cpu);
void x86_port_complete(struct rift_emulator_cpu *cpu, uint64_t value);
int x86_syscall_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error); /* emulator_x86_64_syscall.c */
void x86_vmexit(struct rift_emulator_cpu *cpu, int code); /* emulator_x86_64_intercepts.c */
int x86_hypercall(struct rift_emulator_cpu *cpu);
void *x86_intercept_pages(void); /* the engine's control block, and which MSRs it intercepts */
void x86_intercept(struct unicorn_context *context); /* turns the intercepts on */
void x86_remember(struct rift_emulator_cpu *cpu); /* undo, from cpu->context */
void x86_undo_open(struct rift_emulator_cpu *cpu);

#define X86_INTERCEPT_GPA (UINT64_C(1) << 44) /* beyond what page tables can name */
#define X86_INTERCEPT_BYTES 0x3000

/* -- the rest ------------------------------------------------------------------------------------------- */

extern const struct rift_emulator_register rift_emulator_x86_registers[];
extern const uint32_t rift_emulator_x86_register_count;
int x86_read_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error);
int x86_write_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error);
int x86_learn(struct rift_error *error);

#endif
