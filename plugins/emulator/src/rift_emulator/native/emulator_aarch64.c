/* The AArch64 binding: set-up, injection, and the struct that joins it all. */
#include "emulator_internal.h"
#include "emulator_aarch64.h"

#include <errno.h>
#include <stdlib.h>

/* UC_CPU_ARM64_A72: Armv8.0, without what the engine knows only half (SVE, PAN, VHE, pointer authentication). */
#define CPU_MODEL 2

#define VMPIDR_EL2 ARM_SYSTEM_REGISTER(3, 4, 0, 0, 5)
#define MPIDR_RES1 (UINT64_C(1) << 31)

/* The engine tells of a block that it has translated only if one has run to its end before (emulator_code.c). Nothing
 * is trapped yet, so that WFI ends the run. */
static int prime(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    static _Alignas(4096) const uint32_t code[1024] = {0x14000001, 0xD503207F}; /* b .+4; wfi */
    int status = unicorn.mem_map_ptr(cpu->engine, ARM_PRIMER_GPA, sizeof(code), UNICORN_READ | UNICORN_EXECUTE,
                                     (void *)(uintptr_t)code);
    if (!status)
        status = unicorn.emu_start(cpu->engine, ARM_PRIMER_GPA, 0, 0, 0);
    if (!status)
        status = unicorn.mem_unmap(cpu->engine, ARM_PRIMER_GPA, sizeof(code));
    return status ? rift_emulator_engine_error(error, status, "uc_emu_start") : 0;
}

static int setup(struct rift_emulator_cpu *cpu, struct rift_error *error) {
    struct arm *arm = calloc(1, sizeof(*arm));
    if (!arm)
        return rift_emulator_fail(error, ENOMEM, "calloc");
    cpu->state = arm;
    arm->pending_exception = arm->pending_interrupt = -1;
    int status = unicorn.context_alloc(cpu->engine, &arm->view);
    if (status) {
        arm->view = NULL;
        return rift_emulator_engine_error(error, status, "uc_context_alloc");
    }
    if (prime(cpu, error) || arm_hooks(cpu, error))
        return -1;
    arm_restrict(cpu->engine);
    arm_set_system(cpu, VMPIDR_EL2, MPIDR_RES1 | cpu->index);
    arm_go(cpu, PSTATE_EL1H | PSTATE_MASKED, 0);
    return 0;
}

static void release(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    if (arm && arm->view)
        unicorn.context_free(arm->view);
    free(arm);
    cpu->state = NULL;
}

static uint64_t program_counter(struct rift_emulator_cpu *cpu) {
    return arm_register(cpu, UNICORN_ARM_PC);
}

static void complete(struct rift_emulator_cpu *cpu, uint64_t value) {
    const struct arm *arm = cpu->state;
    if (cpu->open == ARM_READ)
        arm_set_general(cpu, arm->target, value);
}

/* The vector is the exception class, the code the instruction-specific syndrome: ESR_EL1. */
static int inject_exception(struct rift_emulator_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error) {
    struct arm *arm = cpu->state;
    if (vector > 0x3F)
        return rift_emulator_fail(error, EINVAL, "inject_exception");
    if (cpu->open != ARM_CLOSED) { /* it takes the place of the access, which has not happened then */
        arm_set_pc(cpu, arm->undo_pc);
        cpu->open = ARM_CLOSED;
    }
    arm->pending_exception = (int)vector;
    arm->pending_syndrome = has_code ? code & ESR_ISS : 0;
    return 0;
}

/* 0 is an IRQ, 1 an FIQ: there is no interrupt controller that would give them numbers. */
static int inject_interrupt(struct rift_emulator_cpu *cpu, uint32_t vector, struct rift_error *error) {
    struct arm *arm = cpu->state;
    if (vector > 1)
        return rift_emulator_fail(error, EINVAL, "inject_interrupt");
    if (arm->pending_interrupt >= 0)
        return rift_emulator_fail(error, EBUSY, "inject_interrupt");
    arm->pending_interrupt = (int)vector;
    return 0;
}

static void drop_events(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    arm->pending_exception = arm->pending_interrupt = -1;
}

static struct rift_emulator_binding binding = {
    .version = RIFT_EMULATOR_BINDING_VERSION,
    .bytes = sizeof(struct rift_emulator_binding),
    .isa = "aarch64",
    .registers = rift_emulator_arm_registers,
    .architecture = UNICORN_ARM64,
    .mode = UNICORN_MODE_ARM,
    .cpu_model = CPU_MODEL,
    .learn = arm_learn,
    .setup = setup,
    .release = release,
    .arm = arm_arm,
    .disarm = arm_disarm,
    .program_counter = program_counter,
    .complete = complete,
    .translate = arm_translate,
    .read_registers = arm_read_registers,
    .write_registers = arm_write_registers,
    .inject_exception = inject_exception,
    .inject_interrupt = inject_interrupt,
    .drop_events = drop_events,
};

const struct rift_emulator_binding *rift_emulator_aarch64(void) {
    binding.register_count = rift_emulator_arm_register_count; /* a constant, but not one for an initialiser */
    return &binding;
}
