/* Entering the guest, and what its exits mean. */
#include "kvm_x86_64.h"

#include <errno.h>
#include <string.h>

/* Exit reasons that older kernel headers do not have: Documentation/virt/kvm/api.rst. */
#define EXIT_MEMORY_FAULT 39
struct memory_fault {
    uint64_t flags, gpa, size;
};

#define RESET_CS_BASE 0xffff0000 /* Intel SDM volume 3, "Processor State After Reset"; in 64-bit mode it is 0 */
#define DR6_STEP (1u << 14) /* BS: Intel SDM volume 3, 17.2.3 */

int rift_kvm_x86_enter(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct kvm_run *run = cpu->run;
    if (x86->batch_at + 1 < x86->batch_count) {
        x86->batch_at += 1;
        return 0;
    }
    x86->batch_count = x86->batch_at = 0;
    if (x86->regs_changed) {
        if (x86->sync_regs && !x86->debug.control) {
            run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
        } else if (rift_kvm_x86_store(cpu, X86_REGS, error) ||
                   (x86->debug.control && /* the trap flag may be tied to RIP: after the registers */
                    rift_kvm_x86_call(cpu, KVM_SET_GUEST_DEBUG, &x86->debug, "KVM_SET_GUEST_DEBUG", error) < 0)) {
            return -1;
        }
    }
    /* Have the registers come with the exit if they were wanted after the one before: a native handler that
     * needs none pays for none. */
    run->kvm_valid_regs = (x86->used || cpu->completing) && x86->sync_regs ? KVM_SYNC_X86_REGS : 0;
    if (!cpu->completing)
        x86->used = 0;
    x86->valid = 0;
    x86->faulted = 0;
    run->exit_reason = KVM_EXIT_UNKNOWN;
    int status = cpu->machine->ioctl(cpu->fd, KVM_RUN, NULL);
    if (status < 0 && errno != EINTR && errno != EFAULT) {
        error->code = errno;
        error->operation = "KVM_RUN";
        return -1;
    }
    x86->regs_changed = 0;
    if (run->kvm_valid_regs)
        x86->valid = X86_REGS;
    if (status >= 0)
        return 0;
    x86->faulted = errno == EFAULT;
    if (x86->faulted)
        return 0;
    x86->redirected = 0;
    x86->mmio_next = 0;
    error->code = EINTR;
    error->operation = "KVM_RUN";
    return -1;
}

static uint8_t *io_data(struct kvm_run *run, uint32_t item) {
    return (uint8_t *)run + run->io.data_offset + (size_t)item * run->io.size;
}

static void decode_io(struct rift_kvm_cpu *cpu, struct rift_exit *exit) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct kvm_run *run = cpu->run;
    int out = run->io.direction == KVM_EXIT_IO_OUT;
    if (x86->batch_count == 0) {
        x86->batch_count = run->io.count;
        x86->batch_at = 0;
        if (!out)
            memset(io_data(run, 0), 0, (size_t)run->io.count * run->io.size);
    }
    exit->kind = RIFT_EXIT_PORT_IO;
    exit->address = run->io.port;
    exit->size = run->io.size;
    exit->is_write = (uint32_t)out;
    if (out)
        memcpy(&exit->value, io_data(run, x86->batch_at), run->io.size);
    cpu->open = x86->batch_at + 1 < x86->batch_count ? RIFT_KVM_BATCH : RIFT_KVM_ACCESS;
}

/* A store is done when it exits, so that nothing is left open; but one of more than 8 bytes, or across pages,
 * comes in parts, and the parts that are left come even when the host has sent the guest elsewhere. Such a
 * part is recognised by its address, and by RIP, which has not moved, and dropped. */
static int decode_mmio(struct rift_kvm_cpu *cpu, struct rift_exit *exit, int redirected, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct kvm_run *run = cpu->run;
    uint64_t next = run->mmio.phys_addr + run->mmio.len;
    if (run->mmio.is_write && redirected &&
        (run->mmio.phys_addr == x86->mmio_next || x86->mmio_next % 4096 == 0)) {
        if (rift_kvm_x86_fetch(cpu, X86_REGS, error))
            return -1;
        if (x86->regs->rip == x86->redirect) {
            x86->redirected = 1;
            x86->mmio_next = next;
            return RIFT_KVM_REENTER;
        }
    }
    exit->kind = RIFT_EXIT_MMIO;
    exit->address = run->mmio.phys_addr;
    exit->size = run->mmio.len;
    exit->is_write = run->mmio.is_write;
    if (run->mmio.is_write) {
        memcpy(&exit->value, run->mmio.data, run->mmio.len <= 8 ? run->mmio.len : 8);
        x86->mmio_next = run->mmio.len == 8 || next % 4096 == 0 ? next : 0;
    } else {
        memset(run->mmio.data, 0, sizeof(run->mmio.data));
        cpu->open = RIFT_KVM_ACCESS;
    }
    return RIFT_KVM_DISPATCH;
}

/* The first debug register that DR6 names and that was asked for, or -1. `data`: of watchpoints, or of breakpoints.
 * What was asked for tells which is which: the DR7 that KVM reports may be left over from something else, and the
 * bits in DR6 are set for registers that are not enabled as well (Intel SDM volume 3, 17.2.3). */
static int point_hit(const struct rift_kvm_x86 *x86, uint64_t dr6, int data) {
    uint64_t dr7 = x86->debug.arch.debugreg[7];
    for (int which = 0; which < 4; ++which)
        if (dr6 >> which & 1 && dr7 >> 2 * which & 3 && (dr7 >> (16 + 4 * which) & 3 ? 1 : 0) == data)
            return which;
    return -1;
}

/* A watchpoint that the instruction of a step has hit is told as that. */
static void decode_debug(const struct rift_kvm_x86 *x86, const struct kvm_run *run, struct rift_exit *exit) {
    const struct kvm_debug_exit_arch *debug = &run->debug.arch;
    const int watch = point_hit(x86, debug->dr6, 1), hit = point_hit(x86, debug->dr6, 0);
    exit->kind = RIFT_EXIT_DEBUG;
    exit->address = debug->pc;
    exit->info[2] = debug->dr6;
    if (debug->exception == 3) {
        exit->info[0] = 2;
    } else if (watch >= 0) {
        exit->info[0] = 4;
        exit->info[1] = x86->debug.arch.debugreg[watch];
    } else if (debug->dr6 & DR6_STEP || (hit < 0 && x86->debug.control & KVM_GUESTDBG_SINGLESTEP)) {
        exit->info[0] = 1;
    } else {
        exit->info[0] = 3;
        exit->info[1] = hit >= 0 ? x86->debug.arch.debugreg[hit] : debug->pc;
    }
}

/* The vCPU cannot go on: the instruction, if KVM says it, and where. */
static int decode_failure(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    const struct kvm_run *run = cpu->run;
    exit->kind = RIFT_EXIT_FAIL_ENTRY;
    if (run->exit_reason == KVM_EXIT_FAIL_ENTRY) {
        exit->value = run->fail_entry.hardware_entry_failure_reason;
    } else {
        exit->value = run->internal.suberror;
        if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && run->internal.ndata >= 3 &&
            (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) &&
            run->emulation_failure.insn_size <= sizeof(run->emulation_failure.insn_bytes)) {
            exit->size = run->emulation_failure.insn_size;
            memcpy(exit->info, run->emulation_failure.insn_bytes, exit->size);
        }
    }
    if (rift_kvm_x86_fetch(cpu, X86_REGS, error))
        return -1;
    exit->address = x86->regs->rip;
    return RIFT_KVM_DISPATCH;
}

/* Behind a shutdown SVM leaves the state undefined, and KVM resets the vCPU (shutdown_interception in
 * arch/x86/kvm/svm/svm.c); others keep it. */
static int decode_shutdown(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    exit->kind = RIFT_EXIT_SHUTDOWN;
    if (rift_kvm_x86_fetch(cpu, X86_SREGS, error))
        return -1;
    exit->value = x86->sregs.cs.base == RESET_CS_BASE;
    return RIFT_KVM_DISPATCH;
}

static void decode_memory_fault(const struct kvm_run *run, struct rift_exit *exit) {
    exit->kind = RIFT_EXIT_MEMORY_FAULT;
    if (run->exit_reason == EXIT_MEMORY_FAULT) {
        struct memory_fault fault;
        memcpy(&fault, &run->hw, sizeof(fault));
        exit->address = fault.gpa;
        exit->size = (uint32_t)fault.size;
        exit->info[0] = fault.flags;
    }
}

static void decode_event(const struct kvm_run *run, struct rift_exit *exit) {
    if (run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
        exit->kind = RIFT_EXIT_POWER_OFF;
    else if (run->system_event.type == KVM_SYSTEM_EVENT_RESET)
        exit->kind = RIFT_EXIT_RESET;
    else
        exit->kind = RIFT_EXIT_UNKNOWN;
}

static void decode_msr(struct rift_kvm_cpu *cpu, struct rift_exit *exit) {
    struct kvm_run *run = cpu->run;
    exit->kind = RIFT_EXIT_SYSTEM_REGISTER;
    exit->address = run->msr.index;
    exit->size = 8;
    exit->is_write = run->exit_reason == KVM_EXIT_X86_WRMSR;
    if (exit->is_write)
        exit->value = run->msr.data;
    else
        run->msr.data = 0;
    run->msr.error = 0;
    cpu->open = RIFT_KVM_ACCESS;
}

int rift_kvm_x86_decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    const struct kvm_run *run = cpu->run;
    int redirected = x86->redirected;
    *exit = (struct rift_exit){.raw_reason = run->exit_reason};
    cpu->open = RIFT_KVM_COMPLETE;
    x86->redirected = 0;
    if (x86->faulted) {
        decode_memory_fault(run, exit);
        return RIFT_KVM_DISPATCH;
    }
    if (run->exit_reason == KVM_EXIT_MMIO)
        return decode_mmio(cpu, exit, redirected, error);
    x86->mmio_next = 0;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        decode_io(cpu, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_HLT:
        exit->kind = RIFT_EXIT_HALT;
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        decode_msr(cpu, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_DEBUG:
        decode_debug(x86, run, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_HYPERCALL: /* of those that KVM itself has given a meaning, with its own registers */
        exit->kind = RIFT_EXIT_HYPERCALL;
        exit->address = run->hypercall.nr;
        memcpy(exit->info, run->hypercall.args, sizeof(exit->info));
        cpu->open = RIFT_KVM_ACCESS;
        return RIFT_KVM_DISPATCH;
    case EXIT_MEMORY_FAULT:
        decode_memory_fault(run, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_SHUTDOWN:
        return decode_shutdown(cpu, exit, error);
    case KVM_EXIT_SYSTEM_EVENT:
        decode_event(run, exit);
        return RIFT_KVM_DISPATCH;
    case KVM_EXIT_FAIL_ENTRY:
    case KVM_EXIT_INTERNAL_ERROR:
        return decode_failure(cpu, exit, error);
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return RIFT_KVM_REENTER;
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        return RIFT_KVM_DISPATCH;
    }
}

void rift_kvm_x86_complete(struct rift_kvm_cpu *cpu, uint64_t value) {
    struct rift_kvm_x86 *x86 = cpu->state;
    struct kvm_run *run = cpu->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        if (run->io.direction == KVM_EXIT_IO_IN)
            memcpy(io_data(run, x86->batch_at), &value, run->io.size);
        break;
    case KVM_EXIT_MMIO:
        if (!run->mmio.is_write)
            memcpy(run->mmio.data, &value, sizeof(value));
        break;
    case KVM_EXIT_X86_RDMSR:
        run->msr.data = value;
        break;
    case KVM_EXIT_HYPERCALL:
        run->hypercall.ret = value;
        break;
    default:
        break;
    }
}
