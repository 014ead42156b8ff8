/* Kicks: how any thread makes a vCPU leave the engine.
 *
 * The engine is never stopped from outside: it also looks for a stop in the middle of an instruction that uses memory, and
 * would execute such an instruction again. A kick is a mark, and the vCPU looks at it before each block of code
 * (emulator_run.c), where the program counter is right and nothing is half done. So no kick can be lost, either. */
#include "emulator_internal.h"

#include <stdlib.h>

struct rift_emulator_control *rift_emulator_control_create(struct rift_emulator_turn *turn) {
    struct rift_emulator_control *control = calloc(1, sizeof(*control));
    if (!control)
        return NULL;
    atomic_init(&control->references, 1);
    control->turn = rift_emulator_turn_hold(turn);
    return control;
}

struct rift_emulator_control *rift_emulator_vcpu_control(struct rift_emulator_vcpu *vcpu) {
    atomic_fetch_add(&vcpu->control->references, 1);
    return vcpu->control;
}

void rift_emulator_control_release(struct rift_emulator_control *control) {
    if (!control || atomic_fetch_sub(&control->references, 1) != 1)
        return;
    rift_emulator_turn_release(control->turn);
    free(control);
}

void rift_emulator_control_kick(struct rift_emulator_control *control) {
    atomic_store(&control->kick, 1);
    rift_emulator_turn_wake(control->turn);
}

void rift_emulator_control_yield(struct rift_emulator_control *control) {
    atomic_store(&control->yield, 1);
}

uint64_t rift_emulator_control_exits(const struct rift_emulator_control *control) {
    return atomic_load_explicit(&control->exits, memory_order_relaxed);
}
