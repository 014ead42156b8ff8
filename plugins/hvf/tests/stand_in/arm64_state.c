/* Registers of an engine, and the exceptions that it does not take by itself. */
#include "arm64.h"

#include <string.h>

size_t exception_place;

static uc_arm64_cp_reg place_of(uint16_t number) {
    return (uc_arm64_cp_reg){
        .crn = number >> 7 & 15, .crm = number >> 3 & 15, .op0 = number >> 14 & 3, .op1 = number >> 11 & 7, .op2 = number & 7};
}

static int read_cp(uc_engine *engine, uint16_t number, uint64_t *value) {
    uc_arm64_cp_reg reg = place_of(number);
    if (uc_reg_read(engine, UC_ARM64_REG_CP_REG, &reg))
        return -1;
    *value = reg.val;
    return 0;
}

static int write_cp(uc_engine *engine, uint16_t number, uint64_t value) {
    uc_arm64_cp_reg reg = place_of(number);
    reg.val = value;
    return uc_reg_write(engine, UC_ARM64_REG_CP_REG, &reg) ? -1 : 0;
}

/* -- where the engine keeps a syndrome: found with an SVC of a known number ------------------------------------- */

struct search {
    uc_context *context;
    size_t size;
};

static void save_at_exception(uc_engine *engine, uint32_t number, void *data) {
    struct search *search = data;
    (void)number;
    uc_context_save(engine, search->context);
    uc_emu_stop(engine);
}

int state_find_places(void) {
    static const uint16_t numbers[2] = {0x1234, 0x5CA9};
    uc_engine *engine;
    uc_hook hook;
    struct search search = {0};
    uint8_t candidates[32768] = {0};
    if (exception_place)
        return 0;
    if (uc_open(UC_ARCH_ARM64, UC_MODE_ARM, &engine) || uc_ctl_set_cpu_model(engine, UC_CPU_ARM64_MAX) ||
        uc_mem_map(engine, 0, 0x10000, UC_PROT_ALL) || uc_context_alloc(engine, &search.context))
        return -1;
    search.size = uc_context_size(engine);
    uc_hook_add(engine, &hook, UC_HOOK_INTR, (void *)save_at_exception, &search, 1, 0);
    for (unsigned at = 0; at < 2; ++at) {
        uint32_t code = 0xD4000001u | (uint32_t)numbers[at] << 5, wanted = 0x56000000u | numbers[at];
        uc_mem_write(engine, 0x1000 * (at + 1), &code, 4);
        uc_emu_start(engine, 0x1000 * (at + 1), ~UINT64_C(3), 0, 0);
        for (size_t place = 0; place + 4 <= search.size && place < sizeof(candidates); place += 4)
            candidates[place] += memcmp((uint8_t *)search.context + place, &wanted, 4) == 0;
    }
    for (size_t place = 0; place < sizeof(candidates); ++place)
        if (candidates[place] == 2)
            exception_place = place;
    uc_context_free(search.context);
    uc_close(engine);
    return exception_place ? 0 : -1;
}

/* -- registers ---------------------------------------------------------------------------------------------------- */

uint64_t state_pc(struct vcpu *vcpu) {
    uint64_t value;
    uc_reg_read(vcpu->engine, UC_ARM64_REG_PC, &value);
    return value;
}

void state_set_pc(struct vcpu *vcpu, uint64_t value) {
    uc_reg_write(vcpu->engine, UC_ARM64_REG_PC, &value);
}

static uint64_t raw_pstate(struct vcpu *vcpu) {
    uint64_t value;
    uc_reg_read(vcpu->engine, UC_ARM64_REG_PSTATE, &value);
    return value & 0xFFFFFFFF;
}

uint64_t state_pstate(struct vcpu *vcpu) {
    return (raw_pstate(vcpu) & ~(UINT64_C(1) << 21)) | vcpu->step_pending;
}

static unsigned sp_level(uint64_t pstate) {
    return (pstate & 0xC) && (pstate & 1);
}

/* The stack pointer in use is the engine's SP; the other one is in its bank. */
uint64_t state_sp(struct vcpu *vcpu, unsigned level) {
    uint64_t value = 0;
    if (sp_level(raw_pstate(vcpu)) == level)
        uc_reg_read(vcpu->engine, UC_ARM64_REG_SP, &value);
    else
        read_cp(vcpu->engine, level ? S_SP_EL1 : S_SP_EL0, &value);
    return value;
}

void state_set_sp(struct vcpu *vcpu, unsigned level, uint64_t value) {
    if (sp_level(raw_pstate(vcpu)) == level)
        uc_reg_write(vcpu->engine, UC_ARM64_REG_SP, &value);
    else
        write_cp(vcpu->engine, level ? S_SP_EL1 : S_SP_EL0, value);
}

void state_set_pstate(struct vcpu *vcpu, uint64_t value) {
    uint64_t thread;
    const uint64_t stacks[2] = {state_sp(vcpu, 0), state_sp(vcpu, 1)};
    vcpu->step_pending = value & UINT64_C(1) << 21;
    value &= 0xFFFFFFFF & ~(UINT64_C(1) << 21);
    uc_reg_write(vcpu->engine, UC_ARM64_REG_PSTATE, &value);
    state_set_sp(vcpu, 0, stacks[0]);
    state_set_sp(vcpu, 1, stacks[1]);
    /* Only a write of a system register makes the engine look at PSTATE again. */
    read_cp(vcpu->engine, S_TPIDR_EL1, &thread);
    write_cp(vcpu->engine, S_TPIDR_EL1, thread);
}

static int is_debug(uint16_t number) {
    return number >> 14 == 2 && (number >> 7 & 15) == 0 && (number & 7) >= 4;
}

static uint64_t *debug_place(struct vcpu *vcpu, uint16_t number) {
    const unsigned at = number >> 3 & 15;
    switch (number & 7) {
    case 4:
        return &vcpu->breaks[at].value;
    case 5:
        return &vcpu->breaks[at].control;
    case 6:
        return &vcpu->watches[at].value;
    default:
        return &vcpu->watches[at].control;
    }
}

/* hv_sys_reg_t of macOS 11. */
int state_knows_system(uint16_t number) {
    static const uint16_t known[] = {
        0x8010, 0x8012, 0xc000, 0xc005, 0xc020, 0xc021, 0xc028, 0xc029, 0xc030, 0xc031, 0xc038, 0xc039, 0xc03a, 0xc080, 0xc082,
        0xc100, 0xc101, 0xc102, 0xc108, 0xc109, 0xc10a, 0xc10b, 0xc110, 0xc111, 0xc112, 0xc113, 0xc118, 0xc119, 0xc200, 0xc201,
        0xc208, 0xc288, 0xc289, 0xc290, 0xc300, 0xc3a0, 0xc510, 0xc518, 0xc600, 0xc681, 0xc684, 0xc708, 0xd000, 0xde82, 0xde83,
        0xdf19, 0xdf1a, 0xe208};
    for (unsigned at = 0; at < sizeof(known) / sizeof(known[0]); ++at)
        if (known[at] == number)
            return 1;
    return is_debug(number);
}

uint64_t state_system(struct vcpu *vcpu, uint16_t number) {
    uint64_t value = 0;
    if (is_debug(number))
        return *debug_place(vcpu, number);
    if (number == S_MDSCR)
        return vcpu->mdscr;
    if (number == S_MPIDR)
        return vcpu->mpidr;
    if (number == S_SP_EL0 || number == S_SP_EL1)
        return state_sp(vcpu, number == S_SP_EL1);
    if (timer_read(vcpu, number, &value))
        return value;
    read_cp(vcpu->engine, number, &value);
    return value;
}

void state_set_system(struct vcpu *vcpu, uint16_t number, uint64_t value) {
    if (is_debug(number))
        *debug_place(vcpu, number) = value;
    else if (number == S_MDSCR)
        vcpu->mdscr = value;
    else if (number == S_MPIDR)
        vcpu->mpidr = value;
    else if (number == S_SP_EL0 || number == S_SP_EL1)
        state_set_sp(vcpu, number == S_SP_EL1, value);
    else if (!timer_write(vcpu, number, value))
        write_cp(vcpu->engine, number, value);
}

/* -- exceptions ----------------------------------------------------------------------------------------------------- */

void state_take_exception(struct vcpu *vcpu, unsigned kind, uint32_t syndrome, uint64_t address, int has_address) {
    const uint64_t old = state_pstate(vcpu), sctlr = state_system(vcpu, S_SCTLR);
    const uint64_t offset = (old & 0xC) == 0 ? 0x400 : old & 1 ? 0x200 : 0;
    state_set_system(vcpu, S_ELR, state_pc(vcpu));
    state_set_system(vcpu, S_SPSR, old);
    if (kind == 0)
        state_set_system(vcpu, S_ESR, syndrome);
    if (has_address)
        state_set_system(vcpu, S_FAR, address);
    uint64_t new = 0x3C5 | (old & (0xF0000000 | 1 << 22 | 1 << 24));
    if (!(sctlr >> 23 & 1)) /* SPAN */
        new |= 1 << 22;
    state_set_pstate(vcpu, new);
    state_set_pc(vcpu, state_system(vcpu, S_VBAR) + offset + 0x80 * kind);
}

uint32_t state_instruction(struct vcpu *vcpu, uint64_t address) {
    uint32_t code = 0;
    if (uc_vmem_read(vcpu->engine, address, UC_PROT_EXEC, &code, 4))
        return 0;
    return code;
}
