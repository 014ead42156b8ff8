/* Kicks: how any thread makes a vCPU leave the engine, without ever losing one.
 *
 *   kicker: kick = 1; if the owner is in the engine: stop the engine      (under the lock)
 *   owner:  look at kick, say that it is in the engine                    (under the lock)
 *
 * The engine forgets a stop that comes while it starts, so that a stop is repeated by a helper thread until the
 * owner has left the engine. */
#include "emulator_clock.h"
#include "emulator_internal.h"

#include <stdlib.h>

#define REPEAT_NS UINT64_C(1000000)

/* Those that have been told to leave the engine and may not have heard it. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t condition;
    struct rift_emulator_control *first;
    int started;
} unruly = {.lock = PTHREAD_MUTEX_INITIALIZER, .condition = PTHREAD_COND_INITIALIZER};

struct rift_emulator_control *rift_emulator_control_create(struct rift_emulator_turn *turn) {
    struct rift_emulator_control *control = calloc(1, sizeof(*control));
    if (!control)
        return NULL;
    atomic_init(&control->references, 1);
    pthread_mutex_init(&control->lock, NULL);
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
    pthread_mutex_destroy(&control->lock);
    free(control);
}

int rift_emulator_control_enter(struct rift_emulator_control *control, struct unicorn *engine, int whatever) {
    pthread_mutex_lock(&control->lock);
    int wanted = !whatever && (atomic_load(&control->kick) || atomic_load(&control->yield));
    if (!wanted)
        control->engine = engine;
    pthread_mutex_unlock(&control->lock);
    return wanted ? -1 : 0;
}

void rift_emulator_control_leave(struct rift_emulator_control *control) {
    pthread_mutex_lock(&control->lock);
    control->engine = NULL;
    pthread_mutex_unlock(&control->lock);
}

/* Whether the owner was in the engine, which has been told to stop. */
static int stop(struct rift_emulator_control *control) {
    pthread_mutex_lock(&control->lock);
    int inside = control->engine != NULL;
    if (inside)
        unicorn.emu_stop(control->engine);
    pthread_mutex_unlock(&control->lock);
    return inside;
}

/* Tells again, and forgets those that have left. Under the list's lock. */
static void tell_again(void) {
    struct rift_emulator_control **link = &unruly.first;
    while (*link) {
        struct rift_emulator_control *control = *link;
        int wanted = atomic_load(&control->kick) || atomic_load(&control->yield);
        if (wanted && stop(control)) {
            link = &control->next_unruly;
            continue;
        }
        *link = control->next_unruly;
        control->unruly = 0;
        rift_emulator_control_release(control);
    }
}

static void *repeat(void *nothing) {
    (void)nothing;
    pthread_mutex_lock(&unruly.lock);
    for (;;) {
        while (!unruly.first)
            pthread_cond_wait(&unruly.condition, &unruly.lock);
        pthread_mutex_unlock(&unruly.lock);
        rift_emulator_sleep(REPEAT_NS);
        pthread_mutex_lock(&unruly.lock);
        tell_again();
    }
    return NULL;
}

int rift_emulator_control_start(struct rift_error *error) {
    pthread_mutex_lock(&unruly.lock);
    int status = 0;
    if (!unruly.started) {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        status = pthread_create(&thread, &attributes, repeat, NULL);
        pthread_attr_destroy(&attributes);
        unruly.started = status == 0;
    }
    pthread_mutex_unlock(&unruly.lock);
    return status ? rift_emulator_fail(error, status, "pthread_create") : 0;
}

void rift_emulator_after_fork(void) {
    pthread_mutex_init(&unruly.lock, NULL);
    pthread_cond_init(&unruly.condition, NULL);
    unruly.first = NULL;
    unruly.started = 0;
}

static void tell(struct rift_emulator_control *control) {
    if (!stop(control))
        return;
    pthread_mutex_lock(&unruly.lock);
    if (!control->unruly) {
        control->unruly = 1;
        atomic_fetch_add(&control->references, 1);
        control->next_unruly = unruly.first;
        unruly.first = control;
        pthread_cond_signal(&unruly.condition);
    }
    pthread_mutex_unlock(&unruly.lock);
}

void rift_emulator_control_kick(struct rift_emulator_control *control) {
    atomic_store(&control->kick, 1);
    tell(control);
    rift_emulator_turn_wake(control->turn);
}

void rift_emulator_control_yield(struct rift_emulator_control *control) {
    atomic_store(&control->yield, 1);
    tell(control);
}

uint64_t rift_emulator_control_exits(const struct rift_emulator_control *control) {
    return atomic_load_explicit(&control->exits, memory_order_relaxed);
}
