/* The whole state of a vCPU in one piece: what KVM itself says it consists of, register by register. */
#include "kvm_aarch64.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC UINT64_C(0x34366D7261666972) /* "rifarm64" */

/* More registers than any CPU has: with the vectors of SVE they are some 400. */
#define MOST_REGISTERS 4096

struct header {
    uint64_t magic, bytes;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    uint32_t count;
};

struct entry {
    uint64_t id;
    uint64_t value[2];
};

/* Whether a register is state that the guest changes. Not: identification registers (op0 3, op1 0, CRn 0), cache
 * descriptions and firmware settings, which are the same for all vCPUs; and the virtual counter, which belongs to the
 * machine, and which must not go backwards for its other vCPUs. */
static int is_state(uint64_t id) {
    uint64_t kind = id & KVM_REG_ARM_COPROC_MASK, size = id & KVM_REG_SIZE_MASK;
    if (size != KVM_REG_SIZE_U32 && size != KVM_REG_SIZE_U64 && size != KVM_REG_SIZE_U128)
        return 0;
    if (kind == KVM_REG_ARM_CORE)
        return 1;
    if (kind != KVM_REG_ARM64_SYSREG || id == KVM_REG_ARM_TIMER_CNT || id == KVM_REG_ARM_PTIMER_CNT)
        return 0;
    uint64_t op0 = id >> 14 & 3, op1 = id >> 11 & 7, crn = id >> 7 & 15;
    return !(op0 == 3 && op1 != 2 && crn == 0) && id != ARM64_SYS_REG(3, 1, 0, 0, 1); /* CLIDR_EL1 */
}

/* Asks KVM once what a vCPU consists of. */
static int learn(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    if (arm->state_ids)
        return 0;
    struct kvm_reg_list probe = {.n = 0};
    if (cpu->machine->ioctl(cpu->fd, KVM_GET_REG_LIST, &probe) >= 0 || errno != E2BIG)
        return rift_kvm_arm_fail(error, errno, "KVM_GET_REG_LIST");
    if (!probe.n || probe.n > MOST_REGISTERS)
        return rift_kvm_arm_fail(error, EPROTO, "KVM_GET_REG_LIST");
    struct kvm_reg_list *list = malloc(sizeof(*list) + probe.n * sizeof(list->reg[0]));
    uint64_t *ids = malloc(probe.n * sizeof(*ids));
    if (!list || !ids) {
        free(list);
        free(ids);
        return rift_kvm_arm_fail(error, ENOMEM, "malloc");
    }
    list->n = probe.n;
    int status = rift_kvm_arm_call(cpu, KVM_GET_REG_LIST, list, "KVM_GET_REG_LIST", error);
    uint32_t count = 0;
    for (uint64_t at = 0; status >= 0 && at < list->n; ++at)
        if (is_state(list->reg[at]))
            ids[count++] = list->reg[at];
    free(list);
    if (status < 0) {
        free(ids);
        return -1;
    }
    arm->state_ids = ids;
    arm->state_count = count;
    return 0;
}

int rift_kvm_arm_save(struct rift_kvm_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    if (learn(cpu, error))
        return -1;
    size_t room = *bytes, wanted = sizeof(struct header) + arm->state_count * sizeof(struct entry);
    *bytes = wanted;
    if (room < wanted)
        return rift_kvm_arm_fail(error, ENOSPC, "save");
    struct header *header = memset(buffer, 0, wanted);
    struct entry *entries = (struct entry *)(header + 1);
    if (rift_kvm_arm_call(cpu, KVM_GET_VCPU_EVENTS, &header->events, "KVM_GET_VCPU_EVENTS", error) < 0 ||
        rift_kvm_arm_call(cpu, KVM_GET_MP_STATE, &header->mp_state, "KVM_GET_MP_STATE", error) < 0)
        return -1;
    for (uint32_t at = 0; at < arm->state_count; ++at) {
        entries[at].id = arm->state_ids[at];
        struct kvm_one_reg one = {.id = entries[at].id, .addr = (uintptr_t)entries[at].value};
        if (rift_kvm_arm_call(cpu, KVM_GET_ONE_REG, &one, "KVM_GET_ONE_REG", error) < 0)
            return -1;
    }
    header->magic = STATE_MAGIC;
    header->bytes = wanted;
    header->count = arm->state_count;
    return 0;
}

/* Whether the state was saved from a vCPU that consists of the same registers. */
static int fits(const struct rift_kvm_arm *arm, const struct header *header, const struct entry *entries, size_t bytes) {
    size_t wanted = sizeof(*header) + arm->state_count * sizeof(*entries);
    if (bytes != wanted || header->magic != STATE_MAGIC || header->bytes != wanted || header->count != arm->state_count)
        return 0;
    for (uint32_t at = 0; at < arm->state_count; ++at)
        if (entries[at].id != arm->state_ids[at])
            return 0;
    return 1;
}

int rift_kvm_arm_restore(struct rift_kvm_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    if (learn(cpu, error))
        return -1;
    if (bytes < sizeof(struct header))
        return rift_kvm_arm_fail(error, EINVAL, "restore");
    struct header *header = malloc(bytes); /* a copy, aligned, that nobody else can change */
    if (!header)
        return rift_kvm_arm_fail(error, ENOMEM, "malloc");
    memcpy(header, buffer, bytes);
    struct entry *entries = (struct entry *)(header + 1);
    int status = fits(arm, header, entries, bytes) ? 0 : rift_kvm_arm_fail(error, EINVAL, "restore");
    rift_kvm_arm_forget(arm);
    arm->fault_here = 0;
    for (uint32_t at = 0; status >= 0 && at < arm->state_count; ++at) {
        struct kvm_one_reg one = {.id = entries[at].id, .addr = (uintptr_t)entries[at].value};
        status = rift_kvm_arm_call(cpu, KVM_SET_ONE_REG, &one, "KVM_SET_ONE_REG", error);
    }
    if (status >= 0)
        status = rift_kvm_arm_call(cpu, KVM_SET_VCPU_EVENTS, &header->events, "KVM_SET_VCPU_EVENTS", error);
    if (status >= 0)
        status = rift_kvm_arm_call(cpu, KVM_SET_MP_STATE, &header->mp_state, "KVM_SET_MP_STATE", error);
    free(header);
    return status < 0 ? -1 : 0;
}
