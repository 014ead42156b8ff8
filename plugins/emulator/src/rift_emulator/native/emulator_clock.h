/* The monotonic clock and waits by it. */
#ifndef RIFT_EMULATOR_CLOCK_H
#define RIFT_EMULATOR_CLOCK_H

#include <pthread.h>
#include <stdint.h>

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t rift_emulator_now(void);
void rift_emulator_sleep(uint64_t nanoseconds);

/* A condition variable for rift_emulator_condition_wait, which ends early when it is signalled, or for no reason. */
void rift_emulator_condition_init(pthread_cond_t *condition);
void rift_emulator_condition_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t nanoseconds);

#endif
