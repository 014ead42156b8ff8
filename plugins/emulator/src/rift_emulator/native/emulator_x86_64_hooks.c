/* Where the engine's exceptions arrive: deliver them to the guest, or see what Rift itself has caused.
 *
 * Single steps use the trap flag: the engine keeps translations with and without it apart, so that a step costs
 * neither. The guest must not see it. `guest_tf` is what the guest believes. */
#include "emulator_x86_64.h"

#define OPCODE_PUSHF 0x9C
#define OPCODE_POPF 0x9D
#define OPCODE_IRET 0xCF

static const struct x86_layout *const layout = &rift_emulator_x86_layout;

/* -- steps ------------------------------------------------------------------------------------------- */

static void arm_step(struct rift_emulator_cpu *cpu, uint64_t flags) {
    struct x86 *x86 = cpu->state;
    struct x86_instruction instruction;
    unicorn.context_save(cpu->engine, x86->view);
    x86->step_opcode = x86_fetch(cpu, x86->view, x86_get(x86->view, layout->rip), &instruction) ? 0 : instruction.opcode[0];
    x86->step_dr6 = x86_get(x86->view, layout->dr + 48);
    x86->armed = 1;
    if (!(flags & FLAG_TF))
        x86_set_register(cpu, UNICORN_RFLAGS, flags | FLAG_TF);
}

/* An interrupt can be taken now. */
static int window_open(struct unicorn_context *context) {
    return (x86_flags(context) & FLAG_IF) && !(x86_get32(context, layout->hidden_flags) & HIDDEN_INHIBIT);
}

int x86_arm(struct rift_emulator_cpu *cpu, uint64_t *pc) {
    struct x86 *x86 = cpu->state;
    cpu->stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_WINDOW;
    if (x86->pending_exception >= 0 || x86->pending_interrupt >= 0) {
        int flow = RIFT_EMULATOR_GO_ON;
        x86_load(cpu);
        if (x86->pending_exception >= 0 && !(cpu->stepping & RIFT_EMULATOR_STEP_ACCESS)) {
            int vector = x86->pending_exception;
            x86->pending_exception = -1;
            flow = x86_deliver(cpu, vector, 0, x86->pending_code);
        } else if (x86->pending_interrupt >= 0) {
            if (window_open(cpu->context) && !(cpu->stepping & RIFT_EMULATOR_STEP_ACCESS)) {
                int vector = x86->pending_interrupt;
                x86->pending_interrupt = -1;
                flow = x86_deliver(cpu, vector, 0, 0);
            } else {
                cpu->stepping |= RIFT_EMULATOR_STEP_WINDOW;
            }
        }
        x86_store(cpu);
        if (flow != RIFT_EMULATOR_GO_ON)
            return flow;
    }
    if (cpu->stepping) {
        uint64_t flags = x86_register(cpu, UNICORN_RFLAGS);
        x86->guest_tf = (flags & FLAG_TF) != 0;
        arm_step(cpu, flags);
    }
    *pc = x86_register(cpu, UNICORN_RIP);
    return RIFT_EMULATOR_GO_ON;
}

void x86_disarm(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    if (!x86->armed)
        return;
    x86->armed = 0;
    uint64_t flags = x86_register(cpu, UNICORN_RFLAGS);
    if ((flags & FLAG_TF) && !x86->guest_tf)
        x86_set_register(cpu, UNICORN_RFLAGS, flags & ~(uint64_t)FLAG_TF);
}

/* The guest's flags after a stepped instruction, and the image that PUSHF has left of them. */
static uint64_t flags_after_step(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    uint64_t flags = x86_flags(context), pushed;
    struct x86_fault fault;
    if (x86->step_opcode == OPCODE_POPF || x86->step_opcode == OPCODE_IRET)
        x86->guest_tf = (flags & FLAG_TF) != 0;
    else if (!(flags & FLAG_TF))
        x86->guest_tf = 0;
    uint64_t rsp = x86_general(context, RSP);
    if (x86->step_opcode == OPCODE_PUSHF && !x86->guest_tf && x86_read(cpu, context, rsp, &pushed, 8, &fault) == 0) {
        pushed &= ~(uint64_t)FLAG_TF;
        x86_write(cpu, context, rsp, &pushed, 8, &fault);
    }
    return x86->guest_tf ? flags | FLAG_TF : flags & ~(uint64_t)FLAG_TF;
}

/* Is another step wanted? An interrupt that waited may have been delivered. */
static void step_again(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    if (x86->pending_interrupt >= 0 && window_open(cpu->context)) {
        cpu->stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_WINDOW;
        int vector = x86->pending_interrupt;
        x86->pending_interrupt = -1;
        if (x86_deliver(cpu, vector, 0, 0) != RIFT_EMULATOR_GO_ON)
            rift_emulator_leave(cpu);
        x86->guest_tf = 0;
    }
}

static void finish_hook(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    x86_store(cpu);
    x86->armed = 0;
    if (cpu->stepping && !cpu->leaving)
        arm_step(cpu, x86_register(cpu, UNICORN_RFLAGS));
}

void x86_instruction_over(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    x86_set32(context, layout->hidden_flags, x86_get32(context, layout->hidden_flags) & ~HIDDEN_INHIBIT);
    if (!(x86_flags(context) & FLAG_TF) || x86->pending_exception >= 0)
        return;
    x86->pending_exception = X86_DB;
    x86->pending_code = 0;
    x86_set(context, layout->dr + 48, x86_get(context, layout->dr + 48) | DR6_STEP);
}

/* With cpu->context loaded and edited: the instruction is over by an exception of its own. */
void x86_end_step(struct rift_emulator_cpu *cpu, uint64_t rip) {
    struct x86 *x86 = cpu->state;
    if (x86->armed) {
        x86->guest_tf = 0; /* delivery has cleared it */
        x86_store(cpu);
        rift_emulator_stepped(cpu, rip);
    }
    finish_hook(cpu);
}

/* -- exceptions -------------------------------------------------------------------------------------- */

static void deliver(struct rift_emulator_cpu *cpu, int vector, int software, uint32_t code) {
    if (x86_deliver(cpu, vector, software, code) != RIFT_EMULATOR_GO_ON) {
        x86_store(cpu);
        rift_emulator_leave(cpu);
        return;
    }
    x86_end_step(cpu, x86_get(cpu->context, layout->rip));
}

/* In the pushed flags the trap flag is the guest's. */
static void hide_step(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    if (x86->armed && !x86->guest_tf)
        x86_set_flags(cpu->context, x86_flags(cpu->context) & ~(uint64_t)FLAG_TF);
}

static void software_breakpoint(struct rift_emulator_cpu *cpu) {
    struct unicorn_context *context = cpu->context;
    uint64_t rip = x86_get(context, layout->rip), physical = 0;
    const uint8_t *memory = NULL;
    if (x86_look(cpu, context, rip - 1, &physical) == 0)
        memory = rift_emulator_memory(cpu, physical, 1, 0);
    rip -= memory && *memory == 0xCC ? 1 : 2; /* INT3, or INT 3 */
    x86_set(context, layout->rip, rip);
    x86_store(cpu);
    rift_emulator_debug_exit(cpu, 2, rip, 0, 0);
    if (!cpu->leaving) /* somebody answered it and set nothing: the instruction would come again for ever */
        rift_emulator_leave(cpu);
}

static void debug_exception(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    struct unicorn_context *context = cpu->context;
    if (x86->port.active) {
        x86_port_done(cpu);
        return;
    }
    if (!x86->armed) {
        deliver(cpu, X86_DB, 0, 0);
        return;
    }
    x86_set_flags(context, flags_after_step(cpu));
    if (!x86->guest_tf)
        x86_set(context, layout->dr + 48, x86->step_dr6);
    x86_store(cpu);
    if (rift_emulator_stepped(cpu, x86_get(context, layout->rip)) != RIFT_EMULATOR_GO_ON) {
        if (x86->guest_tf) {
            x86->pending_exception = X86_DB;
            x86->pending_code = 0;
        }
        return; /* armed stays: disarm sees the guest's flags */
    }
    if (x86->guest_tf) {
        x86->guest_tf = 0;
        if (x86_deliver(cpu, X86_DB, 0, 0) != RIFT_EMULATOR_GO_ON)
            rift_emulator_leave(cpu);
    }
    step_again(cpu);
    finish_hook(cpu);
}

static void exception(struct rift_emulator_cpu *cpu, int vector) {
    struct unicorn_context *context = cpu->context;
    x86_load(cpu);
    rift_emulator_cut(cpu, x86_get(context, layout->rip));
    int software = x86_get32(context, layout->is_interrupt) != 0;
    uint32_t code = x86_get32(context, layout->error_code);
    /* The engine would take the next exception for a nested one, and its cause for that of the next. */
    x86_set32(context, layout->old_exception, UINT32_MAX);
    x86_set32(context, layout->is_interrupt, 0);
    if (vector == X86_DB && !software) {
        debug_exception(cpu);
        return;
    }
    if (vector == X86_BP && software && cpu->software) {
        hide_step(cpu);
        software_breakpoint(cpu);
        return;
    }
    hide_step(cpu);
    deliver(cpu, vector, software, x86_has_code(vector) ? code : 0);
}

static void interrupt_hook(struct unicorn *engine, uint32_t number, void *context) {
    struct rift_emulator_cpu *cpu = context;
    (void)engine;
    if (number < 256)
        exception(cpu, (int)number);
    else
        x86_vmexit(cpu, (int)number - X86_VMEXIT);
    rift_emulator_heed(cpu); /* handlers that cannot be fetched fault again and again */
}

static bool invalid_hook(struct unicorn *engine, void *context) {
    struct rift_emulator_cpu *cpu = context;
    (void)engine;
    if (!x86_hypercall(cpu))
        exception(cpu, X86_UD);
    return true;
}

int x86_hooks(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    unicorn_hook hook;
    int status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INTERRUPT, (void *)interrupt_hook, cpu, 1, 0);
    if (!status)
        status = unicorn.hook_add(cpu->engine, &hook, UNICORN_HOOK_INVALID_INSTRUCTION, (void *)invalid_hook, cpu, 1, 0);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}
