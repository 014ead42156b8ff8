/* Breakpoints, watchpoints and single steps that the host asks for.
 *
 * A breakpoint is a hook, and not an address at which the engine halts of its own (its "exits"): each time it has
 * halted, the engine looks the code at those addresses up, and where none can be executed the guest's CPU is left
 * with a page fault that the guest has not had. While there are watchpoints the guest runs one instruction at a time,
 * and a hook looks at what each touches: the exit comes after the instruction, as it does on a CPU. The hook knows
 * guest-physical addresses, so that an access through another mapping of the same memory counts too. */
#include "emulator_internal.h"

#include <errno.h>
#include <string.h>

static void memory_hook(struct unicorn *engine, int type, uint64_t gpa, int size, int64_t value, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    struct rift_emulator_points *points = &vcpu->points;
    uint32_t access = type == UNICORN_ACCESS_WRITE ? RIFT_EMULATOR_WRITE : RIFT_EMULATOR_READ;
    (void)engine;
    (void)value;
    for (uint32_t at = 0; at < points->count && points->hit < 0; ++at) {
        const struct rift_emulator_debug_point *point = &points->points[at];
        uint64_t place = point->address % PAGE, start = gpa % PAGE, watched;
        if (!(point->kind & access) || start >= place + point->size || place >= start + (uint64_t)size)
            continue; /* cheap, and nearly always the case */
        if (vcpu->binding->translate(&vcpu->cpu, point->address, &watched))
            continue;
        if (gpa < watched + point->size && watched < gpa + (uint64_t)size)
            points->hit = (int)at;
    }
}

/* Before the instruction. */
static void breakpoint_hook(struct unicorn *engine, uint64_t pc, uint32_t size, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    (void)size;
    if (vcpu->cpu.leaving)
        return;
    rift_emulator_cut(&vcpu->cpu, pc);
    rift_emulator_debug_exit(&vcpu->cpu, 3, pc, 0, 0);
}

static int set_hooks(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_points *points = &vcpu->points;
    for (uint32_t at = 0; at < RIFT_EMULATOR_DEBUG_POINTS; ++at) {
        if (points->breaks[at])
            unicorn.hook_del(vcpu->cpu.engine, points->breaks[at]);
        points->breaks[at] = 0;
        if (at >= points->count || points->points[at].kind != RIFT_EMULATOR_EXECUTE)
            continue;
        uint64_t pc = points->points[at].address;
        int status = unicorn.hook_add(vcpu->cpu.engine, &points->breaks[at], UNICORN_HOOK_CODE,
                                      (void *)breakpoint_hook, vcpu, pc, pc);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_hook_add");
    }
    return 0;
}

static int set_watch(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_points *points = &vcpu->points;
    int wanted = 0;
    for (uint32_t at = 0; at < points->count; ++at)
        wanted |= points->points[at].kind != RIFT_EMULATOR_EXECUTE;
    vcpu->cpu.stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_WATCH;
    points->hit = -1;
    int status = 0;
    if (wanted && !points->watch) {
        status = unicorn.hook_add(vcpu->cpu.engine, &points->watch, UNICORN_HOOK_READ | UNICORN_HOOK_WRITE,
                                  (void *)memory_hook, vcpu, 1, 0);
    } else if (!wanted && points->watch) {
        status = unicorn.hook_del(vcpu->cpu.engine, points->watch);
        points->watch = 0;
    }
    if (status)
        return rift_emulator_engine_error(error, status, "uc_hook_add");
    if (wanted)
        vcpu->cpu.stepping |= RIFT_EMULATOR_STEP_WATCH;
    /* Pages that were touched before are on the engine's fast path, which asks no hook. */
    unicorn.ctl(vcpu->cpu.engine, UNICORN_CONTROL_WRITE | UNICORN_CONTROL_FLUSH_TRANSLATIONS);
    return 0;
}

int rift_emulator_vcpu_debug(struct rift_emulator_vcpu *vcpu, int single_step, int software, uint32_t count,
                             const struct rift_emulator_debug_point *wanted, struct rift_error *error) {
    struct rift_emulator_points *points = &vcpu->points;
    if (count > RIFT_EMULATOR_DEBUG_POINTS)
        return rift_emulator_fail(error, ENOSPC, "set_debug");
    for (uint32_t at = 0; at < count; ++at)
        if (wanted[at].kind != RIFT_EMULATOR_EXECUTE &&
            (wanted[at].size - 1 >= 8 || wanted[at].size & (wanted[at].size - 1) ||
             wanted[at].address % wanted[at].size))
            return rift_emulator_fail(error, EINVAL, "set_debug");
    vcpu->cpu.software = (uint32_t)software;
    vcpu->cpu.stepping &= ~(uint32_t)RIFT_EMULATOR_STEP_USER;
    if (single_step)
        vcpu->cpu.stepping |= RIFT_EMULATOR_STEP_USER;
    else
        vcpu->step_due = 0;
    if (count == points->count && (!count || memcmp(points->points, wanted, count * sizeof(*wanted)) == 0))
        return 0;
    points->count = count;
    memcpy(points->points, wanted, count * sizeof(*wanted));
    if (set_hooks(vcpu, error) || set_watch(vcpu, error))
        return -1;
    rift_emulator_code_flush(vcpu);
    return 0;
}
