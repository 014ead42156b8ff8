/* Shared by the stand-ins for Hypervisor.framework: what it answers, and what a test can tell it to do.
 *
 * Test code, built by the test run. The environment variable RIFT_STAND_IN, or rift_stand_in_control, takes words
 * separated by spaces:
 *   deny                 hv_vm_create answers HV_DENIED: the entitlement is missing
 *   unsupported          hv_vm_create answers HV_UNSUPPORTED: no hardware support
 *   fail=FUNCTION:N      the N-th call of a function from now on answers HV_ERROR
 *   spurious_ept=N       every N-th entry to the guest is an EPT violation of memory that is mapped
 *   irq=N                every N-th entry to the guest is an exit for an interrupt of the host, or CANCELED
 *   lose_kicks           a request to exit that comes while the vCPU is outside the guest is lost
 *   first_id=N           the numbers of vCPUs begin at N
 *   demanding            (Intel) more bits of the control words must be 1
 *   no_native_msrs       (Intel) no MSR can be made native
 *   no_deadlines         (Intel) hv_vcpu_run_until answers HV_UNSUPPORTED
 *   ipa_bits=N           (Apple silicon) the usual size of guest-physical addresses
 *   fixed_numbers        (Apple silicon) MPIDR_EL1 cannot be written
 *   reset                none of these */
#ifndef STAND_IN_H
#define STAND_IN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#define HV_SUCCESS 0
#define HV_ERROR ((int)0xfae94001)
#define HV_BUSY ((int)0xfae94002)
#define HV_BAD_ARGUMENT ((int)0xfae94003)
#define HV_NO_RESOURCES ((int)0xfae94005)
#define HV_NO_DEVICE ((int)0xfae94006)
#define HV_DENIED ((int)0xfae94007)
#define HV_UNSUPPORTED ((int)0xfae9400f)

struct stand_in_options {
    int deny, unsupported, lose_kicks, demanding, no_native_msrs, no_deadlines, fixed_numbers;
    unsigned spurious_ept, irq, first_id, ipa_bits;
};

extern struct stand_in_options stand_in_options;

/* Counts a call. Returns HV_SUCCESS, or what the function shall answer instead of doing anything. */
int stand_in_call(const char *function);

/* Notes that the caller has done something that the real framework does not forgive, and says what on stderr. */
void stand_in_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether this entry to the guest is the `every`-th one; 0 means never. */
int stand_in_due(atomic_uint *count, unsigned every);

#define CALL()                                       \
    do {                                             \
        int call_answer = stand_in_call(__func__);   \
        if (call_answer != HV_SUCCESS)               \
            return call_answer;                      \
    } while (0)

EXPORT void rift_stand_in_control(const char *words);
/* How often a function was called since `reset`. */
EXPORT unsigned rift_stand_in_calls(const char *function);
EXPORT unsigned rift_stand_in_violations(void);

#endif
