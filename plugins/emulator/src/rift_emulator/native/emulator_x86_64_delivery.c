/* Delivery of exceptions and interrupts through the guest's IDT in long mode: Intel SDM volume 3, 6.14 (64-bit
 * mode), 6.15 (double faults), 6.12.1 (privilege). All of it edits cpu->context. */
#include "emulator_x86_64.h"

#include <string.h>

/* Bits of an error code that names a descriptor: EXT, and the IDT. */
#define CODE_EXTERNAL 1u
#define CODE_IDT 2u

#define GATE_BYTES 16
#define TSS_RSP0 4
#define TSS_IST1 36

int x86_has_code(int vector) {
    return vector < 32 && (1u << vector & (1u << 8 | 0x1Fu << 10 | 1u << 17 | 1u << 21 | 1u << 29 | 1u << 30)) != 0;
}

struct gate {
    uint64_t target;
    uint32_t selector, ist, type, dpl;
};

static int raise(struct x86_fault *fault, int vector, uint32_t code) {
    *fault = (struct x86_fault){.vector = vector, .code = code};
    return -1;
}

static size_t segment(int number) {
    return rift_emulator_x86_layout.segments + SEGMENT_SIZE * (size_t)number;
}

static int read_gate(struct rift_emulator_cpu *cpu, int vector, int software, struct gate *gate,
                     struct x86_fault *fault) {
    struct unicorn_context *context = cpu->context;
    uint32_t external = software ? 0 : CODE_EXTERNAL, code = (uint32_t)vector * 8 + CODE_IDT + external;
    uint64_t base = x86_get(context, segment(X86_IDTR) + SEGMENT_BASE), words[2];
    if ((uint32_t)vector * GATE_BYTES + GATE_BYTES - 1 > x86_get32(context, segment(X86_IDTR) + SEGMENT_LIMIT))
        return raise(fault, X86_GP, code);
    if (x86_read(cpu, context, base + (uint64_t)vector * GATE_BYTES, words, sizeof(words), fault))
        return -1;
    gate->target = (words[0] & 0xFFFF) | (words[0] >> 32 & 0xFFFF0000) | words[1] << 32;
    gate->selector = words[0] >> 16 & 0xFFFF;
    gate->ist = words[0] >> 32 & 7;
    gate->type = words[0] >> 40 & 0x1F;
    gate->dpl = words[0] >> 45 & 3;
    if (gate->type != 0xE && gate->type != 0xF)
        return raise(fault, X86_GP, code);
    if (software && gate->dpl < x86_cpl(context))
        return raise(fault, X86_GP, code);
    if (!(words[0] >> 47 & 1))
        return raise(fault, X86_NP, code);
    return 0;
}

static int read_code_segment(struct rift_emulator_cpu *cpu, uint32_t selector, uint32_t external, uint64_t *found,
                             struct x86_fault *fault) {
    struct unicorn_context *context = cpu->context;
    uint32_t code = (selector & 0xFFFC) | external;
    size_t table = segment(selector & 4 ? X86_LDTR : X86_GDTR);
    if (!(selector & 0xFFFC))
        return raise(fault, X86_GP, external);
    if ((selector | 7) > x86_get32(context, table + SEGMENT_LIMIT))
        return raise(fault, X86_GP, code);
    uint64_t at = x86_get(context, table + SEGMENT_BASE) + (selector & 0xFFF8);
    if (x86_read(cpu, context, at, found, 8, fault))
        return -1;
    uint32_t flags = (uint32_t)(*found >> 32);
    if (!(flags & DESCRIPTOR_S) || !(flags & DESCRIPTOR_CODE) || (flags >> DESCRIPTOR_DPL_SHIFT & 3) > x86_cpl(context))
        return raise(fault, X86_GP, code);
    if (!(flags & DESCRIPTOR_P))
        return raise(fault, X86_NP, code);
    if (!(flags & DESCRIPTOR_L) || (flags & DESCRIPTOR_B))
        return raise(fault, X86_GP, code);
    return 0;
}

static int read_tss(struct rift_emulator_cpu *cpu, uint32_t offset, uint32_t external, uint64_t *value,
                    struct x86_fault *fault) {
    struct unicorn_context *context = cpu->context;
    size_t tr = segment(X86_TR);
    if (!(x86_get32(context, tr + SEGMENT_FLAGS) & DESCRIPTOR_P) ||
        offset + 7 > x86_get32(context, tr + SEGMENT_LIMIT))
        return raise(fault, X86_TS, (x86_get32(context, tr) & 0xFFFC) | external);
    return x86_read(cpu, context, x86_get(context, tr + SEGMENT_BASE) + offset, value, 8, fault);
}

/* Nothing but memory has changed when it returns -1. */
static int try_delivery(struct rift_emulator_cpu *cpu, int vector, int software, uint32_t code,
                        struct x86_fault *fault) {
    struct unicorn_context *context = cpu->context;
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    uint32_t external = software ? 0 : CODE_EXTERNAL, cpl = x86_cpl(context);
    struct gate gate;
    uint64_t descriptor;
    if (read_gate(cpu, vector, software, &gate, fault) ||
        read_code_segment(cpu, gate.selector, external, &descriptor, fault))
        return -1;
    uint32_t flags = (uint32_t)(descriptor >> 32);
    uint32_t level = flags & DESCRIPTOR_CONFORMING ? cpl : flags >> DESCRIPTOR_DPL_SHIFT & 3;
    uint64_t old_rsp = x86_general(context, RSP), rsp = old_rsp;
    if (gate.ist) {
        if (read_tss(cpu, TSS_IST1 + 8 * (gate.ist - 1), external, &rsp, fault))
            return -1;
    } else if (level < cpl) {
        if (read_tss(cpu, TSS_RSP0 + 8 * level, external, &rsp, fault))
            return -1;
    }
    rsp &= ~UINT64_C(15);
    uint64_t rflags = x86_flags(context), frame[6];
    uint32_t count = 0;
    if (x86_has_code(vector) && !software)
        frame[count++] = code;
    frame[count++] = x86_get(context, layout->rip);
    frame[count++] = x86_get32(context, segment(X86_CS));
    frame[count++] = rflags;
    frame[count++] = old_rsp;
    frame[count++] = x86_get32(context, segment(X86_SS));
    /* The pushes are supervisor accesses at the new level, whatever the old one was. */
    if (x86_write(cpu, context, rsp - 8 * (uint64_t)count, frame, 8 * count, fault)) {
        if (fault->vector == X86_GP)
            fault->vector = X86_SS_FAULT; /* a stack that is not canonical */
        return -1;
    }
    rsp -= 8 * (uint64_t)count;
    x86_set_general(context, RSP, rsp);
    x86_set(context, layout->rip, gate.target);
    x86_set_segment(context, X86_CS, (gate.selector & 0xFFFC) | level, 0, 0xFFFFFFFF, flags | DESCRIPTOR_ACCESSED);
    if (level < cpl)
        x86_set_segment(context, X86_SS, level, 0, 0, level << DESCRIPTOR_DPL_SHIFT);
    rflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
    if (gate.type == 0xE)
        rflags &= ~(uint64_t)FLAG_IF;
    x86_set_flags(context, rflags);
    x86_refresh(context);
    return 0;
}

static int contributory(int vector) {
    return vector == 0 || (vector >= X86_TS && vector <= X86_GP);
}

/* Of a software interrupt that cannot be delivered the fault belongs to the instruction, which RIP has left. */
static void step_back(struct rift_emulator_cpu *cpu, int vector) {
    size_t at = rift_emulator_x86_layout.rip;
    uint64_t rip = x86_get(cpu->context, at), physical;
    const uint8_t *memory = NULL;
    if (x86_look(cpu, cpu->context, rip - 1, &physical) == 0)
        memory = rift_emulator_memory(cpu, physical, 1, 0);
    int one_byte = vector == X86_BP && memory && *memory == 0xCC; /* INT3; the others are INT n */
    x86_set(cpu->context, at, rip - (one_byte ? 1 : 2));
}

int x86_deliver(struct rift_emulator_cpu *cpu, int vector, int software, uint32_t code) {
    struct unicorn_context *context = cpu->context;
    struct x86_fault fault;
    /* The shadow of STI and MOV SS ends here. */
    size_t hidden = rift_emulator_x86_layout.hidden_flags;
    x86_set32(context, hidden, x86_get32(context, hidden) & ~HIDDEN_INHIBIT);
    while (try_delivery(cpu, vector, software, code, &fault)) {
        if (vector == X86_DF && !software) {
            struct rift_exit exit = {.kind = RIFT_EXIT_SHUTDOWN};
            rift_emulator_exit(cpu, &exit); /* whatever the answer: this CPU cannot go on */
            return RIFT_EMULATOR_LEAVE;
        }
        if (software)
            step_back(cpu, vector);
        if (fault.vector == X86_PF)
            x86_set(context, rift_emulator_x86_layout.cr + 16, fault.address);
        /* INT n is not the exception n: a fault on its way is the first one. */
        int twice = !software && ((contributory(vector) && contributory(fault.vector)) ||
                                  (vector == X86_PF && (contributory(fault.vector) || fault.vector == X86_PF)));
        vector = twice ? X86_DF : fault.vector;
        code = twice ? 0 : fault.code;
        software = 0;
    }
    return RIFT_EMULATOR_GO_ON;
}
