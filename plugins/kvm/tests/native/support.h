/* Helpers of the tests: a failing ioctl, native exit handlers, and a binding that makes exits by itself. */
#ifndef RIFT_KVM_TEST_SUPPORT_H
#define RIFT_KVM_TEST_SUPPORT_H

#include "kvm_binding.h"

/* The ioctl that fails: the `at`-th from now on (0: none), with this errno. */
struct fault_plan {
    int at, code, calls;
};
struct fault_plan *fault_plan(void);
uintptr_t faulty_ioctl(void);

/* A native handler that counts, and answers with what stands here. */
struct handler {
    uint64_t calls, address, value, is_write, answer, gpa, memory_seen;
    int verdict, wait;
    uint64_t deadline;
    uint32_t word;
    int register_seen;
    uint64_t register_value;
};
uintptr_t handler_function(void);

/* Exits to port 0x10; every `period`-th one to port 0x20 instead.
 * `waits`: an entry lasts until it is interrupted; then it gives a HALT if `halts`, and if not, no exit. */
struct fake {
    uint64_t entries, period, last_reply, waits, halts;
    uint64_t announced, announced_inside; /* calls of before_interrupt, and those while an entry was going on */
    int inside;
};
struct fake *fake(void);
uintptr_t fake_binding(void);

/* A handler that does nothing but RESUME. */
uintptr_t quick_handler(void);

/* kvm_aarch64_sleep.h, which runs on no other CPU than this one here: counters in its order. */
int arm_slept(const uint64_t *before, const uint64_t *after);

#endif
