/* Kicks: how any thread makes a vCPU leave the guest, without ever losing one.
 *
 *   kicker: kick = 1; while the owner is in the guest and kick is still set: have the hypervisor end the run
 *   owner:  in_guest = 1; look at kick; run; in_guest = 0                            (hvf_run.c)
 *
 * If the owner looks before kick is set, the kicker sees in_guest. The framework promises that a call which
 * comes before the run has begun ends that run at once; on x86-64 there are reports that it does not, so the
 * kicker asks again until the owner is out. A flush of translations works the same way, with a flag of its own. */
#include "hvf_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define FIRST_PAUSE_NS 10000u
#define LONGEST_PAUSE_NS 1000000u
#define MOST_ATTEMPTS 2000 /* some two seconds: the owner does not get a processor, or the framework does not answer */

struct rift_hvf_control *rift_hvf_control_create(const struct rift_hvf_framework *framework) {
    struct rift_hvf_control *control = calloc(1, sizeof(*control));
    if (!control)
        return NULL;
    atomic_init(&control->references, 1);
    pthread_mutex_init(&control->lock, NULL);
    pthread_cond_init(&control->kicked, NULL);
    control->framework = framework;
    return control;
}

struct rift_hvf_control *rift_hvf_vcpu_control(struct rift_hvf_vcpu *vcpu) {
    atomic_fetch_add(&vcpu->control->references, 1);
    return vcpu->control;
}

void rift_hvf_control_release(struct rift_hvf_control *control) {
    if (!control || atomic_fetch_sub(&control->references, 1) != 1)
        return;
    pthread_cond_destroy(&control->kicked);
    pthread_mutex_destroy(&control->lock);
    free(control);
}

void rift_hvf_control_seat(struct rift_hvf_control *control, uint64_t id) {
    pthread_mutex_lock(&control->lock);
    control->id = id;
    control->seated = 1;
    pthread_mutex_unlock(&control->lock);
}

void rift_hvf_control_unseat(struct rift_hvf_control *control) {
    pthread_mutex_lock(&control->lock);
    control->seated = 0;
    pthread_mutex_unlock(&control->lock);
}

/* Until the owner has left the guest or has taken notice of `flag`. Under the lock, which keeps the id valid. */
static void drive_out(struct rift_hvf_control *control, const atomic_uint *flag) {
    long pause = FIRST_PAUSE_NS;
    for (int attempt = 0; attempt < MOST_ATTEMPTS; ++attempt) {
        if (!control->seated || !atomic_load(&control->in_guest) || !atomic_load(flag))
            return;
        control->framework->binding->vcpu_exit(control->framework, control->id);
        if (!atomic_load(&control->in_guest))
            return;
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        pause = pause * 2 < LONGEST_PAUSE_NS ? pause * 2 : LONGEST_PAUSE_NS;
    }
}

void rift_hvf_control_kick(struct rift_hvf_control *control) {
    pthread_mutex_lock(&control->lock);
    atomic_store(&control->kick, 1);
    pthread_cond_broadcast(&control->kicked);
    drive_out(control, &control->kick);
    pthread_mutex_unlock(&control->lock);
}

void rift_hvf_control_flush(struct rift_hvf_control *control) {
    pthread_mutex_lock(&control->lock);
    drive_out(control, &control->flush);
    pthread_mutex_unlock(&control->lock);
}

uint64_t rift_hvf_control_exits(const struct rift_hvf_control *control) {
    return atomic_load_explicit(&control->exits, memory_order_relaxed);
}
