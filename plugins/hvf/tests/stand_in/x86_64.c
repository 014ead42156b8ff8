/* Hypervisor.framework of an Intel Mac, over /dev/kvm: the functions. With OLD_MACOS defined, those that macOS 10.15
 * and 11 have added are missing. */
#include "x86_64.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct machine *machine;

static pthread_mutex_t machine_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint entries_for_ept, entries_for_irq;

static int kick_signal(void) {
    return SIGRTMIN + 8;
}

static void ignore(int number) {
    (void)number;
}

/* -- the virtual machine ---------------------------------------------------------------------------------- */

static void machine_free(struct machine *old) {
    for (unsigned at = 0; at < old->spares; ++at) {
        munmap(old->spare_run[at], old->run_bytes);
        close(old->spare[at]);
    }
    if (old->fd >= 0)
        close(old->fd);
    if (old->device >= 0)
        close(old->device);
    pthread_rwlock_destroy(&old->lock);
    free(old->cpuid);
    free(old);
}

static struct machine *machine_create(void) {
    struct machine *new = calloc(1, sizeof(*new));
    new->fd = -1;
    pthread_rwlock_init(&new->lock, 0);
    new->device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (new->device < 0)
        goto failed;
    new->fd = ioctl(new->device, KVM_CREATE_VM, 0);
    int bytes = ioctl(new->device, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (new->fd < 0 || bytes < 0)
        goto failed;
    new->run_bytes = (uint32_t)bytes;
    new->cpuid = calloc(1, sizeof(*new->cpuid) + 256 * sizeof(struct kvm_cpuid_entry2));
    new->cpuid->nent = 256;
    struct kvm_enable_cap enable = {.cap = KVM_CAP_X86_USER_SPACE_MSR,
                                    .args = {KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN}};
    if (ioctl(new->device, KVM_GET_SUPPORTED_CPUID, new->cpuid) || ioctl(new->fd, KVM_ENABLE_CAP, &enable))
        goto failed;
    struct sigaction action = {.sa_handler = ignore};
    sigaction(kick_signal(), &action, 0);
    return new;

failed:
    machine_free(new);
    return 0;
}

EXPORT int hv_capability(uint64_t capability, uint64_t *value) {
    CALL();
    if (capability > 1)
        return HV_BAD_ARGUMENT;
    *value = MOST_VCPUS;
    return HV_SUCCESS;
}

EXPORT int hv_vm_create(uint64_t flags) {
    CALL();
    if (stand_in_options.deny)
        return HV_DENIED;
    if (stand_in_options.unsupported)
        return HV_UNSUPPORTED;
    if (flags & ~UINT64_C(0x47f))
        return HV_BAD_ARGUMENT;
    int status = HV_SUCCESS;
    pthread_mutex_lock(&machine_lock);
    if (machine)
        status = HV_BUSY;
    else if (!(machine = machine_create()))
        status = HV_UNSUPPORTED;
    pthread_mutex_unlock(&machine_lock);
    return status;
}

EXPORT int hv_vm_destroy(void) {
    CALL();
    int status = HV_SUCCESS;
    pthread_mutex_lock(&machine_lock);
    if (!machine) {
        status = HV_NO_DEVICE;
    } else {
        for (unsigned at = 0; at < MOST_VCPUS; ++at)
            if (machine->vcpus[at])
                status = HV_BUSY;
        if (status == HV_SUCCESS) {
            machine_free(machine);
            machine = 0;
        } else {
            stand_in_violation("hv_vm_destroy while there are vCPUs");
        }
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}

static int set_slot(uint32_t slot, uint64_t gpa, const void *host, uint64_t bytes, uint64_t flags) {
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = flags & 2 ? 0 : KVM_MEM_READONLY,
        .guest_phys_addr = gpa,
        .memory_size = bytes,
        .userspace_addr = (uintptr_t)host,
    };
    return ioctl(machine->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int map(const void *address, uint64_t gpa, size_t bytes, uint64_t flags) {
    uint32_t slot = 0;
    if (!bytes || ((uintptr_t)address | gpa | bytes) % 4096 || (flags & ~UINT64_C(7)) || !(flags & 1) || gpa + bytes < gpa)
        return HV_BAD_ARGUMENT;
    for (unsigned at = 0; at < machine->region_count; ++at) {
        const struct region *region = &machine->regions[at];
        if (region->gpa < gpa + bytes && gpa < region->gpa + region->bytes)
            return HV_BAD_ARGUMENT;
    }
    for (int taken = 1; taken; slot += taken) {
        taken = 0;
        for (unsigned at = 0; at < machine->region_count; ++at)
            taken |= machine->regions[at].slot == slot;
    }
    if (machine->region_count == 1024 || set_slot(slot, gpa, address, bytes, flags))
        return HV_NO_RESOURCES;
    machine->regions[machine->region_count++] =
        (struct region){.gpa = gpa, .bytes = bytes, .host = (uint8_t *)address, .flags = flags, .slot = slot};
    return HV_SUCCESS;
}

/* A newer system kills a process that unmaps what it has not mapped like this. */
static int unmap(uint64_t gpa, size_t bytes) {
    for (unsigned at = 0; at < machine->region_count; ++at) {
        struct region *region = &machine->regions[at];
        if (region->gpa != gpa || region->bytes != bytes)
            continue;
        set_slot(region->slot, gpa, region->host, 0, 2);
        *region = machine->regions[--machine->region_count];
        return HV_SUCCESS;
    }
    stand_in_violation("hv_vm_unmap(%#lx, %#zx) is not what was mapped", (unsigned long)gpa, bytes);
    return HV_BAD_ARGUMENT;
}

EXPORT int hv_vm_map(const void *address, uint64_t gpa, size_t bytes, uint64_t flags) {
    CALL();
    if (!machine)
        return HV_NO_DEVICE;
    pthread_rwlock_wrlock(&machine->lock);
    int status = map(address, gpa, bytes, flags);
    pthread_rwlock_unlock(&machine->lock);
    return status;
}

EXPORT int hv_vm_unmap(uint64_t gpa, size_t bytes) {
    CALL();
    if (!machine)
        return HV_NO_DEVICE;
    pthread_rwlock_wrlock(&machine->lock);
    int status = unmap(gpa, bytes);
    pthread_rwlock_unlock(&machine->lock);
    return status;
}

/* -- vCPUs -------------------------------------------------------------------------------------------------- */

static struct vcpu **place_of(uint32_t number) {
    number -= stand_in_options.first_id;
    return machine && number < MOST_VCPUS ? &machine->vcpus[number] : 0;
}

/* The vCPU, if it belongs to the calling thread. */
static struct vcpu *own(uint32_t number) {
    struct vcpu *vcpu = place_of(number) ? *place_of(number) : 0;
    if (!vcpu || !pthread_equal(vcpu->owner, pthread_self())) {
        stand_in_violation("vCPU %u is not this thread's", number);
        return 0;
    }
    return vcpu;
}

#define OWN(vcpu, number)                    \
    struct vcpu *vcpu = own(number);         \
    if (!vcpu)                               \
        return HV_BAD_ARGUMENT

/* A vCPU of KVM: a fresh one, or one that an earlier vCPU has left. */
static int take_kvm_vcpu(struct vcpu *vcpu) {
    if (machine->spares) {
        machine->spares -= 1;
        vcpu->fd = machine->spare[machine->spares];
        vcpu->run = machine->spare_run[machine->spares];
        return 0;
    }
    vcpu->fd = ioctl(machine->fd, KVM_CREATE_VCPU, machine->next_id++);
    if (vcpu->fd < 0)
        return -1;
    vcpu->run = mmap(0, machine->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    return ioctl(vcpu->fd, KVM_SET_CPUID2, machine->cpuid);
}

static int reset_kvm_vcpu(struct vcpu *vcpu) {
    struct kvm_xsave xsave = {0};
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = 1}}};
    struct kvm_debugregs debug = {.dr6 = 0xFFFF0FF0, .dr7 = 0x400};
    struct kvm_vcpu_events events = {0};
    struct kvm_guest_debug guest_debug = {0};
    const uint16_t control = 0x37F;
    const uint32_t mxcsr = 0x1F80;
    memcpy(xsave.region, &control, 2);
    memcpy(xsave.region + 6, &mxcsr, 4);
    vcpu->registers[R_RFLAGS] = 2;
    vcpu->registers[R_DR6] = debug.dr6;
    return ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave) || ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) ||
                   ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug) || ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) ||
                   ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &guest_debug)
               ? -1
               : 0;
}

EXPORT int hv_vcpu_create(uint32_t *number, uint64_t flags) {
    CALL();
    (void)flags;
    if (!machine)
        return HV_NO_DEVICE;
    int status = HV_NO_RESOURCES;
    pthread_rwlock_wrlock(&machine->lock);
    for (unsigned at = 0; at < MOST_VCPUS; ++at)
        if (machine->vcpus[at] && pthread_equal(machine->vcpus[at]->owner, pthread_self()))
            status = HV_BUSY;
    for (unsigned at = 0; at < MOST_VCPUS && status == HV_NO_RESOURCES; ++at) {
        if (machine->vcpus[at])
            continue;
        struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
        vcpu->owner = pthread_self();
        if (take_kvm_vcpu(vcpu) || reset_kvm_vcpu(vcpu)) {
            free(vcpu);
            status = HV_ERROR;
            break;
        }
        vcpu->system_valid = vcpu->system_changed = vcpu->general_changed = 1;
        machine->vcpus[at] = vcpu;
        *number = at + stand_in_options.first_id;
        status = HV_SUCCESS;
    }
    pthread_rwlock_unlock(&machine->lock);
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, kick_signal());
    pthread_sigmask(SIG_UNBLOCK, &wanted, 0);
    return status;
}

EXPORT int hv_vcpu_destroy(uint32_t number) {
    CALL();
    OWN(vcpu, number);
    pthread_mutex_lock(&machine_lock); /* hv_vcpu_interrupt looks at it from other threads */
    pthread_rwlock_wrlock(&machine->lock);
    *place_of(number) = 0;
    machine->spare[machine->spares] = vcpu->fd;
    machine->spare_run[machine->spares] = vcpu->run;
    machine->spares += 1;
    pthread_rwlock_unlock(&machine->lock);
    pthread_mutex_unlock(&machine_lock);
    free(vcpu);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_read_register(uint32_t number, uint32_t which, uint64_t *value) {
    CALL();
    OWN(vcpu, number);
    if (which >= X86_REGISTERS)
        return HV_BAD_ARGUMENT;
    struct kvm_xcrs xcrs;
    if (which == R_CR2 && state_load_system(vcpu))
        return HV_ERROR;
    if ((which >= R_DR0 && which < R_DR0 + 4) || which == R_DR6 || which == R_DR7)
        return state_debug_register(vcpu, which - R_DR0, value, 0) ? HV_ERROR : HV_SUCCESS;
    if (which == R_XCR0) {
        if (ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs))
            return HV_ERROR;
        *value = xcrs.xcrs[0].value;
        return HV_SUCCESS;
    }
    *value = vcpu->registers[which];
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_write_register(uint32_t number, uint32_t which, uint64_t value) {
    CALL();
    OWN(vcpu, number);
    if (which >= X86_REGISTERS || (which >= R_CR0 && which <= R_CR4 && which != R_CR2))
        return HV_BAD_ARGUMENT; /* better written through the VMCS */
    if ((which >= R_DR0 && which < R_DR0 + 4) || which == R_DR6 || which == R_DR7)
        return state_debug_register(vcpu, which - R_DR0, &value, 1) ? HV_ERROR : HV_SUCCESS;
    if (which == R_XCR0) {
        struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = value}}};
        return ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) ? HV_BAD_ARGUMENT : HV_SUCCESS;
    }
    if (which == R_CR2) {
        if (state_load_system(vcpu))
            return HV_ERROR;
        vcpu->system_changed = 1;
    } else {
        vcpu->general_changed = 1;
    }
    vcpu->registers[which] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_read_fpstate(uint32_t number, void *buffer, size_t bytes) {
    CALL();
    OWN(vcpu, number);
    struct kvm_xsave xsave;
    if (bytes < sizeof(xsave) || ioctl(vcpu->fd, KVM_GET_XSAVE, &xsave))
        return HV_BAD_ARGUMENT;
    memcpy(buffer, &xsave, sizeof(xsave));
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_write_fpstate(uint32_t number, const void *buffer, size_t bytes) {
    CALL();
    OWN(vcpu, number);
    struct kvm_xsave xsave;
    if (bytes < sizeof(xsave))
        return HV_BAD_ARGUMENT;
    memcpy(&xsave, buffer, sizeof(xsave));
    return ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave) ? HV_BAD_ARGUMENT : HV_SUCCESS;
}

static int may_be_native(uint32_t msr) {
    return msr == 0x10 || (msr >= 0x174 && msr <= 0x176) || (msr >= 0xC0000081 && msr <= 0xC0000084) ||
           (msr >= 0xC0000100 && msr <= 0xC0000103);
}

static int is_native(const struct vcpu *vcpu, uint32_t msr) {
    for (unsigned at = 0; at < vcpu->natives; ++at)
        if (vcpu->native[at] == msr)
            return 1;
    return 0;
}

EXPORT int hv_vcpu_enable_native_msr(uint32_t number, uint32_t msr, bool enable) {
    CALL();
    OWN(vcpu, number);
    if (stand_in_options.no_native_msrs || !may_be_native(msr) || !enable || vcpu->natives == MOST_NATIVE)
        return HV_BAD_ARGUMENT;
    if (!is_native(vcpu, msr)) {
        uint64_t zero = 0; /* the KVM vCPU may have belonged to another */
        vcpu->native[vcpu->natives++] = msr;
        if (msr != 0x10)
            state_msr(vcpu, msr, &zero, 1);
    }
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_read_msr(uint32_t number, uint32_t msr, uint64_t *value) {
    CALL();
    OWN(vcpu, number);
    *value = 0;
    return is_native(vcpu, msr) && !state_msr(vcpu, msr, value, 0) ? HV_SUCCESS : HV_ERROR;
}

EXPORT int hv_vcpu_write_msr(uint32_t number, uint32_t msr, uint64_t value) {
    CALL();
    OWN(vcpu, number);
    return is_native(vcpu, msr) && !state_msr(vcpu, msr, &value, 1) ? HV_SUCCESS : HV_ERROR;
}

/* Shadow paging on the host keeps what a slot's coming and going alone flushes. */
EXPORT int hv_vcpu_invalidate_tlb(uint32_t number) {
    CALL();
    OWN(vcpu, number);
    (void)vcpu;
    static _Alignas(4096) uint8_t page[4096];
    pthread_rwlock_wrlock(&machine->lock);
    int failed = set_slot(2000, UINT64_C(0x3FFFFFF000), page, 4096, 2) || set_slot(2000, UINT64_C(0x3FFFFFF000), page, 0, 2);
    pthread_rwlock_unlock(&machine->lock);
    return failed ? HV_ERROR : HV_SUCCESS;
}

EXPORT int hv_vmx_vcpu_read_vmcs(uint32_t number, uint32_t field, uint64_t *value) {
    CALL();
    OWN(vcpu, number);
    if (field >= VMCS_FIELDS)
        return HV_BAD_ARGUMENT;
    if (field == F_DR7)
        return state_debug_register(vcpu, 7, value, 0) ? HV_ERROR : HV_SUCCESS;
    if (field >= F_SYSENTER_ESP && field <= F_SYSENTER_EIP)
        return state_msr(vcpu, 0x175 + (field - F_SYSENTER_ESP) / 2, value, 0) ? HV_ERROR : HV_SUCCESS;
    if (field == F_SYSENTER_CS)
        return state_msr(vcpu, 0x174, value, 0) ? HV_ERROR : HV_SUCCESS;
    if (state_is_system(field) && state_load_system(vcpu))
        return HV_ERROR;
    *value = field == F_RIP      ? vcpu->registers[R_RIP]
             : field == F_RSP    ? vcpu->registers[R_RSP]
             : field == F_RFLAGS ? vcpu->registers[R_RFLAGS]
                                 : vcpu->vmcs[field];
    return HV_SUCCESS;
}

static int is_control(uint32_t field, uint64_t value) {
    static const uint32_t fields[5] = {F_PIN, F_CPU, F_CPU2, F_ENTRY, F_EXIT};
    for (unsigned at = 0; at < 5; ++at)
        if (field == fields[at])
            return (value & (uint32_t)control_word(at)) == (uint32_t)control_word(at) &&
                   !(value & ~(control_word(at) >> 32));
    return 1;
}

EXPORT int hv_vmx_vcpu_write_vmcs(uint32_t number, uint32_t field, uint64_t value) {
    CALL();
    OWN(vcpu, number);
    if (field >= VMCS_FIELDS || (field >> 10 & 3) == 1 || (field >> 10 & 3) == 3 || field == F_PAT)
        return HV_BAD_ARGUMENT; /* read-only and host fields; PAT cannot be set */
    if (!is_control(field, value))
        return HV_BAD_ARGUMENT;
    if (field == F_DR7)
        return state_debug_register(vcpu, 7, &value, 1) ? HV_ERROR : HV_SUCCESS;
    if (field >= F_SYSENTER_ESP && field <= F_SYSENTER_EIP)
        return state_msr(vcpu, 0x175 + (field - F_SYSENTER_ESP) / 2, &value, 1) ? HV_ERROR : HV_SUCCESS;
    if (field == F_SYSENTER_CS)
        return state_msr(vcpu, 0x174, &value, 1) ? HV_ERROR : HV_SUCCESS;
    if (field == F_RIP || field == F_RSP || field == F_RFLAGS) {
        vcpu->registers[field == F_RIP ? R_RIP : field == F_RSP ? R_RSP : R_RFLAGS] = value;
        vcpu->general_changed = 1;
        return HV_SUCCESS;
    }
    if (state_is_system(field)) {
        if (state_load_system(vcpu))
            return HV_ERROR;
        vcpu->system_changed = 1;
    }
    vcpu->vmcs[field] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vmx_read_capability(uint32_t which, uint64_t *value) {
    CALL();
    static const uint8_t order[5] = {0, 1, 2, 3, 4}; /* PIN, PROC, PROC2, ENTRY, EXIT */
    if (which > 4)
        return HV_BAD_ARGUMENT;
    *value = control_word(order[which]);
    return HV_SUCCESS;
}

/* -- running -------------------------------------------------------------------------------------------------- */

/* A page of memory whose first touch nobody has seen yet, or so it seems. */
static int spurious_exit(struct vcpu *vcpu) {
    if (stand_in_due(&entries_for_irq, stand_in_options.irq)) {
        exit_set(vcpu, 1, 0, 0);
        return 1;
    }
    if (!stand_in_due(&entries_for_ept, stand_in_options.spurious_ept) || !machine->region_count)
        return 0;
    vcpu->vmcs[F_GPA] = machine->regions[0].gpa;
    exit_set(vcpu, 48, 1 | 1 << 7 | 1 << 8, 0);
    return 1;
}

static int run(struct vcpu *vcpu) {
    if (spurious_exit(vcpu))
        return HV_SUCCESS;
    if (state_load_system(vcpu))
        return HV_ERROR;
    const char *wrong = entry_check(vcpu);
    if (wrong) {
        fprintf(stderr, "stand-in: VM entry refused: %s\n", wrong);
        exit_set(vcpu, 0x80000021, 0, 0);
        return HV_SUCCESS;
    }
    if (state_store(vcpu))
        return HV_ERROR;
    vcpu->run->request_interrupt_window = vcpu->vmcs[F_CPU] >> 2 & 1;
    for (;;) {
        atomic_store(&vcpu->inside, 1);
        if (atomic_exchange(&vcpu->asked_to_exit, 0)) {
            atomic_store(&vcpu->inside, 0);
            exit_set(vcpu, 1, 0, 0);
            return HV_SUCCESS;
        }
        int status = ioctl(vcpu->fd, KVM_RUN, 0), code = errno;
        vcpu->run->immediate_exit = 0;
        atomic_store(&vcpu->inside, 0);
        vcpu->system_valid = 0;
        if (status >= 0) {
            pthread_rwlock_rdlock(&machine->lock);
            status = exit_translate(vcpu);
            pthread_rwlock_unlock(&machine->lock);
            return status;
        }
        if ((code != EINTR && code != EAGAIN) || state_load_general(vcpu))
            return HV_ERROR;
    }
}

EXPORT int hv_vcpu_run(uint32_t number) {
    CALL();
    OWN(vcpu, number);
#ifdef OLD_MACOS
    static atomic_uint touches; /* returns for what the newer function deals with itself */
    if (stand_in_due(&touches, 5) && machine->region_count) {
        vcpu->vmcs[F_GPA] = machine->regions[0].gpa;
        exit_set(vcpu, 48, 1 | 1 << 7 | 1 << 8, 0);
        return HV_SUCCESS;
    }
#endif
    return run(vcpu);
}

#ifndef OLD_MACOS
EXPORT int hv_vcpu_run_until(uint32_t number, uint64_t deadline) {
    CALL();
    OWN(vcpu, number);
    if (deadline != ~UINT64_C(0) || stand_in_options.no_deadlines)
        return HV_UNSUPPORTED;
    return run(vcpu);
}
#endif

EXPORT int hv_vcpu_interrupt(uint32_t *numbers, unsigned count) {
    CALL();
    pthread_mutex_lock(&machine_lock);
    int status = machine ? HV_SUCCESS : HV_NO_DEVICE;
    for (unsigned at = 0; machine && at < count; ++at) {
        struct vcpu *vcpu = place_of(numbers[at]) ? *place_of(numbers[at]) : 0;
        if (!vcpu) {
            status = HV_BAD_ARGUMENT;
            continue;
        }
        if (stand_in_options.lose_kicks && !atomic_load(&vcpu->inside))
            continue;
        atomic_store(&vcpu->asked_to_exit, 1);
        *(volatile uint8_t *)&vcpu->run->immediate_exit = 1;
        if (atomic_load(&vcpu->inside))
            pthread_kill(vcpu->owner, kick_signal());
    }
    pthread_mutex_unlock(&machine_lock);
    return status;
}
