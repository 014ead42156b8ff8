/* The state of a vCPU that has just been made: KVM gives it to all alike, so it is fetched once a process. */
#include "kvm_x86_64.h"

#include <pthread.h>
#include <string.h>

#define RESET_GROUPS (X86_REGS | X86_SREGS | X86_XSAVE | X86_MSRS | X86_XCRS)

/* By what differs: APIC_BASE says which CPU is the bootstrap processor, the one with number 0 (Intel SDM volume 3,
 * 11.4.4). */
static struct rift_kvm_x86 known[2];
static struct kvm_regs known_regs[2];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void copy(struct rift_kvm_x86 *to, const struct rift_kvm_x86 *from) {
    to->sregs = from->sregs;
    to->xcrs = from->xcrs;
    to->msrs_absent = from->msrs_absent;
    memcpy(to->msrs, from->msrs, sizeof(to->msrs));
    memcpy(to->bytes, from->bytes, sizeof(to->bytes));
    to->valid = from->valid & RESET_GROUPS;
}

int rift_kvm_x86_reset_state(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    const int other = cpu->id != 0;
    if (!cpu->machine->system_calls) /* a test, which wants to see every call */
        return 0;
    pthread_mutex_lock(&lock);
    int status = 0;
    if (known[other].valid == RESET_GROUPS) {
        copy(x86, &known[other]);
        *x86->regs = known_regs[other];
    } else {
        for (uint32_t group = X86_REGS; group <= X86_XCRS && !status; group <<= 1)
            if (group & RESET_GROUPS)
                status = rift_kvm_x86_fetch(cpu, group, error);
        if (!status) {
            copy(&known[other], x86);
            known_regs[other] = *x86->regs;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}
