/* The virtual machine: creation, native handlers, what concerns all its vCPUs. */
#include "hvf_internal.h"

#include <errno.h>
#include <stdlib.h>

struct rift_hvf_vm *rift_hvf_vm_create(struct rift_hvf_framework *framework, uint32_t flags, uint32_t page,
                                       uint32_t gpa_bits, struct rift_error *error) {
    struct rift_hvf_vm *vm = calloc(1, sizeof(*vm));
    struct rift_dispatch *dispatch = rift_dispatch_create();
    if (!vm || !dispatch) {
        rift_hvf_fail(error, ENOMEM, "calloc");
        goto failed;
    }
    int entered = rift_hvf_process_enter(framework, gpa_bits, error);
    if (entered < 0)
        goto failed;
    vm->framework = framework;
    vm->binding = framework->binding;
    vm->dispatch = dispatch;
    vm->flags = flags;
    vm->page = page;
    vm->gpa_end = UINT64_C(1) << gpa_bits;
    atomic_init(&vm->entered, (unsigned)entered);
    pthread_mutex_init(&vm->lock, NULL);
    return vm;

failed:
    rift_dispatch_destroy(dispatch);
    free(vm);
    return NULL;
}

void rift_hvf_vm_close(struct rift_hvf_vm *vm) {
    if (!vm)
        return;
    struct rift_error ignored; /* nobody could do anything about it; the VM goes as a whole */
    while (vm->region_count)
        if (rift_hvf_vm_unmap(vm, vm->regions[vm->region_count - 1].gpa, &ignored) < 0)
            vm->region_count -= 1;
    rift_hvf_memory_end_service(vm);
    rift_hvf_process_leave();
    rift_dispatch_destroy(vm->dispatch);
    pthread_mutex_destroy(&vm->lock);
    free(vm->regions);
    free(vm);
}

int rift_hvf_vm_quiet(struct rift_hvf_vm *vm) {
    int quiet = 1;
    pthread_mutex_lock(&vm->lock);
    for (const struct rift_hvf_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
        if (atomic_load(&vcpu->control->holding))
            quiet = 0;
    pthread_mutex_unlock(&vm->lock);
    return quiet;
}

/* Any vCPU that is in the guest and has yet to flush, with a reference; NULL: there is none. */
static struct rift_hvf_control *one_to_flush(struct rift_hvf_vm *vm) {
    struct rift_hvf_control *found = NULL;
    pthread_mutex_lock(&vm->lock);
    for (struct rift_hvf_vcpu *vcpu = vm->vcpus; vcpu && !found; vcpu = vcpu->next)
        if (atomic_load(&vcpu->control->flush) && atomic_load(&vcpu->control->in_guest))
            found = rift_hvf_vcpu_control(vcpu);
    pthread_mutex_unlock(&vm->lock);
    return found;
}

/* None is waited for under the lock, which its exits need. */
void rift_hvf_vm_flush(struct rift_hvf_vm *vm) {
    pthread_mutex_lock(&vm->lock);
    for (struct rift_hvf_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
        atomic_store(&vcpu->control->flush, 1);
    pthread_mutex_unlock(&vm->lock);
    struct rift_hvf_control *control;
    while ((control = one_to_flush(vm))) {
        rift_hvf_control_flush(control);
        rift_hvf_control_release(control);
    }
}

int rift_hvf_vm_install(struct rift_hvf_vm *vm, uint32_t kind, uint64_t first, uint64_t last, uintptr_t handle,
                        uintptr_t context, int fallback, struct rift_error *error) {
    if (vm->had_vcpu) /* the table is read without a lock once a vCPU exists */
        return rift_hvf_fail(error, EBUSY, "rift_dispatch_add");
    int status = rift_dispatch_add(vm->dispatch, kind, first, last, (rift_exit_fn *)handle, (void *)context, fallback);
    return status ? rift_hvf_fail(error, -status, "rift_dispatch_add") : 0;
}
