/* Finds, once a process, where the engine keeps what its interface has no names for, and refuses an engine that it
 * does not recognise.
 *
 * Anchors are found by writing known values through the interface and looking for them in a saved context. What has
 * no name lies at fixed distances from anchors (the engine's CPUX86State of versions 2.1.x), and is confirmed by a
 * guest of a few instructions whose exceptions must arrive just as expected. */
#include "emulator_internal.h"
#include "emulator_x86_64.h"

#include <string.h>

struct x86_layout rift_emulator_x86_layout;

#define PATTERN UINT64_C(0x5A17C0DE00000000)

static size_t find64(const uint8_t *context, size_t size, uint64_t value) {
    return rift_emulator_find(context, size, &value, sizeof(value));
}

/* Writes the patterns and finds the anchors. `salt` makes every value of a call unlike those of another. */
static int anchors(struct unicorn *engine, struct unicorn_context *context, uint64_t salt, struct x86_layout *layout) {
    size_t size = unicorn.context_size(engine);
    const uint8_t *bytes = (const uint8_t *)context;
    uint64_t base = PATTERN | salt << 16, general[X86_GENERAL_COUNT];
    for (uint64_t at = 0; at < X86_GENERAL_COUNT; ++at) {
        general[at] = base + at;
        unicorn.reg_write(engine, rift_emulator_x86_general[at], &general[at]);
    }
    const uint64_t rip = base + 0x20, fs = base + 0x21, gs = base + 0x22, dr = base + 0x23, aux = base + 0x24,
                   cr2 = base + 0x25;
    const struct unicorn_table tr = {.selector = 0x28, .base = base + 0x26, .limit = 0x67, .flags = 0x8B00};
    const struct unicorn_table idtr = {.base = base + 0x27, .limit = 0xFFF};
    const struct unicorn_msr tsc_aux = {.number = 0xC0000103, .value = aux};
    unicorn.reg_write(engine, UNICORN_RIP, &rip);
    unicorn.reg_write(engine, UNICORN_FS_BASE, &fs);
    unicorn.reg_write(engine, UNICORN_GS_BASE, &gs);
    unicorn.reg_write(engine, UNICORN_DR0, &dr);
    unicorn.reg_write(engine, UNICORN_CR2, &cr2);
    unicorn.reg_write(engine, UNICORN_TR, &tr);
    unicorn.reg_write(engine, UNICORN_IDTR, &idtr);
    unicorn.reg_write(engine, UNICORN_MSR, &tsc_aux);
    unicorn.context_save(engine, context);
    layout->general = rift_emulator_find(bytes, size, general, sizeof(general));
    layout->rip = find64(bytes, size, rip);
    size_t fs_base = find64(bytes, size, fs), gs_base = find64(bytes, size, gs);
    size_t tr_base = find64(bytes, size, tr.base), idtr_base = find64(bytes, size, idtr.base);
    layout->segments = fs_base - SEGMENT_BASE - X86_FS * SEGMENT_SIZE;
    layout->dr = find64(bytes, size, dr);
    layout->cr = find64(bytes, size, cr2) - 16;
    layout->xcr0 = find64(bytes, size, aux) + 8;
    size_t start = layout->segments + SEGMENT_BASE;
    uint32_t limit, flags;
    memcpy(&limit, bytes + layout->segments + X86_TR * SEGMENT_SIZE + SEGMENT_LIMIT, 4);
    memcpy(&flags, bytes + layout->segments + X86_TR * SEGMENT_SIZE + SEGMENT_FLAGS, 4);
    return layout->general && layout->rip && fs_base && layout->dr && layout->cr > 16 && layout->xcr0 > 8 &&
           gs_base == start + X86_GS * SEGMENT_SIZE && tr_base == start + X86_TR * SEGMENT_SIZE &&
           idtr_base == start + X86_IDTR * SEGMENT_SIZE && limit == tr.limit && flags == tr.flags &&
           layout->cr == layout->segments + 10 * SEGMENT_SIZE;
}

/* What lies at fixed distances: between the segments and the flags, behind the control registers, and around the
 * debug registers. */
static void derive(struct x86_layout *layout) {
    layout->hidden_flags = layout->segments - 8;
    layout->efer = layout->cr + 168;
    layout->error_code = layout->dr - 16;
    layout->is_interrupt = layout->dr - 12;
    layout->next_rip = layout->dr - 8;
    layout->old_exception = layout->dr + 96;
    layout->vmcb = layout->dr + 104;
    layout->intercepts = layout->dr + 120;
}

/* Hidden flags and EFER follow what the interface is told: MP EM TS, OSFXSR; SCE and NXE. */
static int confirm_flags(struct unicorn *engine, struct unicorn_context *context, const struct x86_layout *layout) {
    for (uint64_t round = 0; round < 8; ++round) {
        uint64_t cr0 = 1 | round << 1, cr4 = (round & 1) << 9;
        struct unicorn_msr efer = {.number = 0xC0000080, .value = (round & 1) * EFER_SCE | (round & 2) / 2 * EFER_NXE};
        unicorn.reg_write(engine, UNICORN_CR0, &cr0);
        unicorn.reg_write(engine, UNICORN_CR4, &cr4);
        unicorn.reg_write(engine, UNICORN_MSR, &efer);
        unicorn.context_save(engine, context);
        uint32_t hidden = x86_get32(context, layout->hidden_flags);
        uint64_t found = x86_get(context, layout->efer);
        if ((hidden >> 9 & 7) != round || (hidden >> 22 & 1) != (round & 1) || !(hidden >> 15 & 1) ||
            (found & (EFER_SCE | EFER_NXE)) != efer.value || !(found & EFER_LMA))
            return 0;
    }
    return 1;
}

/* -- the guest --------------------------------------------------------------------------------------- */

/* What each instruction of the guest must cause, in order. */
struct expected {
    uint32_t number, code;
    int is_interrupt;
    uint64_t rip;
};

#define GUEST 0x1000

static const uint8_t guest_code[] = {
    0xCD, 0x21,                               /* int 0x21 */
    0xB9, 0x45, 0x23, 0x01, 0x00, 0x0F, 0x32, /* mov ecx, 0x12345; rdmsr */
    0xEE,                                     /* out dx, al */
    0x90, 0xF4,                               /* nop; hlt */
};

static const struct expected expectations[] = {
    {0x21, 0, 1, GUEST + 2},
    {X86_VMEXIT + X86_VMEXIT_MSR, 0, 0, GUEST + 7},
    {X86_DB, 0, 0, GUEST + 10},
    {X86_VMEXIT + X86_VMEXIT_HLT, 0, 0, GUEST + 11},
};

struct trial {
    struct unicorn_context *context;
    unsigned next;
    int wrong;
};

static void trial_interrupt(struct unicorn *engine, uint32_t number, void *argument) {
    struct trial *trial = argument;
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    const struct expected *expected = &expectations[trial->next];
    struct unicorn_context *context = trial->context;
    unicorn.context_save(engine, context);
    uint64_t rip = x86_get(context, layout->rip);
    int is_interrupt = x86_get32(context, layout->is_interrupt) != 0;
    if (number != expected->number || x86_get32(context, layout->error_code) != expected->code || rip != expected->rip ||
        (number < X86_VMEXIT && is_interrupt != expected->is_interrupt))
        trial->wrong = 1;
    if (is_interrupt && x86_get(context, layout->next_rip) != rip)
        trial->wrong = 1;
    x86_set32(context, layout->is_interrupt, 0);
    x86_set32(context, layout->old_exception, UINT32_MAX);
    if (number == X86_VMEXIT + X86_VMEXIT_MSR)
        x86_set(context, layout->rip, rip + 2);
    unicorn.context_restore(engine, context);
    trial->next += 1;
    if (trial->wrong || trial->next == sizeof(expectations) / sizeof(expectations[0]))
        unicorn.emu_stop(engine);
}

static void trial_out(struct unicorn *engine, uint32_t port, int size, uint32_t value, void *argument) {
    const uint64_t dr3 = port, dr7 = 1u << 6 | 2u << 28;
    (void)size;
    (void)value;
    (void)argument;
    unicorn.reg_write(engine, UNICORN_DR3, &dr3);
    unicorn.reg_write(engine, UNICORN_DR7, &dr7);
}

static int confirm_behaviour(struct unicorn *engine, struct unicorn_context *context) {
    static _Alignas(4096) uint8_t page[4096];
    struct trial trial = {.context = context};
    unicorn_hook hook;
    memcpy(page, guest_code, sizeof(guest_code));
    if (unicorn.mem_map_ptr(engine, GUEST, sizeof(page), UNICORN_READ | UNICORN_EXECUTE, page) ||
        unicorn.mem_map_ptr(engine, X86_INTERCEPT_GPA, X86_INTERCEPT_BYTES, UNICORN_READ | UNICORN_WRITE,
                            x86_intercept_pages()) ||
        unicorn.hook_add(engine, &hook, UNICORN_HOOK_INTERRUPT, (void *)trial_interrupt, &trial, 1, 0) ||
        unicorn.hook_add(engine, &hook, UNICORN_HOOK_INSTRUCTION, (void *)trial_out, NULL, 1, 0, 500))
        return 0;
    unicorn.context_save(engine, context);
    x86_intercept(context);
    unicorn.context_restore(engine, context);
    int status = unicorn.emu_start(engine, GUEST, 0, 0, 0);
    return !status && !trial.wrong && trial.next == sizeof(expectations) / sizeof(expectations[0]);
}

static int learn(struct unicorn *engine, struct unicorn_context *context) {
    struct x86_layout first = {0}, second = {0};
    if (!anchors(engine, context, 1, &first) || !anchors(engine, context, 2, &second) ||
        memcmp(&first, &second, sizeof(first)) != 0)
        return 0;
    derive(&first);
    if (!confirm_flags(engine, context, &first))
        return 0;
    rift_emulator_x86_layout = first;
    return confirm_behaviour(engine, context);
}

int x86_learn(struct rift_error *error) {
    static int known;
    return rift_emulator_recognise(rift_emulator_x86_64(), &known, learn, error);
}
