/* SYSCALL and SYSENTER, of which the engine only skips the instruction: Intel SDM volume 2. */
#include "emulator_x86_64.h"

static const struct x86_layout *const layout = &rift_emulator_x86_layout;

enum {
    MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175, MSR_SYSENTER_EIP = 0x176
};
#define MSR_STAR 0xC0000081u
#define MSR_LSTAR 0xC0000082u
#define MSR_CSTAR 0xC0000083u
#define MSR_FMASK 0xC0000084u

/* Flat segments of ring 0: code (type 11, 64-bit), data (type 3). */
#define RING0_CODE (DESCRIPTOR_G | DESCRIPTOR_L | DESCRIPTOR_P | DESCRIPTOR_S | 0xBu << 8)
#define RING0_DATA (DESCRIPTOR_G | DESCRIPTOR_B | DESCRIPTOR_P | DESCRIPTOR_S | 0x3u << 8)

static uint64_t msr(struct rift_emulator_cpu *cpu, uint32_t number) {
    struct unicorn_msr register_ = {.number = number};
    unicorn.reg_read(cpu->engine, UNICORN_MSR, &register_);
    return register_.value;
}

/* After the hook the engine adds the instruction's length to RIP. */
static void go_to(struct rift_emulator_cpu *cpu, uint64_t target, uint64_t length) {
    x86_set(cpu->context, layout->rip, target - length);
    x86_store(cpu);
}

static uint64_t begin(struct rift_emulator_cpu *cpu) {
    struct x86_instruction instruction;
    x86_load(cpu);
    uint64_t rip = x86_get(cpu->context, layout->rip);
    return x86_fetch(cpu, cpu->context, rip, &instruction) ? 2 : instruction.prefixes + 2;
}

static void enter_ring0(struct rift_emulator_cpu *cpu, uint32_t selector) {
    x86_set_segment(cpu->context, X86_CS, selector & 0xFFFC, 0, 0xFFFFFFFF, RING0_CODE);
    x86_set_segment(cpu->context, X86_SS, (selector & 0xFFFC) + 8, 0, 0xFFFFFFFF, RING0_DATA);
    x86_refresh(cpu->context);
}

static void fault(struct rift_emulator_cpu *cpu, int vector, uint64_t length) {
    if (x86_deliver(cpu, vector, 0, 0) != RIFT_EMULATOR_GO_ON) {
        x86_store(cpu);
        rift_emulator_leave(cpu);
        return;
    }
    go_to(cpu, x86_get(cpu->context, layout->rip), length);
}

/* The trap flag that the guest sees, in place of the step's. */
static uint64_t guest_flags(struct rift_emulator_cpu *cpu) {
    const struct x86 *x86 = cpu->state;
    uint64_t flags = x86_flags(cpu->context);
    return x86->armed && !x86->guest_tf ? flags & ~(uint64_t)FLAG_TF : flags;
}

static void set_flags(struct rift_emulator_cpu *cpu, uint64_t flags) {
    struct x86 *x86 = cpu->state;
    if (x86->armed) {
        x86->guest_tf = (flags & FLAG_TF) != 0;
        flags |= FLAG_TF; /* the step goes on behind the instruction */
    }
    x86_set_flags(cpu->context, flags);
}

static void syscall_hook(struct unicorn *engine, void *context) {
    struct rift_emulator_cpu *cpu = context;
    (void)engine;
    uint64_t length = begin(cpu), flags = guest_flags(cpu);
    if (!(x86_get(cpu->context, layout->efer) & EFER_SCE)) {
        x86_set_flags(cpu->context, flags);
        fault(cpu, X86_UD, length);
        return;
    }
    int long_code =
        (x86_get32(cpu->context, layout->segments + SEGMENT_SIZE * X86_CS + SEGMENT_FLAGS) & DESCRIPTOR_L) != 0;
    x86_set_general(cpu->context, RCX, x86_get(cpu->context, layout->rip) + length);
    x86_set_general(cpu->context, R11, flags & ~(uint64_t)FLAG_RF);
    set_flags(cpu, flags & ~(msr(cpu, MSR_FMASK) | FLAG_RF));
    enter_ring0(cpu, (uint32_t)(msr(cpu, MSR_STAR) >> 32 & 0xFFFF));
    go_to(cpu, msr(cpu, long_code ? MSR_LSTAR : MSR_CSTAR), length);
}

static void sysenter_hook(struct unicorn *engine, void *context) {
    struct rift_emulator_cpu *cpu = context;
    (void)engine;
    uint64_t length = begin(cpu), flags = guest_flags(cpu);
    uint32_t selector = (uint32_t)msr(cpu, MSR_SYSENTER_CS);
    if (!(selector & 0xFFFC)) {
        x86_set_flags(cpu->context, flags);
        fault(cpu, X86_GP, length);
        return;
    }
    set_flags(cpu, flags & ~(uint64_t)(FLAG_IF | FLAG_VM | FLAG_RF));
    enter_ring0(cpu, selector);
    x86_set_general(cpu->context, RSP, msr(cpu, MSR_SYSENTER_ESP));
    go_to(cpu, msr(cpu, MSR_SYSENTER_EIP), length);
}

/* Before any other hook of instructions, SYSCALL's first: once a stop is on its way, the engine asks the first hook of
 * its list only, whatever instruction that one is for, and then skips the instruction. */
int x86_syscall_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    enum { INSTRUCTION_SYSCALL = 699, INSTRUCTION_SYSENTER = 700 };
    unicorn_hook hook;
    int status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)syscall_hook, cpu, 1, 0,
                                  INSTRUCTION_SYSCALL);
    if (!status)
        status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)sysenter_hook, cpu, 1, 0,
                                  INSTRUCTION_SYSENTER);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}
