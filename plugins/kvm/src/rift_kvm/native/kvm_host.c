/* What native exit handlers may call: struct rift_host of rift_abi.h. */
#include "kvm_internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Longest sleep between two looks at a word that a guest may change without waking anybody. */
#define SLICE_NS 1000000u

static struct rift_kvm_vcpu *vcpu_of(const struct rift_host *host) {
    return (struct rift_kvm_vcpu *)((uintptr_t)host - offsetof(struct rift_kvm_vcpu, host));
}

static void *host_memory(const struct rift_host *host, uint64_t gpa, uint64_t bytes, int writable) {
    struct rift_kvm_vm *vm = vcpu_of(host)->vm;
    void *found = NULL;
    pthread_mutex_lock(&vm->lock);
    for (uint32_t at = 0; at < vm->slot_count; ++at) {
        const struct rift_kvm_slot *slot = &vm->slots[at];
        if (gpa - slot->gpa >= slot->bytes)
            continue;
        if (bytes <= slot->bytes - (gpa - slot->gpa) && (slot->writable || !writable))
            found = slot->host + (gpa - slot->gpa);
        break;
    }
    pthread_mutex_unlock(&vm->lock);
    return found;
}

static int host_register_id(const struct rift_host *host, const char *name) {
    const struct rift_kvm_binding *binding = vcpu_of(host)->binding;
    for (uint32_t id = 0; id < binding->register_count; ++id)
        if (strcmp(binding->registers[id].name, name) == 0)
            return (int)id;
    return -1;
}

static int host_check(const struct rift_kvm_vcpu *vcpu, int id) {
    if (id < 0 || (uint32_t)id >= vcpu->binding->register_count)
        return -ENOENT;
    return vcpu->binding->registers[id].bits > 64 ? -EINVAL : 0;
}

/* The place of a deferred write to register `id`, or the next free one. */
static uint32_t deferred_place(const struct rift_kvm_vcpu *vcpu, int id) {
    uint32_t at = 0;
    while (at < vcpu->deferred && vcpu->deferred_ids[at] != (uint32_t)id)
        ++at;
    return at;
}

/* A handler sees the registers in the middle of the access that it is about to answer: completing it first,
 * as rift_kvm_vcpu_read does for Python, would make its answer come too late. */
static int host_read_register(const struct rift_host *host, int id, uint64_t *value) {
    struct rift_kvm_vcpu *vcpu = vcpu_of(host);
    struct rift_error error;
    int status = host_check(vcpu, id);
    if (status)
        return status;
    uint32_t at = deferred_place(vcpu, id);
    if (at < vcpu->deferred) {
        *value = vcpu->deferred_words[at];
        return 0;
    }
    return vcpu->binding->read_registers(&vcpu->cpu, &(uint32_t){(uint32_t)id}, 1, value, &error) ? -error.code : 0;
}

/* Registers written in the middle of an access would be changed once more by its completion, which may also lose the
 * result of a read, so that they wait until it is complete. */
static int host_write_register(const struct rift_host *host, int id, uint64_t value) {
    struct rift_kvm_vcpu *vcpu = vcpu_of(host);
    struct rift_error error;
    int status = host_check(vcpu, id);
    if (status)
        return status;
    int store_is_done = vcpu->window.exit.is_write && !(vcpu->binding->flags & RIFT_KVM_STORES_STAY_OPEN);
    if (vcpu->cpu.open && !store_is_done) {
        uint32_t at = deferred_place(vcpu, id), bits = vcpu->binding->registers[id].bits;
        if (at == RIFT_KVM_DEFERRED)
            return -ENOSPC;
        if (bits < 64 && value >> bits)
            return -ERANGE;
        vcpu->deferred_ids[at] = (uint32_t)id;
        vcpu->deferred_words[at] = value;
        if (at == vcpu->deferred)
            vcpu->deferred += 1;
        return 0;
    }
    return vcpu->binding->write_registers(&vcpu->cpu, &(uint32_t){(uint32_t)id}, 1, &value, &error) ? -error.code : 0;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The word may be changed by a guest, which cannot wake a futex: hence the slices. A kick's signal ends the
 * sleep at once; one that arrives just before it costs a slice. */
static int host_wait(const struct rift_host *host, const uint32_t *word, uint32_t expected, uint64_t deadline) {
    struct rift_kvm_vcpu *vcpu = vcpu_of(host);
    for (;;) {
        if (atomic_load(&vcpu->control->kick))
            return -EINTR;
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
            return 0;
        uint64_t slice = SLICE_NS;
        if (deadline) {
            uint64_t time = now();
            if (time >= deadline)
                return -ETIMEDOUT;
            if (deadline - time < slice)
                slice = deadline - time;
        }
        struct timespec timeout = {.tv_nsec = (long)slice};
        int code = syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0) ? errno : 0;
        if (code == EINTR && vcpu->on_main)
            return -EINTR;
        if (code && code != EINTR && code != EAGAIN && code != ETIMEDOUT)
            return -code;
    }
}

void rift_kvm_host_init(struct rift_kvm_vcpu *vcpu) {
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
