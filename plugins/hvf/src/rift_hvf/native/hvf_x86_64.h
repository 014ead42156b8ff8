/* Shared by the C files of the x86-64 binding. */
#ifndef RIFT_HVF_X86_64_H
#define RIFT_HVF_X86_64_H

#include "hvf_internal.h"
#include "hvf_x86_64_constants.h"
#include "hvf_x86_64_instruction.h"
#include "rift_xsave.h"

/* What waits to be finished: rift_hvf_x86.open. */
enum x86_open { OPEN_NOTHING, OPEN_IN, OPEN_INS, OPEN_MMIO, OPEN_RDMSR, OPEN_WRMSR, OPEN_HYPERCALL };

/* -- the state of a vCPU ------------------------------------------------------------------------------ */

enum { X86_FPU_BYTES = 4096 }; /* hv_vcpu_read_fpstate's buffer: an XSAVE image in the standard format */

enum { X86_MSR_COUNT = 11 };
/* The MSRs that are registers of the table, or native, or both. */
extern const uint32_t rift_hvf_x86_msrs[X86_MSR_COUNT];

/* 16 bytes on two pages: 9 and 7 of them are 8, 1 and 7. */
enum { X86_MOST_PARTS = 4 };

/* A part of an access to a device: at most 8 bytes on one page. */
struct x86_part {
    uint64_t gpa;
    uint32_t offset, size; /* of and in the whole */
};

struct rift_hvf_x86 {
    uint32_t cpu_based;      /* what CTRL_CPU_BASED has without debugging and windows */
    uint32_t cpu_may;        /* bits of it that may be 1 */
    uint32_t cpu_based2, exit_controls;
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
    uint32_t interrupt;            /* vector of an external interrupt that waits; 0: none */
    uint32_t no_deadlines;         /* hv_vcpu_run_until is there, and does not work on this CPU */
    uint32_t window;               /* an exit is asked for when the guest takes interrupts */
    struct rift_hvf_repeats repeats;
    /* the open access */
    uint32_t open;                 /* enum x86_open */
    uint32_t open_size, open_msr;
    struct x86_instruction instruction;
    struct x86_part parts[X86_MOST_PARTS];
    uint32_t part_count, part_next;
    uint64_t access_words[2]; /* read so far, or still to be written */
    uint32_t access_reading;  /* the answer is what was read; else the rest of a store is to come */
    /* debugging: the host's points, and the guest's own DR0 to DR3 and DR7 meanwhile */
    uint32_t debug_step, debug_software, debug_count, debug_active;
    uint64_t debug_address[4], debug_control, guest_debug[5];
    uint8_t fpu[X86_FPU_BYTES] __attribute__((aligned(64)));
};

static inline struct rift_hvf_x86 *x86_of(const struct rift_hvf_cpu *cpu) {
    return cpu->state;
}

enum x86_access { ACCESS_READ = 0, ACCESS_WRITE = 2, ACCESS_FETCH = 16 }; /* the bits of a #PF's error code */

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

/* -- hvf_x86_64_system.c: control registers, CPUID, XSETBV; hvf_x86_64_msrs.c ---------------------------- */

int rift_hvf_x86_write_cr0(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
int rift_hvf_x86_write_cr4(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
int rift_hvf_x86_write_efer(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error);
/* A control register as the guest sees it: bits that its mask covers come from the shadow. */
int rift_hvf_x86_read_masked(const struct rift_hvf_cpu *cpu, uint32_t field, uint32_t mask, uint32_t shadow,
                             uint64_t *value, struct rift_error *error);
/* EDX:EAX. */
int rift_hvf_x86_read_pair(const struct rift_hvf_cpu *cpu, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_read_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_write_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t value, struct rift_error *error);
/* The exits; each finishes its instruction, or queues the exception that it raises. Return as `decode`. */
int rift_hvf_x86_exit_cpuid(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_rdtsc(struct rift_hvf_cpu *cpu, int rdtscp, struct rift_error *error);
int rift_hvf_x86_exit_xsetbv(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_mov_cr(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_exit_msr(struct rift_hvf_cpu *cpu, int write, struct rift_exit *exit, struct rift_error *error);

/* -- hvf_x86_64_cpuid.c -------------------------------------------------------------------------------- */

/* What the guest sees, in EAX, EBX, ECX, EDX. `osxsave`: CR4 has the bit. */
void rift_hvf_x86_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t index, int osxsave, uint64_t xcr0, uint32_t result[4]);
/* The XCR0 bits that the host's CPU has and that a guest may use; 0 on a host of another kind. */
uint64_t rift_hvf_x86_host_xcr0(void);
/* The host's time-stamp counter; 0 on a host of another kind. */
uint64_t rift_hvf_x86_host_tsc(void);
/* Bits of a physical address. */
uint32_t rift_hvf_x86_host_address_bits(void);
/* Where YMM_Hi128 stands in the standard XSAVE format; 0: there is no AVX. */
uint32_t rift_hvf_x86_host_avx_offset(void);

/* -- hvf_x86_64_exits.c -------------------------------------------------------------------------------- */

int rift_hvf_x86_enter(struct rift_hvf_cpu *cpu, struct rift_error *error);
int rift_hvf_x86_decode(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_complete(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error);
/* What the CPU does at the end of an instruction (`whole`), or of one repetition of it, that is carried out here: the
 * shadow of STI and MOV SS ends (an entry in the shadow of an instruction that is over takes interrupts too late, or is
 * refused), so does the resume flag, which an EPT violation leaves set (it would hide a breakpoint at the next
 * instruction), and the guest's own trap flag gives #DB. SDM volume 3, 25.4.2, 28.3.3, 18.3.1.4. */
int rift_hvf_x86_instruction_over(struct rift_hvf_cpu *cpu, int whole, struct rift_error *error);
/* RIP to behind the instruction that exited, which is over. */
int rift_hvf_x86_advance(struct rift_hvf_cpu *cpu, uint32_t length, struct rift_error *error);
/* An exception of the guest at the instruction that exited. Returns RIFT_HVF_REENTER. */
int rift_hvf_x86_raise(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code);
/* Has an event that was being delivered when the exit occurred delivered again; *delivering says whether one was. */
int rift_hvf_x86_requeue(struct rift_hvf_cpu *cpu, int *delivering, struct rift_error *error);
/* The privilege level, 0 to 3. */
int rift_hvf_x86_privilege(const struct rift_hvf_cpu *cpu, uint32_t *level, struct rift_error *error);
int rift_hvf_x86_inject(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error);

int rift_hvf_x86_interrupt(struct rift_hvf_cpu *cpu, uint32_t vector, struct rift_error *error);
void rift_hvf_x86_drop_events(struct rift_hvf_cpu *cpu);
/* Before an entry: gives the waiting interrupt to the guest, or asks for an exit when it takes one. */
int rift_hvf_x86_offer_interrupt(struct rift_hvf_cpu *cpu, struct rift_error *error);

/* -- hvf_x86_64_io.c, hvf_x86_64_mmio.c: accesses to ports and to guest-physical addresses without memory ---- */

int rift_hvf_x86_exit_io(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_complete_io(struct rift_hvf_cpu *cpu, uint64_t value, int string, struct rift_error *error);
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

/* The linear address in RSI, or RDI. */
int rift_hvf_x86_string_address(const struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction,
                                uint32_t number, uint64_t *linear, struct rift_error *error);
/* Copies the element of x86->instruction at RSI or RDI; `check`: only sees whether that would work. Returns as
 * rift_hvf_x86_copy; a page fault is queued for the guest. */
int rift_hvf_x86_string_memory(struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, enum x86_access access,
                               int check, struct rift_error *error);

/* -- hvf_x86_64_access.c: the parts of such an access ----------------------------------------------------- */

/* The parts of the access of x86->instruction at `linear`, which went to `gpa`. Returns 0; 1: the guest has changed
 * something since; 2: a page fault is queued, since there is no second page; -1. */
int rift_hvf_x86_access_plan(struct rift_hvf_cpu *cpu, uint64_t linear, uint64_t gpa, enum x86_access access,
                             struct rift_error *error);
/* Goes on to the next part that is no memory. Both return 1 with *exit, or 0 when all are done. */
int rift_hvf_x86_access_read(struct rift_hvf_cpu *cpu, struct rift_exit *exit);
int rift_hvf_x86_access_write(struct rift_hvf_cpu *cpu, struct rift_exit *exit);
/* The answer to the exit of a read. */
void rift_hvf_x86_access_answer(struct rift_hvf_cpu *cpu, uint64_t value);

/* -- hvf_x86_64_memory.c: the guest's memory as its own code sees it ------------------------------------ */

/* The instruction at x86->rip: as many of 15 bytes as can be read. */
int rift_hvf_x86_fetch(const struct rift_hvf_cpu *cpu, uint8_t code[15], uint32_t *bytes, struct rift_error *error);
/* The linear address of the instruction's memory operand. */
int rift_hvf_x86_linear(const struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction, uint64_t *linear,
                        struct rift_error *error);
/* Copies `bytes` from or (ACCESS_WRITE) to a linear address. Returns 0; 1: there is no memory; 2: a page fault, with
 * its error code in *code and its address in *fault; -1: a call failed. */
int rift_hvf_x86_copy(const struct rift_hvf_cpu *cpu, uint64_t linear, void *data, uint32_t bytes,
                      enum x86_access access, uint64_t *fault, uint32_t *code, struct rift_error *error);
/* The guest-physical address behind a linear one, for an access to a part of its page. Returns 0; 1: there is no
 * telling; 2: a page fault; -1. */
int rift_hvf_x86_translate(const struct rift_hvf_cpu *cpu, uint64_t linear, enum x86_access access, uint64_t *gpa,
                           uint32_t *code, struct rift_error *error);
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
/* Puts the host's points into the CPU, or the guest's own values back; also into one that was made anew. */
int rift_hvf_x86_apply_debug(struct rift_hvf_cpu *cpu, struct rift_error *error);
/* DR0 to DR3 and DR7 (`which` 4) as the guest sees them. */
int rift_hvf_x86_read_debug(const struct rift_hvf_cpu *cpu, uint32_t which, uint64_t *value, struct rift_error *error);
int rift_hvf_x86_write_debug(struct rift_hvf_cpu *cpu, uint32_t which, uint64_t value, struct rift_error *error);
int rift_hvf_x86_exit_exception(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
int rift_hvf_x86_exit_mov_dr(struct rift_hvf_cpu *cpu, struct rift_error *error);

#endif
