/* The engine's CPU state: registers by id, system registers by number, and what has no name in the interface. */
#include "emulator_aarch64.h"

#include <string.h>

static const struct arm_layout *const layout = &rift_emulator_arm_layout;

uint64_t arm_context_get(struct unicorn_context *context, size_t offset) {
    uint64_t value;
    memcpy(&value, (const uint8_t *)context + offset, sizeof(value));
    return value;
}

void arm_context_set(struct unicorn_context *context, size_t offset, uint64_t value) {
    memcpy((uint8_t *)context + offset, &value, sizeof(value));
}

uint64_t arm_register(struct rift_emulator_cpu *cpu, int id) {
    uint64_t value = 0;
    unicorn.reg_read(cpu->engine, id, &value);
    return value;
}

void arm_set_register(struct rift_emulator_cpu *cpu, int id, uint64_t value) {
    unicorn.reg_write(cpu->engine, id, &value);
}

static struct unicorn_system_register name(uint32_t number) {
    return (struct unicorn_system_register){
        .op0 = number >> 14 & 3, .op1 = number >> 11 & 7, .crn = number >> 7 & 15, .crm = number >> 3 & 15, .op2 = number & 7};
}

uint64_t arm_system(struct rift_emulator_cpu *cpu, uint32_t number) {
    struct unicorn_system_register wanted = name(number);
    unicorn.reg_read(cpu->engine, UNICORN_ARM_SYSTEM, &wanted);
    return wanted.value;
}

/* The engine derives its hidden flags anew with each such write, and with nothing else that the interface has. */
void arm_set_system(struct rift_emulator_cpu *cpu, uint32_t number, uint64_t value) {
    struct unicorn_system_register wanted = name(number);
    wanted.value = value;
    unicorn.reg_write(cpu->engine, UNICORN_ARM_SYSTEM, &wanted);
}

/* SCR_EL3: NS, SMD (SMC is trapped by HCR_EL2 before it matters), HCE, RW. HCR_EL2: TWI, TSC, RW. */
void arm_restrict(struct unicorn *engine) {
    const struct {
        uint32_t number;
        uint64_t value;
    } settings[] = {
        {ARM_SCR_EL3, 1u << 0 | 1u << 7 | 1u << 8 | 1u << 10},
        {ARM_HCR_EL2, UINT64_C(1) << 13 | UINT64_C(1) << 19 | UINT64_C(1) << 31},
        {ARM_MDCR_EL2, 0},
    };
    for (size_t at = 0; at < sizeof(settings) / sizeof(settings[0]); ++at) {
        struct unicorn_system_register wanted = name(settings[at].number);
        wanted.value = settings[at].value;
        unicorn.reg_write(engine, UNICORN_ARM_SYSTEM, &wanted);
    }
}

static int id_of(uint32_t number) {
    return number < 29 ? UNICORN_ARM_X0 + (int)number : UNICORN_ARM_X29 + (int)number - 29;
}

uint64_t arm_general(struct rift_emulator_cpu *cpu, uint32_t number) {
    return number < 31 ? arm_register(cpu, id_of(number)) : 0;
}

void arm_set_general(struct rift_emulator_cpu *cpu, uint32_t number, uint64_t value) {
    if (number < 31)
        arm_set_register(cpu, id_of(number), value);
}

uint64_t arm_pstate(struct rift_emulator_cpu *cpu) {
    const struct arm *arm = cpu->state;
    uint64_t pstate = arm_register(cpu, UNICORN_ARM_PSTATE) & UINT32_MAX;
    return arm->armed ? pstate & ~PSTATE_SS : pstate;
}

/* Writing it as a register would make the engine stop. */
void arm_set_pc(struct rift_emulator_cpu *cpu, uint64_t pc) {
    unicorn.context_save(cpu->engine, cpu->context);
    arm_context_set(cpu->context, layout->pc, pc);
    unicorn.context_restore(cpu->engine, cpu->context);
}

static int stack_id(uint64_t pstate) {
    return (pstate & PSTATE_EL) && (pstate & PSTATE_SP) ? UNICORN_ARM_SP_EL1 : UNICORN_ARM_SP_EL0;
}

void arm_go(struct rift_emulator_cpu *cpu, uint64_t pstate, uint64_t pc) {
    struct unicorn_context *context = cpu->context;
    const size_t stack = layout->general + 8 * 31;
    uint64_t old = 0, value = 0;
    uint32_t written = (uint32_t)pstate;
    unicorn.context_save(cpu->engine, context);
    unicorn.context_reg_read(context, UNICORN_ARM_PSTATE, &old);
    value = arm_context_get(context, stack);
    unicorn.context_reg_write(context, stack_id(old), &value);
    unicorn.context_reg_read(context, stack_id(pstate), &value);
    arm_context_set(context, stack, value);
    unicorn.context_reg_write(context, UNICORN_ARM_PSTATE, &written);
    arm_context_set(context, layout->pc, pc);
    unicorn.context_restore(cpu->engine, context);
    arm_set_system(cpu, ARM_CONTEXTIDR_EL1, arm_system(cpu, ARM_CONTEXTIDR_EL1));
}
