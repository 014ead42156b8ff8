/* What native exit handlers may call: struct rift_host of rift_abi.h. */
#include "hvf_internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* Longest sleep between two looks at a word that a guest may change without waking anybody. */
#define SLICE_NS 1000000u
#define SECOND_NS 1000000000u

static struct rift_hvf_vcpu *vcpu_of(const struct rift_host *host) {
    return (struct rift_hvf_vcpu *)((uintptr_t)host - offsetof(struct rift_hvf_vcpu, host));
}

static void *host_memory(const struct rift_host *host, uint64_t gpa, uint64_t bytes, int writable) {
    uint32_t wanted = HV_MEMORY_READ | (writable ? HV_MEMORY_WRITE : 0);
    return rift_hvf_memory_find(vcpu_of(host)->vm, gpa, bytes, wanted);
}

static int host_register_id(const struct rift_host *host, const char *name) {
    const struct rift_hvf_binding *binding = vcpu_of(host)->binding;
    for (uint32_t id = 0; id < binding->register_count; ++id)
        if (strcmp(binding->registers[id].name, name) == 0)
            return (int)id;
    return -1;
}

static int host_check(const struct rift_hvf_vcpu *vcpu, int id) {
    if (id < 0 || (uint32_t)id >= vcpu->binding->register_count)
        return -ENOENT;
    return vcpu->binding->registers[id].bits > 64 ? -EINVAL : 0;
}

/* -errno out of an error that may be an hv_return_t, which is negative. */
static int negative(const struct rift_error *error) {
    return error->code > 0 ? -error->code : -EIO;
}

/* The place of a deferred write to register `id`, or the next free one. */
static uint32_t deferred_place(const struct rift_hvf_vcpu *vcpu, int id) {
    uint32_t at = 0;
    while (at < vcpu->deferred && vcpu->deferred_ids[at] != (uint32_t)id)
        ++at;
    return at;
}

/* A handler sees the registers in the middle of the access that it is about to answer. */
static int host_read_register(const struct rift_host *host, int id, uint64_t *value) {
    struct rift_hvf_vcpu *vcpu = vcpu_of(host);
    struct rift_error error;
    int status = host_check(vcpu, id);
    if (status)
        return status;
    uint32_t at = deferred_place(vcpu, id);
    if (at < vcpu->deferred) {
        *value = vcpu->deferred_words[at];
        return 0;
    }
    status = vcpu->binding->read_registers(&vcpu->cpu, &(uint32_t){(uint32_t)id}, 1, value, &error);
    return status ? negative(&error) : 0;
}

/* What is written in the middle of an access takes effect when it is complete: the program counter still has to
 * move on, and the answer to reach its register. */
static int host_write_register(const struct rift_host *host, int id, uint64_t value) {
    struct rift_hvf_vcpu *vcpu = vcpu_of(host);
    struct rift_error error;
    int status = host_check(vcpu, id);
    if (status)
        return status;
    if (vcpu->cpu.open) {
        uint32_t at = deferred_place(vcpu, id), bits = vcpu->binding->registers[id].bits;
        if (at == RIFT_HVF_DEFERRED)
            return -ENOSPC;
        if (bits < 64 && value >> bits)
            return -ERANGE;
        vcpu->deferred_ids[at] = (uint32_t)id;
        vcpu->deferred_words[at] = value;
        if (at == vcpu->deferred)
            vcpu->deferred += 1;
        return 0;
    }
    status = vcpu->binding->write_registers(&vcpu->cpu, &(uint32_t){(uint32_t)id}, 1, &value, &error);
    return status ? negative(&error) : 0;
}

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * SECOND_NS + (uint64_t)time.tv_nsec;
}

void rift_hvf_control_sleep(struct rift_hvf_control *control, uint64_t nanoseconds) {
    uint64_t end = now(CLOCK_REALTIME) + nanoseconds; /* the clock that a condition waits by everywhere */
    struct timespec until = {.tv_sec = (time_t)(end / SECOND_NS), .tv_nsec = (long)(end % SECOND_NS)};
    pthread_mutex_lock(&control->lock);
    if (!atomic_load(&control->kick))
        pthread_cond_timedwait(&control->kicked, &control->lock, &until);
    pthread_mutex_unlock(&control->lock);
}

/* The word may be changed by a guest, which wakes nobody: hence the slices. */
static int host_wait(const struct rift_host *host, const uint32_t *word, uint32_t expected, uint64_t deadline) {
    struct rift_hvf_control *control = vcpu_of(host)->control;
    for (;;) {
        if (atomic_load(&control->kick))
            return -EINTR;
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
            return 0;
        uint64_t slice = SLICE_NS;
        if (deadline) {
            uint64_t time = now(CLOCK_MONOTONIC);
            if (time >= deadline)
                return -ETIMEDOUT;
            if (deadline - time < slice)
                slice = deadline - time;
        }
        rift_hvf_control_sleep(control, slice);
    }
}

void rift_hvf_host_init(struct rift_hvf_vcpu *vcpu) {
    vcpu->host = (struct rift_host){
        .version = RIFT_ABI_VERSION,
        .bytes = sizeof(struct rift_host),
        .thread_index = vcpu->cpu.index,
        .memory = host_memory,
        .register_id = host_register_id,
        .read_register = host_read_register,
        .write_register = host_write_register,
        .wait = host_wait,
    };
}
