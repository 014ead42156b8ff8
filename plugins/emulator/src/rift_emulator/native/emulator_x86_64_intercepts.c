/* HLT, MWAIT, MSRs and hypercalls. For the first three the engine's own virtualization extension serves: the guest
 * runs with AMD's intercepts on, in a control block that it cannot reach, so that these instructions arrive before
 * they have happened. Formats: AMD APM volume 2, 15.11 (MSR map), appendix B (control block). */
#include "emulator_x86_64.h"

#include <string.h>
#include <time.h>

#define CONTROL_MSR_MAP 0x48
#define MSR_MAP_OFFSET 0x1000

#define MSR_TSC 0x10u

static const struct x86_layout *const layout = &rift_emulator_x86_layout;

/* MSRs that the engine's CPU has; Intel SDM volume 4, and AMD's from 0xC0000080 on. Every other one is
 * intercepted: the engine would ignore it. */
static const struct {
    uint32_t first, last;
} own[] = {
    {0x1B, 0x1B},   {0x8B, 0x8B},   {0xFE, 0xFE},   {0x174, 0x176}, {0x179, 0x17B},
    {0x198, 0x198}, {0x1A0, 0x1A0}, {0x200, 0x20F}, {0x250, 0x250}, {0x258, 0x259},
    {0x268, 0x26F}, {0x277, 0x277}, {0x2FF, 0x2FF}, {0xC0000080, 0xC0000084}, {0xC0000100, 0xC0000103},
};

static _Alignas(4096) uint8_t pages[X86_INTERCEPT_BYTES];

/* The place of an MSR's two bits (read, write) in the map, or -1: always intercepted. */
static long map_bit(uint32_t number) {
    if (number < 0x2000)
        return 2 * (long)number;
    if (number - 0xC0000000u < 0x2000)
        return 2 * (long)(8192 + (number - 0xC0000000u));
    if (number - 0xC0010000u < 0x2000)
        return 2 * (long)(16384 + (number - 0xC0010000u));
    return -1;
}

/* Filled in once, when the engine is learnt: later other engines are reading. */
void *x86_intercept_pages(void) {
    static int filled;
    if (filled)
        return pages;
    filled = 1;
    uint64_t map = X86_INTERCEPT_GPA + MSR_MAP_OFFSET;
    static const uint8_t code[] = {0xEB, 0x00, 0xF4}; /* jmp to the hlt: see prime in emulator_x86_64.c */
    memcpy(pages, code, sizeof(code)); /* where the control block has intercepts, which the engine keeps itself */
    memcpy(pages + CONTROL_MSR_MAP, &map, sizeof(map));
    memset(pages + MSR_MAP_OFFSET, 0xFF, X86_INTERCEPT_BYTES - MSR_MAP_OFFSET);
    for (size_t at = 0; at < sizeof(own) / sizeof(own[0]); ++at)
        for (uint32_t number = own[at].first; number <= own[at].last; ++number) {
            long bit = map_bit(number);
            pages[MSR_MAP_OFFSET + bit / 8] &= (uint8_t)~(3u << bit % 8);
        }
    return pages;
}

/* Intercept words: bit n is AMD's exit code 0x60 + n. The I/O breakpoints' flag is not an intercept, but as
 * invisible (emulator_x86_64_ports.c). */
void x86_intercept(struct unicorn_context *context) {
    uint64_t intercepts = UINT64_C(1) << (X86_VMEXIT_HLT - 0x60) | UINT64_C(1) << (X86_VMEXIT_MSR - 0x60) |
                          UINT64_C(1) << (X86_VMEXIT_MWAIT - 0x60);
    x86_set(context, layout->vmcb, X86_INTERCEPT_GPA);
    x86_set(context, layout->intercepts, intercepts);
    x86_set32(context, layout->old_exception, UINT32_MAX);
    x86_set32(context, layout->hidden_flags,
              x86_get32(context, layout->hidden_flags) | HIDDEN_GUEST | HIDDEN_IO_BREAKPOINTS);
}

/* The step's flag is not the guest's; what comes is the end of the instruction. */
static void end(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    if (x86->armed && !x86->guest_tf)
        x86_set_flags(cpu->context, x86_flags(cpu->context) & ~(uint64_t)FLAG_TF);
}

static void raise(struct rift_emulator_cpu *cpu, int vector) {
    end(cpu);
    if (x86_deliver(cpu, vector, 0, 0) != RIFT_EMULATOR_GO_ON) {
        x86_store(cpu);
        rift_emulator_leave(cpu);
        return;
    }
    x86_end_step(cpu, x86_get(cpu->context, layout->rip));
}

/* Makes the exit of an instruction of `length` bytes, which is over unless the handler has to be asked again.
 * cpu->context is loaded. Returns enum rift_emulator_verdict. */
static int give(struct rift_emulator_cpu *cpu, struct rift_exit *exit, uint64_t length) {
    struct x86 *x86 = cpu->state;
    uint64_t rip = x86_get(cpu->context, layout->rip);
    x86_remember(cpu);
    end(cpu);
    x86_store(cpu); /* handlers read registers */
    int verdict = rift_emulator_exit(cpu, exit);
    if (verdict == RIFT_EMULATOR_REPEAT) {
        rift_emulator_leave(cpu);
        return verdict;
    }
    x86_set(cpu->context, layout->rip, rip + length);
    x86_instruction_over(cpu);
    if (verdict == RIFT_EMULATOR_GIVEN || verdict == RIFT_EMULATOR_ANSWERED_STOP || x86->armed ||
        x86->pending_exception >= 0) {
        rift_emulator_instruction_over(cpu);
        rift_emulator_leave(cpu); /* a step begins anew with the next entry */
    }
    return verdict;
}

static void halt(struct rift_emulator_cpu *cpu) {
    struct unicorn_context *context = cpu->context;
    struct x86_instruction instruction;
    uint64_t rip = x86_get(context, layout->rip);
    uint64_t length = 1;
    if (x86_fetch(cpu, context, rip, &instruction) == 0)
        length = instruction.prefixes + (instruction.opcode[0] == 0xF4 ? 1 : 3); /* HLT, or MWAIT (0F 01 C9) */
    x86_set32(context, layout->hidden_flags, x86_get32(context, layout->hidden_flags) & ~HIDDEN_INHIBIT);
    struct rift_exit exit = {.kind = RIFT_EXIT_HALT, .address = rip + length};
    if (give(cpu, &exit, length) != RIFT_EMULATOR_REPEAT)
        x86_store(cpu);
}

/* What RDTSC gives the guest. */
#if defined(__x86_64__)
static uint64_t time_stamp(void) {
    return __builtin_ia32_rdtsc();
}
#else
static uint64_t time_stamp(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}
#endif

static void set_answer(struct rift_emulator_cpu *cpu, uint64_t value) {
    x86_set_general(cpu->context, RAX, value & UINT32_MAX);
    x86_set_general(cpu->context, RDX, value >> 32);
}

static void access_msr(struct rift_emulator_cpu *cpu, int is_write) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    struct x86_instruction instruction;
    uint32_t number = (uint32_t)x86_general(context, RCX);
    uint64_t length = 2;
    if (x86_fetch(cpu, context, x86_get(context, layout->rip), &instruction) == 0)
        length = instruction.prefixes + 2;
    if (number == MSR_TSC && !is_write) {
        set_answer(cpu, time_stamp());
        x86_set(context, layout->rip, x86_get(context, layout->rip) + length);
        x86_store(cpu);
        return;
    }
    if (!(cpu->flags & RIFT_EMULATOR_SYSTEM_REGISTER_EXITS)) {
        raise(cpu, X86_GP);
        return;
    }
    uint64_t value = x86_general(context, RAX) & UINT32_MAX;
    value |= x86_general(context, RDX) << 32;
    struct rift_exit exit = {
        .kind = RIFT_EXIT_SYSTEM_REGISTER,
        .size = 8,
        .address = number,
        .value = is_write ? value : 0,
        .is_write = (uint32_t)is_write,
    };
    int verdict = give(cpu, &exit, length);
    if (verdict == RIFT_EMULATOR_REPEAT)
        return;
    if (!is_write)
        set_answer(cpu, verdict == RIFT_EMULATOR_GIVEN ? 0 : exit.value);
    x86->kind = X86_OPEN_MSR;
    x86_store(cpu);
    if (verdict == RIFT_EMULATOR_GIVEN)
        cpu->open = is_write ? X86_WRITE : X86_READ;
}

void x86_vmexit(struct rift_emulator_cpu *cpu, int code) {
    x86_load(cpu);
    if (code == X86_VMEXIT_HLT || code == X86_VMEXIT_MWAIT) {
        halt(cpu);
    } else if (code == X86_VMEXIT_MSR) {
        access_msr(cpu, (int)x86_get32(cpu->context, layout->error_code));
    } else {
        struct rift_exit exit = {.kind = RIFT_EXIT_UNKNOWN, .raw_reason = (uint32_t)code};
        rift_emulator_exit(cpu, &exit);
        rift_emulator_leave(cpu);
    }
}

/* VMCALL (0F 01 C1) and VMMCALL (0F 01 D9) in ring 0: the number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9.
 * In ring 3 they are undefined, since nobody has given ring 3 leave to speak to the host. Returns 1 if it was one. */
int x86_hypercall(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    struct x86_instruction instruction;
    x86_load(cpu);
    if (x86_cpl(context) || x86_fetch(cpu, context, x86_get(context, layout->rip), &instruction) ||
        instruction.opcode[0] != 0x0F || instruction.opcode[1] != 0x01 ||
        (instruction.opcode[2] != 0xC1 && instruction.opcode[2] != 0xD9))
        return 0;
    struct rift_exit exit = {
        .kind = RIFT_EXIT_HYPERCALL,
        .address = x86_general(context, RAX),
        .info = {x86_general(context, RDI), x86_general(context, RSI), x86_general(context, RDX),
                 x86_general(context, R10), x86_general(context, R8), x86_general(context, R9)},
    };
    int verdict = give(cpu, &exit, instruction.prefixes + 3);
    if (verdict == RIFT_EMULATOR_REPEAT)
        return 1;
    if (verdict != RIFT_EMULATOR_GIVEN)
        x86_set_general(context, RAX, exit.value);
    x86->kind = X86_OPEN_CALL;
    x86_store(cpu);
    if (verdict == RIFT_EMULATOR_GIVEN)
        cpu->open = X86_READ;
    return 1;
}
