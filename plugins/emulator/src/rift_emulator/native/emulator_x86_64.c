/* The x86-64 binding: set-up, injection, and the struct that joins it all. */
#include "emulator_internal.h"
#include "emulator_x86_64.h"

#include <errno.h>
#include <stdlib.h>

/* UC_CPU_X86_ICELAKE_SERVER: SMEP, SMAP, FSGSBASE, BMI, LA57, 1 GiB pages; the engine hides what it cannot do. */
#define CPU_MODEL 26

/* The engine tells of a block that it has translated only if one has run to its end before (emulator_code.c). */
static int prime(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    int status = unicorn.emu_start(cpu->engine, X86_INTERCEPT_GPA, 0, 0, 0);
    if (status)
        return rift_emulator_engine_error(error, status, "uc_emu_start");
    x86_set_register(cpu, UNICORN_RIP, 0);
    return 0;
}

static int setup(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    struct x86 *x86 = calloc(1, sizeof(*x86));
    if (!x86)
        return rift_emulator_fail(error, ENOMEM, "calloc");
    cpu->state = x86;
    x86->pending_exception = x86->pending_interrupt = -1;
    int status = unicorn.context_alloc(cpu->engine, &x86->view);
    if (status) {
        x86->view = NULL;
        return rift_emulator_engine_error(error, status, "uc_context_alloc");
    }
    status = unicorn.mem_map_ptr(cpu->engine, X86_INTERCEPT_GPA, X86_INTERCEPT_BYTES,
                                 UNICORN_READ | UNICORN_WRITE | UNICORN_EXECUTE, x86_intercept_pages());
    if (status)
        return rift_emulator_engine_error(error, status, "uc_mem_map_ptr");
    if (prime(cpu, error))
        return -1;
    if (x86_hooks(cpu, error) || x86_port_hooks(cpu, error) || x86_syscall_hooks(cpu, error))
        return -1;
    x86_load(cpu);
    x86_intercept(cpu->context);
    x86_store(cpu);
    return 0;
}

static void release(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    if (x86 && x86->view)
        unicorn.context_free(x86->view);
    free(x86);
    cpu->state = NULL;
}

static uint64_t program_counter(struct rift_emulator_cpu *cpu) {
    return x86_register(cpu, UNICORN_RIP);
}

static void complete(struct rift_emulator_cpu *cpu, uint64_t value) {
    const struct x86 *x86 = cpu->state;
    if (cpu->open != X86_READ)
        return;
    if (x86->kind == X86_OPEN_IN || x86->kind == X86_OPEN_INS) {
        x86_port_complete(cpu, value);
        return;
    }
    x86_load(cpu);
    if (x86->kind == X86_OPEN_MSR) {
        x86_set_general(cpu->context, RAX, value & UINT32_MAX);
        x86_set_general(cpu->context, RDX, value >> 32);
    } else {
        x86_set_general(cpu->context, RAX, value);
    }
    x86_store(cpu);
}

static int inject_exception(struct rift_emulator_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error) {
    struct x86 *x86 = cpu->state;
    if (vector >= 32)
        return rift_emulator_fail(error, EINVAL, "inject_exception");
    if (cpu->open != X86_CLOSED) { /* it takes the place of the access, which has not happened then */
        x86_load(cpu);
        x86_undo_open(cpu);
        x86_store(cpu);
        cpu->open = X86_CLOSED;
    }
    x86->pending_exception = (int)vector;
    x86->pending_code = has_code ? code : 0;
    return 0;
}

static int inject_interrupt(struct rift_emulator_cpu *cpu, uint32_t vector, struct rift_error *error) {
    struct x86 *x86 = cpu->state;
    if (vector >= 256)
        return rift_emulator_fail(error, EINVAL, "inject_interrupt");
    if (x86->pending_interrupt >= 0)
        return rift_emulator_fail(error, EBUSY, "inject_interrupt");
    x86->pending_interrupt = (int)vector;
    return 0;
}

static void drop_events(struct rift_emulator_cpu *cpu) {
    struct x86 *x86 = cpu->state;
    x86->pending_exception = x86->pending_interrupt = -1;
}

static struct rift_emulator_binding binding = {
    .version = RIFT_EMULATOR_BINDING_VERSION,
    .bytes = sizeof(struct rift_emulator_binding),
    .isa = "x86_64",
    .registers = rift_emulator_x86_registers,
    .architecture = UNICORN_X86,
    .mode = UNICORN_MODE_64,
    .cpu_model = CPU_MODEL,
    .learn = x86_learn,
    .setup = setup,
    .release = release,
    .arm = x86_arm,
    .disarm = x86_disarm,
    .program_counter = program_counter,
    .complete = complete,
    .translate = x86_translate,
    .read_registers = x86_read_registers,
    .write_registers = x86_write_registers,
    .inject_exception = inject_exception,
    .inject_interrupt = inject_interrupt,
    .drop_events = drop_events,
};

const struct rift_emulator_binding *rift_emulator_x86_64(void) {
    binding.register_count = rift_emulator_x86_register_count; /* a constant, but not one for an initialiser */
    return &binding;
}
