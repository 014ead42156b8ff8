/* Whether a vCPU slept at a WFI when its entry was ended, told from KVM's counters before and after. */
#ifndef RIFT_KVM_AARCH64_SLEEP_H
#define RIFT_KVM_AARCH64_SLEEP_H

#include <stdint.h>

/* Read in this order, one after the other, while the vCPU runs. Documentation/virt/kvm/api.rst, 4.133. */
enum arm_counter {
    ARM_EXITS,    /* "exits": times that it has left the guest */
    ARM_WAITS,    /* "wfi_exit_stat": those because of a WFI, counted just after the exit itself */
    ARM_POLLS,    /* "halt_attempted_poll": waits that began with a short one awake and are over */
    ARM_BLOCKING, /* "blocking": it sleeps now */
    ARM_COUNTERS
};

struct rift_kvm_arm_counters {
    uint64_t value[ARM_COUNTERS];
};

/* `before`: read by whoever was about to end the entry; `after`: when it had ended without an exit for the host.
 * KVM takes the guest past a WFI whose wait is cut short, so that nothing but these counters tells what it did.
 *
 * A guest that has not left since `before` was read was outside already: it slept, or its wait ended since then. One
 * that has left once, and waits once more, has left for that. More than one exit in so short a time says nothing. */
static inline int rift_kvm_arm_slept(const struct rift_kvm_arm_counters *before,
                                     const struct rift_kvm_arm_counters *after) {
    const uint64_t *old = before->value, *now = after->value;
    if (now[ARM_EXITS] == old[ARM_EXITS])
        return old[ARM_BLOCKING] || now[ARM_POLLS] != old[ARM_POLLS];
    return now[ARM_EXITS] == old[ARM_EXITS] + 1 && now[ARM_WAITS] == old[ARM_WAITS] + 1;
}

#endif
