/* The monotonic clock and waits by it: where macOS and Linux differ. */
#include "emulator_clock.h"

#include <time.h>

#define BILLION UINT64_C(1000000000)

uint64_t rift_emulator_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * BILLION + (uint64_t)time.tv_nsec;
}

void rift_emulator_sleep(uint64_t nanoseconds) {
    struct timespec time = {.tv_sec = (time_t)(nanoseconds / BILLION), .tv_nsec = (long)(nanoseconds % BILLION)};
    nanosleep(&time, NULL);
}

#ifdef __APPLE__

void rift_emulator_condition_init(pthread_cond_t *condition) {
    pthread_cond_init(condition, NULL);
}

void rift_emulator_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t nanoseconds) {
    struct timespec time = {.tv_sec = (time_t)(nanoseconds / BILLION), .tv_nsec = (long)(nanoseconds % BILLION)};
    pthread_cond_timedwait_relative_np(condition, lock, &time);
}

#else

void rift_emulator_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

void rift_emulator_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t nanoseconds) {
    uint64_t end = rift_emulator_now() + nanoseconds;
    struct timespec time = {.tv_sec = (time_t)(end / BILLION), .tv_nsec = (long)(end % BILLION)};
    pthread_cond_timedwait(condition, lock, &time);
}

#endif
