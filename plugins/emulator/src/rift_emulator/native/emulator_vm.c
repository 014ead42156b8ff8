/* Virtual machines: guest-physical memory, native handlers, and what all vCPUs must hear of. */
#include "emulator_clock.h"
#include "emulator_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint32_t rift_emulator_abi_version(void) {
    return RIFT_ABI_VERSION;
}

int rift_emulator_binding_check(const struct rift_emulator_binding *binding) {
    return binding->version == RIFT_EMULATOR_BINDING_VERSION && binding->bytes == sizeof(*binding);
}

struct rift_emulator_vm *rift_emulator_vm_create(const struct rift_emulator_binding *binding, uint32_t flags,
                                                 uint32_t gpa_bits, uint32_t code_buffer, uint32_t slot_limit,
                                                 struct rift_error *error) {
    struct rift_emulator_vm *vm = calloc(1, sizeof(*vm));
    if (vm) {
        vm->turn = rift_emulator_turn_create();
        vm->dispatch = rift_dispatch_create();
    }
    if (!vm || !vm->turn || !vm->dispatch) {
        if (vm)
            rift_emulator_turn_release(vm->turn);
        free(vm);
        rift_emulator_fail(error, ENOMEM, "calloc");
        return NULL;
    }
    pthread_mutex_init(&vm->lock, NULL);
    vm->binding = binding;
    vm->flags = flags;
    vm->gpa_end = UINT64_C(1) << gpa_bits;
    vm->code_buffer = code_buffer;
    vm->slot_limit = slot_limit;
    atomic_init(&vm->generation, 1);
    return vm;
}

void rift_emulator_vm_close(struct rift_emulator_vm *vm) {
    if (!vm)
        return;
    rift_dispatch_destroy(vm->dispatch);
    rift_emulator_turn_release(vm->turn);
    pthread_mutex_destroy(&vm->lock);
    free(vm->regions);
    free(vm);
}

/* The index of the first region that ends above `gpa`. */
static uint32_t first_above(const struct rift_emulator_vm *vm, uint64_t gpa) {
    uint32_t low = 0, high = vm->region_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct rift_emulator_region *region = &vm->regions[middle];
        if (region->gpa + region->bytes <= gpa)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct rift_emulator_region *rift_emulator_vm_find(const struct rift_emulator_vm *vm, uint64_t gpa) {
    uint32_t at = first_above(vm, gpa);
    return at < vm->region_count && vm->regions[at].gpa <= gpa ? &vm->regions[at] : NULL;
}

/* Whoever runs looks at what has changed before it goes on; with the turn it has done so. */
static void tell_all(struct rift_emulator_vm *vm) {
    pthread_mutex_lock(&vm->lock);
    for (struct rift_emulator_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
        rift_emulator_control_yield(vcpu->control);
    pthread_mutex_unlock(&vm->lock);
    if (rift_emulator_turn_mine(vm->turn))
        return; /* from a native handler, or an atomic section: nobody runs */
    rift_emulator_turn_take(vm->turn, NULL, 0);
    rift_emulator_turn_give(vm->turn);
}

int rift_emulator_vm_map(struct rift_emulator_vm *vm, uint64_t gpa, void *host, uint64_t bytes, int writable,
                         struct rift_error *error) {
    if (!bytes || (gpa | bytes | (uintptr_t)host) % PAGE || gpa >= vm->gpa_end || bytes > vm->gpa_end - gpa)
        return rift_emulator_fail(error, EINVAL, "uc_mem_map_ptr");
    if (vm->region_count >= vm->slot_limit)
        return rift_emulator_fail(error, ENOSPC, "uc_mem_map_ptr");
    pthread_mutex_lock(&vm->lock);
    uint32_t at = first_above(vm, gpa);
    if (at < vm->region_count && vm->regions[at].gpa < gpa + bytes) {
        pthread_mutex_unlock(&vm->lock);
        return rift_emulator_fail(error, EEXIST, "uc_mem_map_ptr");
    }
    struct rift_emulator_region *regions = realloc(vm->regions, (vm->region_count + 1) * sizeof(*regions));
    if (!regions) {
        pthread_mutex_unlock(&vm->lock);
        return rift_emulator_fail(error, ENOMEM, "realloc");
    }
    vm->regions = regions;
    memmove(&regions[at + 1], &regions[at], (vm->region_count - at) * sizeof(*regions));
    regions[at] = (struct rift_emulator_region){.gpa = gpa, .bytes = bytes, .host = host, .writable = writable};
    vm->region_count += 1;
    atomic_fetch_add(&vm->generation, 1);
    pthread_mutex_unlock(&vm->lock);
    tell_all(vm);
    return 0;
}

int rift_emulator_vm_quiet(struct rift_emulator_vm *vm) {
    int quiet = 1;
    pthread_mutex_lock(&vm->lock);
    for (const struct rift_emulator_vcpu *vcpu = vm->vcpus; vcpu; vcpu = vcpu->next)
        if (atomic_load(&vcpu->control->dispatching))
            quiet = 0;
    pthread_mutex_unlock(&vm->lock);
    return quiet;
}

int rift_emulator_vm_unmap(struct rift_emulator_vm *vm, uint64_t gpa, struct rift_error *error) {
    pthread_mutex_lock(&vm->lock);
    uint32_t at = first_above(vm, gpa);
    if (at == vm->region_count || vm->regions[at].gpa != gpa) {
        pthread_mutex_unlock(&vm->lock);
        return rift_emulator_fail(error, ENOENT, "uc_mem_unmap");
    }
    memmove(&vm->regions[at], &vm->regions[at + 1], (vm->region_count - at - 1) * sizeof(*vm->regions));
    vm->region_count -= 1;
    atomic_fetch_add(&vm->generation, 1);
    pthread_mutex_unlock(&vm->lock);
    /* After this a handler cannot find the memory; one that has found it is still dispatching. */
    tell_all(vm);
    return !rift_emulator_vm_quiet(vm);
}

void rift_emulator_vm_flush(struct rift_emulator_vm *vm) {
    atomic_fetch_add(&vm->flushes, 1);
    tell_all(vm);
}

void rift_emulator_vm_code_changed(struct rift_emulator_vm *vm) {
    tell_all(vm);
}

int rift_emulator_vm_install(struct rift_emulator_vm *vm, uint32_t kind, uint64_t first, uint64_t last,
                             uintptr_t handle, uintptr_t context, int fallback, struct rift_error *error) {
    if (vm->created) /* the table is read without a lock once a vCPU exists */
        return rift_emulator_fail(error, EBUSY, "rift_dispatch_add");
    int status = rift_dispatch_add(vm->dispatch, kind, first, last, (rift_exit_fn *)handle, (void *)context, fallback);
    return status ? rift_emulator_fail(error, -status, "rift_dispatch_add") : 0;
}

void rift_emulator_vm_take(struct rift_emulator_vm *vm) {
    rift_emulator_turn_take(vm->turn, NULL, 0);
}

void rift_emulator_vm_give(struct rift_emulator_vm *vm) {
    rift_emulator_turn_give(vm->turn);
}

/* -- services --------------------------------------------------------------------------------------- */

uint8_t *rift_emulator_memory(struct rift_emulator_cpu *cpu, uint64_t gpa, uint64_t bytes, int writable) {
    struct rift_emulator_vcpu *vcpu = (struct rift_emulator_vcpu *)cpu;
    const struct rift_emulator_region *region = NULL;
    for (uint32_t at = 0; at < vcpu->mapped_count; ++at) { /* what the engine sees, and nobody else changes */
        const struct rift_emulator_region *candidate = &vcpu->mapped[at];
        if (gpa - candidate->gpa < candidate->bytes) {
            region = candidate;
            break;
        }
    }
    if (!region || bytes > region->bytes - (gpa - region->gpa) || (writable && !region->writable))
        return NULL;
    return region->host + (gpa - region->gpa);
}
