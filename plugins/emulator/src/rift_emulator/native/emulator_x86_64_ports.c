/* Port I/O. The engine asks a hook in the middle of IN and OUT, and goes on whatever it says. Where a native
 * handler answers, that is just right. Where the instruction must be the last one, or must not happen, the CPU's own
 * I/O breakpoint serves: the hook sets it to the port, so that a debug exception follows the instruction at once.
 * The flag that makes the engine look at I/O breakpoints is always set. */
#include "emulator_x86_64.h"

#define OPCODE_INS 0x6C
#define OPCODE_OUTS 0x6E

/* DR7: L3 is bit 6; R/W3 = 10 (I/O) in bits 29:28, LEN3 in bits 31:30. */
#define DR7_ENABLE3 (1u << 6)
#define DR7_IO3 (2u << 28)
#define DR7_LENGTH3_SHIFT 30

#define TSS_IO_MAP_BASE 102

static const struct x86_layout *const layout = &rift_emulator_x86_layout;

void x86_remember(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    x86->undo = (struct x86_undo){
        .rip = x86_get(context, layout->rip),
        .rax = x86_general(context, RAX),
        .rcx = x86_general(context, RCX),
        .rdx = x86_general(context, RDX),
        .rsi = x86_general(context, RSI),
        .rdi = x86_general(context, RDI),
    };
}

static void undo(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    x86_set(context, layout->rip, x86->undo.rip);
    x86_set_general(context, RAX, x86->undo.rax);
    x86_set_general(context, RCX, x86->undo.rcx);
    x86_set_general(context, RDX, x86->undo.rdx);
    x86_set_general(context, RSI, x86->undo.rsi);
    x86_set_general(context, RDI, x86->undo.rdi);
}

void x86_undo_open(struct rift_emulator_cpu *cpu) {
    undo(cpu);
}

/* Whether the guest may use the ports: CPL <= IOPL, or the bits of the TSS's map are clear (Intel SDM volume 1,
 * 18.5). */
static int may_use(struct rift_emulator_cpu *cpu, uint32_t number, uint32_t size) {
    struct unicorn_context *context = cpu->context;
    if (x86_cpl(context) <= (x86_flags(context) >> FLAG_IOPL_SHIFT & 3))
        return 1;
    size_t tr = layout->segments + SEGMENT_SIZE * X86_TR;
    uint64_t base = x86_get(context, tr + SEGMENT_BASE);
    uint32_t limit = x86_get32(context, tr + SEGMENT_LIMIT);
    struct x86_fault fault;
    uint16_t map, bits;
    if (limit < TSS_IO_MAP_BASE + 1 || x86_read(cpu, context, base + TSS_IO_MAP_BASE, &map, 2, &fault))
        return 0;
    uint32_t at = map + number / 8;
    if (at + 1 > limit || x86_read(cpu, context, base + at, &bits, 2, &fault))
        return 0;
    return !(bits >> number % 8 & ((1u << size) - 1));
}

/* A debug exception right behind the instruction. */
static void trap(struct rift_emulator_cpu *cpu, int verdict, uint32_t number, uint32_t size, uint64_t value,
                 int is_write) {
    struct x86 *x86 = cpu->state;
    x86->port = (struct x86_port){
        .active = 1,
        .verdict = verdict,
        .number = number,
        .size = size,
        .is_write = (uint32_t)is_write,
        .value = value,
        .dr3 = x86_register(cpu, UNICORN_DR3),
        .dr6 = x86_register(cpu, UNICORN_DR6),
        .dr7 = x86_register(cpu, UNICORN_DR7),
    };
    uint64_t length = size == 4 ? 3 : size - 1;
    uint64_t mine = DR7_ENABLE3 | DR7_IO3 | length << DR7_LENGTH3_SHIFT;
    x86_set_register(cpu, UNICORN_DR3, number);
    x86_set_register(cpu, UNICORN_DR7, (x86->port.dr7 & ~(UINT64_C(0xF) << 28)) | mine);
}

static uint64_t cut(uint64_t value, uint32_t size) {
    return value & ((UINT64_C(1) << 8 * size) - 1);
}

/* Returns the value of an IN, so far as it is known. */
static uint64_t ask(struct rift_emulator_cpu *cpu, uint32_t number, uint32_t size, uint64_t value, int is_write) {
    number &= 0xFFFF;
    if (x86_register(cpu, UNICORN_CS) & 3) { /* in protected mode this is the privilege level */
        x86_load(cpu);
        if (!may_use(cpu, number, size)) {
            x86_remember(cpu);
            trap(cpu, X86_PORT_FAULT, number, size, 0, is_write);
            return 0;
        }
    }
    struct rift_exit exit = {
        .kind = RIFT_EXIT_PORT_IO,
        .size = size,
        .address = number,
        .value = cut(value, size),
        .is_write = (uint32_t)is_write,
    };
    int verdict = rift_emulator_exit(cpu, &exit);
    if (verdict == RIFT_EMULATOR_ANSWERED)
        return exit.value;
    x86_load(cpu);
    x86_remember(cpu);
    trap(cpu, verdict, number, size, exit.value, is_write);
    return verdict == RIFT_EMULATOR_ANSWERED_STOP ? cut(exit.value, size) : 0;
}

static uint32_t in_hook(struct unicorn *engine, uint32_t port, int size, void *context) {
    (void)engine;
    return (uint32_t)ask(context, port, (uint32_t)size, 0, 0);
}

static void out_hook(struct unicorn *engine, uint32_t port, int size, uint32_t value, void *context) {
    (void)engine;
    ask(context, port, (uint32_t)size, value, 1);
}

/* What the engine's I/O breakpoint gets wrong: it takes a repeated instruction for finished. */
static void finish_repetition(struct rift_emulator_cpu *cpu, const struct x86_instruction *instruction) {
    struct x86 *x86 = cpu->state;
    uint64_t mask = instruction->address32 ? UINT32_MAX : UINT64_MAX;
    uint64_t left = (x86->undo.rcx - 1) & mask;
    x86_set_general(cpu->context, RCX, left);
    if (left)
        x86_set(cpu->context, layout->rip, x86->undo.rip);
}

/* The debug exception has come; cpu->context is loaded. */
void x86_port_done(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct x86_port *port = &x86->port;
    struct unicorn_context *context = cpu->context;
    struct x86_instruction instruction;
    port->active = 0;
    x86_set(context, layout->dr + 24, port->dr3);
    x86_set(context, layout->dr + 48, port->dr6);
    x86_set(context, layout->dr + 56, port->dr7);
    if (x86->armed && !x86->guest_tf)
        x86_set_flags(context, x86_flags(context) & ~(uint64_t)FLAG_TF);
    if (port->verdict == X86_PORT_FAULT) {
        undo(cpu);
        if (x86_deliver(cpu, X86_GP, 0, 0) != RIFT_EMULATOR_GO_ON) {
            x86_store(cpu);
            rift_emulator_leave(cpu);
            return;
        }
        x86_end_step(cpu, x86_get(context, layout->rip));
        return;
    }
    if (port->verdict == RIFT_EMULATOR_REPEAT) {
        undo(cpu);
        x86_store(cpu);
        rift_emulator_leave(cpu);
        return;
    }
    int string = 0;
    if (x86_fetch(cpu, context, x86->undo.rip, &instruction) == 0) {
        string = (instruction.opcode[0] & 0xFC) == OPCODE_INS;
        if (string && instruction.repeated)
            finish_repetition(cpu, &instruction);
    }
    x86->kind = string ? X86_OPEN_INS : X86_OPEN_IN;
    x86->open_address = string && instruction.address32 ? (uint32_t)x86->undo.rdi : x86->undo.rdi;
    x86->open_size = port->size;
    x86_instruction_over(cpu);
    x86_store(cpu);
    if (port->verdict == RIFT_EMULATOR_GIVEN)
        cpu->open = port->is_write ? X86_WRITE : X86_READ;
    rift_emulator_instruction_over(cpu);
    rift_emulator_leave(cpu);
}

void x86_port_complete(struct rift_emulator_cpu *cpu, uint64_t value) {
    struct x86 *x86 = cpu->state;
    struct x86_fault fault;
    x86_load(cpu);
    value = cut(value, x86->open_size);
    if (x86->kind == X86_OPEN_INS) {
        x86_write(cpu, cpu->context, x86->open_address, &value, x86->open_size, &fault);
        return;
    }
    uint64_t rax = x86_general(cpu->context, RAX);
    uint64_t kept = x86->open_size == 4 ? 0 : rax & ~((UINT64_C(1) << 8 * x86->open_size) - 1);
    x86_set_general(cpu->context, RAX, kept | value);
    x86_store(cpu);
}

int x86_port_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    enum { INSTRUCTION_IN = 218, INSTRUCTION_OUT = 500 };
    unicorn_hook hook;
    int status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)in_hook, cpu, 1, 0,
                                  INSTRUCTION_IN);
    if (!status)
        status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)out_hook, cpu, 1, 0,
                                  INSTRUCTION_OUT);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}
