/* Mutex, barrier and channel. All of them spin: a guest thread is a CPU, and there is nobody to yield to. */
#include "rift_internal.h"

RIFT_RUNTIME(mutex_lock) void rift_mutex_lock(struct rift_mutex *mutex) {
    const uint32_t ticket = __atomic_fetch_add(&mutex->next, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&mutex->serving, __ATOMIC_ACQUIRE) != ticket)
        rift_relax();
}

RIFT_RUNTIME(mutex_try_lock) bool rift_mutex_try_lock(struct rift_mutex *mutex) {
    uint32_t ticket = __atomic_load_n(&mutex->serving, __ATOMIC_ACQUIRE);
    return __atomic_compare_exchange_n(&mutex->next, &ticket, ticket + 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

RIFT_RUNTIME(mutex_unlock) void rift_mutex_unlock(struct rift_mutex *mutex) {
    /* Only the holder writes it, so that no locked instruction is needed. */
    __atomic_store_n(&mutex->serving, mutex->serving + 1, __ATOMIC_RELEASE);
}

RIFT_RUNTIME(barrier_wait) bool rift_barrier_wait(struct rift_barrier *barrier) {
    const uint32_t round = __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&barrier->waiting, 1, __ATOMIC_ACQ_REL) == barrier->count) {
        __atomic_store_n(&barrier->waiting, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&barrier->round, round + 1, __ATOMIC_RELEASE);
        return true;
    }
    while (__atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round)
        rift_relax();
    return false;
}

/* Copies between a ring and plain bytes; `at` counts from the beginning of time. */
RIFT_RUNTIME(channel) static void copy(struct rift_channel *channel, uint64_t at, unsigned char *bytes, size_t count,
                                       bool into) {
    const uint64_t size = channel->size;
    const uint64_t offset = at & (size - 1);
    const size_t first = count < size - offset ? count : (size_t)(size - offset);
    if (into) {
        memcpy(channel->bytes + offset, bytes, first);
        memcpy(channel->bytes, bytes + first, count - first);
    } else {
        memcpy(bytes, channel->bytes + offset, first);
        memcpy(bytes + first, channel->bytes, count - first);
    }
}

RIFT_RUNTIME(channel) size_t rift_channel_write(struct rift_channel *channel, const void *bytes, size_t count) {
    const uint64_t written = channel->written;
    const uint64_t used = written - __atomic_load_n(&channel->read, __ATOMIC_ACQUIRE);
    const uint64_t room = used > channel->size ? 0 : channel->size - used;
    if (count > room)
        count = (size_t)room;
    copy(channel, written, (unsigned char *)(uintptr_t)bytes, count, true);
    __atomic_store_n(&channel->written, written + count, __ATOMIC_RELEASE);
    return count;
}

RIFT_RUNTIME(channel) size_t rift_channel_read(struct rift_channel *channel, void *bytes, size_t count) {
    const uint64_t read = channel->read;
    uint64_t there = __atomic_load_n(&channel->written, __ATOMIC_ACQUIRE) - read;
    if (there > channel->size)
        there = 0;
    if (count > there)
        count = (size_t)there;
    copy(channel, read, bytes, count, false);
    __atomic_store_n(&channel->read, read + count, __ATOMIC_RELEASE);
    return count;
}
