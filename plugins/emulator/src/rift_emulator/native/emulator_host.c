/* What native exit handlers may call: struct rift_host of rift_abi.h. */
#include "emulator_clock.h"
#include "emulator_internal.h"

#include <errno.h>
#include <string.h>

/* Longest sleep between two looks at a word that a guest may change without waking anybody. */
#define SLICE_NS UINT64_C(1000000)
#define FIRST_SLEEP_NS UINT64_C(20000)

static struct rift_emulator_vcpu *vcpu_of(const struct rift_host *host) {
    return (struct rift_emulator_vcpu *)((uintptr_t)host - offsetof(struct rift_emulator_vcpu, host));
}

static void *host_memory(const struct rift_host *host, uint64_t gpa, uint64_t bytes, int writable) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(host);
    void *found = NULL;
    pthread_mutex_lock(&vcpu->vm->lock);
    const struct rift_emulator_region *region = rift_emulator_vm_find(vcpu->vm, gpa);
    if (region && bytes <= region->bytes - (gpa - region->gpa) && (region->writable || !writable))
        found = region->host + (gpa - region->gpa);
    pthread_mutex_unlock(&vcpu->vm->lock);
    if (writable)
        vcpu->touched = 1;
    return found;
}

static int host_register_id(const struct rift_host *host, const char *name) {
    const struct rift_emulator_binding *binding = vcpu_of(host)->binding;
    for (uint32_t id = 0; id < binding->register_count; ++id)
        if (strcmp(binding->registers[id].name, name) == 0)
            return (int)id;
    return -1;
}

static int host_check(const struct rift_emulator_vcpu *vcpu, int id) {
    if (id < 0 || (uint32_t)id >= vcpu->binding->register_count)
        return -ENOENT;
    return vcpu->binding->registers[id].bits > 64 ? -EINVAL : 0;
}

/* The place of a deferred write to register `id`, or the next free one. */
static uint32_t deferred_place(const struct rift_emulator_vcpu *vcpu, int id) {
    uint32_t at = 0;
    while (at < vcpu->deferred && vcpu->deferred_ids[at] != (uint32_t)id)
        ++at;
    return at;
}

static int host_read_register(const struct rift_host *host, int id, uint64_t *value) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(host);
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

/* The engine is in the middle of an instruction, which goes on with what it has read before: registers that are
 * written here take their values when it is over. */
static int host_write_register(const struct rift_host *host, int id, uint64_t value) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(host);
    int status = host_check(vcpu, id);
    if (status)
        return status;
    uint32_t at = deferred_place(vcpu, id), bits = vcpu->binding->registers[id].bits;
    if (at == RIFT_EMULATOR_DEFERRED)
        return -ENOSPC;
    if (bits < 64 && value >> bits)
        return -ERANGE;
    vcpu->deferred_ids[at] = (uint32_t)id;
    vcpu->deferred_words[at] = value;
    if (at == vcpu->deferred)
        vcpu->deferred += 1;
    vcpu->precise = 1;
    return 0;
}

static int wait_for(struct rift_emulator_vcpu *vcpu, const uint32_t *word, uint32_t expected, uint64_t deadline) {
    uint64_t sleep = FIRST_SLEEP_NS;
    for (;;) {
        if (atomic_load(&vcpu->control->kick))
            return -EINTR;
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
            return 0;
        uint64_t slice = sleep;
        if (deadline) {
            uint64_t time = rift_emulator_now();
            if (time >= deadline)
                return -ETIMEDOUT;
            if (deadline - time < slice)
                slice = deadline - time;
        }
        rift_emulator_sleep(slice);
        sleep = sleep * 2 < SLICE_NS ? sleep * 2 : SLICE_NS;
    }
}

/* While it waits the others have their turns; afterwards the instruction is the last one of this entry, because
 * they may have changed anything. */
static int host_wait(const struct rift_host *host, const uint32_t *word, uint32_t expected, uint64_t deadline) {
    struct rift_emulator_vcpu *vcpu = vcpu_of(host);
    if (!atomic_load(&vcpu->control->kick) && __atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
        return 0;
    int has_turn = rift_emulator_turn_mine(vcpu->vm->turn);
    if (has_turn)
        rift_emulator_turn_give(vcpu->vm->turn);
    int status = wait_for(vcpu, word, expected, deadline);
    if (has_turn)
        rift_emulator_turn_take(vcpu->vm->turn, vcpu->control, 0); /* no kick: it is needed to leave */
    vcpu->precise = 1;
    vcpu->touched = 1;
    return status;
}

void rift_emulator_host_init(struct rift_emulator_vcpu *vcpu) {
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
