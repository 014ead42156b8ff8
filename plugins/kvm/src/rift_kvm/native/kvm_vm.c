/* Devices, virtual machines and their memory slots. */
#include "kvm_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The host's: what slots are made of. */
static uint64_t page_size(void) {
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static int system_ioctl(int fd, unsigned long request, void *argument) {
    return ioctl(fd, request, argument);
}

int rift_kvm_binding_check(const struct rift_kvm_binding *binding) {
    return binding->version == RIFT_KVM_BINDING_VERSION && binding->bytes == sizeof(*binding);
}

uint32_t rift_kvm_abi_version(void) {
    return RIFT_ABI_VERSION;
}

int rift_kvm_device_open(const char *path, struct rift_error *error) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? rift_kvm_fail(error, errno, "open") : fd;
}

int rift_kvm_device_version(int device, struct rift_error *error) {
    int version = ioctl(device, KVM_GET_API_VERSION, 0);
    return version < 0 ? rift_kvm_fail(error, errno, "KVM_GET_API_VERSION") : version;
}

int rift_kvm_device_extension(int device, long capability, struct rift_error *error) {
    int value = ioctl(device, KVM_CHECK_EXTENSION, capability);
    return value < 0 ? rift_kvm_fail(error, errno, "KVM_CHECK_EXTENSION") : value;
}

void rift_kvm_device_close(int device) {
    close(device);
}

int rift_kvm_describe(int device, const struct rift_kvm_binding *binding, rift_kvm_ioctl_fn *ioctl_fn, void *buffer,
                      size_t *bytes, struct rift_error *error) {
    if (!binding->describe) {
        *bytes = 0;
        return 0;
    }
    return binding->describe(device, ioctl_fn ? ioctl_fn : system_ioctl, buffer, bytes, error);
}

/* An ioctl of the VM with an integer argument, or its error. */
static int vm_call(const struct rift_kvm_machine *machine, int fd, unsigned long request, uintptr_t argument,
                   const char *name, struct rift_error *error) {
    int result = machine->ioctl(fd, request, (void *)argument);
    return result < 0 ? rift_kvm_fail(error, errno, name) : result;
}

struct rift_kvm_vm *rift_kvm_vm_create(const char *path, const struct rift_kvm_binding *binding, uint32_t flags,
                                       uint32_t gpa_bits, rift_kvm_ioctl_fn *ioctl_fn, const void *description,
                                       size_t description_bytes, struct rift_error *error) {
    struct rift_kvm_vm *vm = calloc(1, sizeof(*vm));
    if (!vm) {
        rift_kvm_fail(error, ENOMEM, "calloc");
        return NULL;
    }
    struct rift_kvm_machine *machine = &vm->machine;
    *machine = (struct rift_kvm_machine){
        .device = -1,
        .fd = -1,
        .flags = flags,
        .gpa_bits = gpa_bits,
        .system_calls = !ioctl_fn,
        .ioctl = ioctl_fn ? ioctl_fn : system_ioctl,
        .description = description,
        .description_bytes = description_bytes,
    };
    pthread_mutex_init(&vm->lock, NULL);
    vm->binding = binding;
    vm->gpa_end = UINT64_C(1) << gpa_bits;
    int result = rift_kvm_device_open(path, error);
    if (result < 0)
        goto failed;
    machine->device = result;
    result = vm_call(machine, machine->device, KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION", error);
    if (result < 0)
        goto failed;
    if (result != KVM_API_VERSION) {
        rift_kvm_fail(error, EPROTO, "KVM_GET_API_VERSION");
        goto failed;
    }
    result = vm_call(machine, machine->device, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE", error);
    if (result < 0)
        goto failed;
    if ((size_t)result < sizeof(struct kvm_run)) {
        rift_kvm_fail(error, EPROTO, "KVM_GET_VCPU_MMAP_SIZE");
        goto failed;
    }
    machine->run_bytes = (uint32_t)result;
    uintptr_t type = binding->vm_type ? binding->vm_type(machine) : 0;
    result = vm_call(machine, machine->device, KVM_CREATE_VM, type, "KVM_CREATE_VM", error);
    if (result < 0)
        goto failed;
    machine->fd = result;
    result = vm_call(machine, machine->fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS, "KVM_CHECK_EXTENSION", error);
    if (result < 0)
        goto failed;
    vm->slot_limit = result ? (uint32_t)result : 32; /* Documentation/virt/kvm/api.rst: 32 where it is absent */
    vm->dispatch = rift_dispatch_create();
    if (!vm->dispatch) {
        rift_kvm_fail(error, ENOMEM, "calloc");
        goto failed;
    }
    if (binding->vm_setup(machine, error))
        goto failed;
    rift_kvm_ahead_prepare(vm);
    return vm;

failed:
    rift_kvm_vm_close(vm);
    return NULL;
}

/* Frees what the process holds, after the descriptors. */
static void vm_free(struct rift_kvm_vm *vm) {
    rift_dispatch_destroy(vm->dispatch);
    if (vm->flush_page)
        munmap(vm->flush_page, page_size());
    pthread_mutex_destroy(&vm->lock);
    free(vm->slots);
    free(vm);
}

void rift_kvm_vm_close(struct rift_kvm_vm *vm) {
    if (!vm)
        return;
    rift_kvm_ahead_end(vm);
    vm->binding->vm_release(&vm->machine);
    if (vm->machine.fd >= 0)
        close(vm->machine.fd);
    if (vm->machine.device >= 0)
        close(vm->machine.device);
    vm_free(vm);
}

void rift_kvm_vm_settle(struct rift_kvm_vm *vm) {
    rift_kvm_ahead_wait(vm);
}

void rift_kvm_vm_forget(struct rift_kvm_vm *vm) {
    if (vm->ahead.vcpu)
        rift_kvm_vcpu_forget(vm->ahead.vcpu);
    if (vm->machine.fd >= 0)
        close(vm->machine.fd);
    if (vm->machine.device >= 0)
        close(vm->machine.device);
    vm->machine.fd = vm->machine.device = -1;
}

int rift_kvm_vm_extension(struct rift_kvm_vm *vm, long capability, struct rift_error *error) {
    return vm_call(&vm->machine, vm->machine.fd, KVM_CHECK_EXTENSION, (uintptr_t)capability, "KVM_CHECK_EXTENSION",
                   error);
}

/* -- slots ------------------------------------------------------------------------------------------ */

static int set_slot(struct rift_kvm_vm *vm, uint32_t number, uint64_t gpa, const void *host, uint64_t bytes,
                    int writable, struct rift_error *error) {
    struct kvm_userspace_memory_region region = {
        .slot = number,
        .flags = writable ? 0 : KVM_MEM_READONLY,
        .guest_phys_addr = gpa,
        .memory_size = bytes,
        .userspace_addr = (uintptr_t)host,
    };
    return vm_call(&vm->machine, vm->machine.fd, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region,
                   "KVM_SET_USER_MEMORY_REGION", error);
}

static int overlaps(const struct rift_kvm_vm *vm, uint64_t gpa, uint64_t bytes) {
    for (uint32_t at = 0; at < vm->slot_count; ++at) {
        const struct rift_kvm_slot *slot = &vm->slots[at];
        if (slot->bytes && slot->gpa < gpa + bytes && gpa < slot->gpa + slot->bytes)
            return 1;
    }
    return 0;
}

/* A free slot number: the table grows under the lock, since handlers read it. Returns -1 when there is none. */
static int free_slot(struct rift_kvm_vm *vm, struct rift_error *error) {
    for (uint32_t at = 0; at < vm->slot_count; ++at)
        if (!vm->slots[at].bytes)
            return (int)at;
    if (vm->slot_count + 1 >= vm->slot_limit) /* the last number is for flushes */
        return rift_kvm_fail(error, ENOSPC, "KVM_SET_USER_MEMORY_REGION");
    pthread_mutex_lock(&vm->lock);
    struct rift_kvm_slot *slots = realloc(vm->slots, (vm->slot_count + 1) * sizeof(*slots));
    if (slots) {
        slots[vm->slot_count] = (struct rift_kvm_slot){0};
        vm->slots = slots;
        vm->slot_count += 1;
    }
    pthread_mutex_unlock(&vm->lock);
    return slots ? (int)vm->slot_count - 1 : rift_kvm_fail(error, ENOMEM, "realloc");
}

int rift_kvm_vm_map(struct rift_kvm_vm *vm, uint64_t gpa, void *host, uint64_t bytes, int writable,
                    struct rift_error *error) {
    if (!bytes || (gpa | bytes | (uintptr_t)host) % page_size() || gpa >= vm->gpa_end || bytes > vm->gpa_end - gpa)
        return rift_kvm_fail(error, EINVAL, "KVM_SET_USER_MEMORY_REGION");
    if (overlaps(vm, gpa, bytes))
        return rift_kvm_fail(error, EEXIST, "KVM_SET_USER_MEMORY_REGION");
    int number = free_slot(vm, error);
    if (number < 0 || set_slot(vm, (uint32_t)number, gpa, host, bytes, writable, error) < 0)
        return -1;
    pthread_mutex_lock(&vm->lock);
    vm->slots[number] = (struct rift_kvm_slot){.gpa = gpa, .bytes = bytes, .host = host, .writable = writable};
    pthread_mutex_unlock(&vm->lock);
    rift_kvm_ahead_start(vm);
    return 0;
}

int rift_kvm_vm_quiet(struct rift_kvm_vm *vm) {
    int quiet = 1;
    pthread_mutex_lock(&vm->lock);
    for (const struct rift_kvm_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
        if (atomic_load(&vcpu->control->dispatching))
            quiet = 0;
    pthread_mutex_unlock(&vm->lock);
    return quiet;
}

int rift_kvm_vm_unmap(struct rift_kvm_vm *vm, uint64_t gpa, struct rift_error *error) {
    for (uint32_t at = 0; at < vm->slot_count; ++at) {
        struct rift_kvm_slot *slot = &vm->slots[at];
        if (!slot->bytes || slot->gpa != gpa)
            continue;
        if (set_slot(vm, at, gpa, slot->host, 0, 1, error) < 0)
            return -1;
        /* After this a handler cannot find the memory; one that has found it is still dispatching. */
        pthread_mutex_lock(&vm->lock);
        *slot = (struct rift_kvm_slot){0};
        pthread_mutex_unlock(&vm->lock);
        return !rift_kvm_vm_quiet(vm);
    }
    return rift_kvm_fail(error, ENOENT, "KVM_SET_USER_MEMORY_REGION");
}

void rift_kvm_vm_code_changed(struct rift_kvm_vm *vm, uint64_t gpa, uint64_t bytes) {
    for (uint32_t at = 0; at < vm->slot_count; ++at) {
        const struct rift_kvm_slot *slot = &vm->slots[at];
        uint64_t first = gpa > slot->gpa ? gpa : slot->gpa;
        uint64_t end = gpa + bytes < slot->gpa + slot->bytes ? gpa + bytes : slot->gpa + slot->bytes;
        if (slot->bytes && first < end) {
            char *host = (char *)slot->host + (first - slot->gpa);
            __builtin___clear_cache(host, host + (end - first));
        }
    }
}

int rift_kvm_vm_flush(struct rift_kvm_vm *vm, struct rift_error *error) {
    const uint64_t bytes = page_size();
    if (!vm->flush_page) {
        void *page = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            return rift_kvm_fail(error, errno, "mmap");
        vm->flush_page = page;
    }
    uint64_t gpa = vm->gpa_end - bytes; /* seldom taken: layouts grow from below */
    while (overlaps(vm, gpa, bytes)) {
        if (gpa == 0)
            return rift_kvm_fail(error, ENOSPC, "KVM_SET_USER_MEMORY_REGION");
        gpa -= bytes;
    }
    uint32_t number = vm->slot_limit - 1;
    if (set_slot(vm, number, gpa, vm->flush_page, bytes, 1, error) < 0)
        return -1;
    return set_slot(vm, number, gpa, vm->flush_page, 0, 1, error) < 0 ? -1 : 0;
}

int rift_kvm_vm_install(struct rift_kvm_vm *vm, uint32_t kind, uint64_t first, uint64_t last, uintptr_t handle,
                        uintptr_t context, int fallback, struct rift_error *error) {
    if (vm->running) /* the table is read without a lock once a vCPU exists */
        return rift_kvm_fail(error, EBUSY, "rift_dispatch_add");
    int status = rift_dispatch_add(vm->dispatch, kind, first, last, (rift_exit_fn *)handle, (void *)context, fallback);
    return status ? rift_kvm_fail(error, -status, "rift_dispatch_add") : 0;
}
