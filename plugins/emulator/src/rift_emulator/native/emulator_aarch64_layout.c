/* Finds, once a process, where the engine keeps what its interface has no names for, and refuses an engine that it
 * does not recognise: known values are written through the interface and looked for in a saved context, and a guest of
 * a few instructions must have its exceptions arrive just as expected. */
#include "emulator_internal.h"
#include "emulator_aarch64.h"

#include <string.h>

struct arm_layout rift_emulator_arm_layout;

#define PATTERN UINT64_C(0x5A17C0DE00000000)
#define GUEST 0x1000
#define TABLES 0x2000 /* all entries invalid */

static int anchors(struct unicorn *engine, struct unicorn_context *context, uint64_t salt, struct arm_layout *layout) {
    size_t size = unicorn.context_size(engine);
    uint64_t values[33]; /* X0 to X30, SP, PC */
    for (uint32_t at = 0; at < 33; ++at) {
        int id = at < 29 ? UNICORN_ARM_X0 + (int)at : at < 31 ? UNICORN_ARM_X29 + (int)at - 29
                 : at < 32 ? UNICORN_ARM_SP : UNICORN_ARM_PC;
        values[at] = PATTERN | salt << 16 | 4 * at;
        unicorn.reg_write(engine, id, &values[at]);
    }
    unicorn.context_save(engine, context);
    layout->general = rift_emulator_find((const uint8_t *)context, size, values, sizeof(values));
    layout->pc = layout->general + 8 * 32;
    return layout->general != 0;
}

/* -- the guest --------------------------------------------------------------------------------------- */

static const uint32_t guest_code[] = {
    0xD4024681, /* svc #0x1234 */
    0xD40000E2, /* hvc #7 */
    0xD503207F, /* wfi */
    0xD4000003, /* smc #0 */
    0xD42000A0, /* brk #5; then the tables come in, and none of it is there any more */
};

static const struct expected {
    uint32_t number, syndrome;
    uint64_t pc;
} expectations[] = {
    {ARM_SUPERVISOR_CALL, 0x56001234, GUEST + 4},
    {ARM_HYPERVISOR_CALL, 0x5A000007, GUEST + 8},
    {ARM_UNDEFINED, 0x07E00000, GUEST + 8},
    {ARM_HYPERVISOR_TRAP, 0x5E000000, GUEST + 12},
    {ARM_BREAKPOINT, 0xF2000005, GUEST + 16},
    {ARM_PREFETCH_ABORT, 0x86000004, GUEST + 20},
};
#define EXPECTATIONS (sizeof(expectations) / sizeof(expectations[0]))

struct trial {
    struct unicorn_context *context;
    unsigned next;
    int wrong;
};

static void set_system(struct unicorn *engine, uint32_t op0, uint32_t op1, uint32_t crn, uint32_t crm, uint32_t op2,
                       uint64_t value) {
    struct unicorn_system_register target = {crn, crm, op0, op1, op2, value};
    unicorn.reg_write(engine, UNICORN_ARM_SYSTEM, &target);
}

static void trial_interrupt(struct unicorn *engine, uint32_t number, void *argument) {
    struct trial *trial = argument;
    struct arm_layout *layout = &rift_emulator_arm_layout;
    struct unicorn_context *context = trial->context;
    const struct expected *expected = &expectations[trial->next];
    unicorn.context_save(engine, context);
    if (!trial->next) {
        layout->syndrome =
            rift_emulator_find((const uint8_t *)context, unicorn.context_size(engine), &expected->syndrome,
                               sizeof(expected->syndrome));
        layout->address = layout->syndrome + 8;
    }
    const uint64_t pc = arm_context_get(context, layout->pc);
    if (!layout->syndrome || number != expected->number || pc != expected->pc ||
        (uint32_t)arm_context_get(context, layout->syndrome) != expected->syndrome)
        trial->wrong = 1;
    if (number == ARM_PREFETCH_ABORT && arm_context_get(context, layout->address) != pc)
        trial->wrong = 1;
    arm_context_set(context, layout->pc, GUEST + 4 * (trial->next + 1));
    unicorn.context_restore(engine, context);
    if (number == ARM_BREAKPOINT) {
        set_system(engine, 3, 0, 2, 0, 0, TABLES); /* TTBR0_EL1 */
        set_system(engine, 3, 0, 2, 0, 2, 16);     /* TCR_EL1: 48 bits */
        set_system(engine, 3, 0, 1, 0, 0, 1);      /* SCTLR_EL1: M */
        unicorn.ctl(engine, UNICORN_CONTROL_WRITE | UNICORN_CONTROL_FLUSH_TRANSLATIONS);
    }
    trial->next += 1;
    if (trial->wrong || trial->next == EXPECTATIONS)
        unicorn.emu_stop(engine);
}

static int confirm_behaviour(struct unicorn *engine, struct unicorn_context *context) {
    static _Alignas(4096) uint8_t pages[2 * 4096];
    struct trial trial = {.context = context};
    const uint32_t pstate = (uint32_t)(PSTATE_EL1H | PSTATE_MASKED);
    unicorn_hook hook;
    memcpy(pages, guest_code, sizeof(guest_code));
    if (unicorn.mem_map_ptr(engine, GUEST, sizeof(pages), UNICORN_READ | UNICORN_EXECUTE, pages) ||
        unicorn.hook_add(engine, &hook, UNICORN_HOOK_INTERRUPT, (void *)trial_interrupt, &trial, 1, 0))
        return 0;
    unicorn.reg_write(engine, UNICORN_ARM_PSTATE, &pstate);
    arm_restrict(engine);
    int status = unicorn.emu_start(engine, GUEST, 0, 0, 0);
    return !status && !trial.wrong && trial.next == EXPECTATIONS;
}

static int learn(struct unicorn *engine, struct unicorn_context *context) {
    struct arm_layout first = {0}, second = {0};
    if (!anchors(engine, context, 1, &first) || !anchors(engine, context, 2, &second) ||
        memcmp(&first, &second, sizeof(first)) != 0)
        return 0;
    rift_emulator_arm_layout = first;
    return confirm_behaviour(engine, context);
}

int arm_learn(struct rift_error *error) {
    static int known;
    return rift_emulator_recognise(rift_emulator_aarch64(), &known, learn, error);
}
