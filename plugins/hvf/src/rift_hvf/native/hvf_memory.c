/* Guest-physical memory: the regions, kept in our own map as well, since the framework can be asked for none.
 *
 * An exit for an address is looked up here to tell a device from memory. */
#include "hvf_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Hypervisors show the first touch of a page, and what they have not made up their mind about, a few times. */
#define MOST_REPEATS 100000u

/* The first region that ends above `gpa`; region_count if none does. Under the lock. */
static uint32_t position(const struct rift_hvf_vm *vm, uint64_t gpa) {
    uint32_t low = 0, high = vm->region_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (vm->regions[middle].gpa + (vm->regions[middle].bytes - 1) < gpa)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const struct rift_hvf_region *region_at(const struct rift_hvf_vm *vm, uint64_t gpa) {
    uint32_t at = position(vm, gpa);
    return at < vm->region_count && vm->regions[at].gpa <= gpa ? &vm->regions[at] : NULL;
}

void *rift_hvf_memory_find(struct rift_hvf_vm *vm, uint64_t gpa, uint64_t bytes, uint32_t permissions) {
    void *found = NULL;
    pthread_mutex_lock(&vm->lock);
    const struct rift_hvf_region *region = region_at(vm, gpa);
    if (region && bytes <= region->bytes - (gpa - region->gpa) && (region->permissions & permissions) == permissions)
        found = region->host + (gpa - region->gpa);
    pthread_mutex_unlock(&vm->lock);
    return found;
}

uint32_t rift_hvf_memory_permissions(struct rift_hvf_vm *vm, uint64_t gpa) {
    pthread_mutex_lock(&vm->lock);
    const struct rift_hvf_region *region = region_at(vm, gpa);
    uint32_t permissions = region ? region->permissions : 0;
    pthread_mutex_unlock(&vm->lock);
    return permissions;
}

int rift_hvf_memory_repeats(struct rift_hvf_repeats *repeats, uint64_t gpa, uint64_t pc) {
    if (repeats->gpa != gpa || repeats->pc != pc)
        *repeats = (struct rift_hvf_repeats){.gpa = gpa, .pc = pc};
    if (++repeats->count < MOST_REPEATS)
        return 0;
    repeats->count = 0;
    return 1;
}

/* Room for one more region. */
static int reserve(struct rift_hvf_vm *vm, struct rift_error *error) {
    if (vm->region_count < vm->region_room)
        return 0;
    uint32_t room = vm->region_room ? 2 * vm->region_room : 16;
    struct rift_hvf_region *regions = realloc(vm->regions, room * sizeof(*regions));
    if (!regions)
        return rift_hvf_fail(error, ENOMEM, "realloc");
    vm->regions = regions;
    vm->region_room = room;
    return 0;
}

/* The region is in our map before the hypervisor has it, and longer: an exit in between then finds memory, and
 * enters the guest again. */
int rift_hvf_vm_map(struct rift_hvf_vm *vm, uint64_t gpa, void *host, uint64_t bytes, uint32_t permissions,
                    struct rift_error *error) {
    if (!bytes || (gpa | bytes | (uintptr_t)host) % vm->page || gpa >= vm->gpa_end || bytes > vm->gpa_end - gpa)
        return rift_hvf_fail(error, EINVAL, "hv_vm_map");
    pthread_mutex_lock(&vm->lock);
    uint32_t at = position(vm, gpa);
    int status = 0;
    if (at < vm->region_count && vm->regions[at].gpa < gpa + bytes)
        status = rift_hvf_fail(error, EEXIST, "hv_vm_map");
    else
        status = reserve(vm, error);
    if (!status) {
        memmove(&vm->regions[at + 1], &vm->regions[at], (vm->region_count - at) * sizeof(*vm->regions));
        vm->regions[at] =
            (struct rift_hvf_region){.gpa = gpa, .bytes = bytes, .host = host, .permissions = permissions};
        vm->region_count += 1;
        int result = vm->framework->calls.vm_map(host, gpa, bytes, permissions);
        if (result != HV_SUCCESS) {
            status = rift_hvf_fail(error, result, "hv_vm_map");
            vm->region_count -= 1;
            memmove(&vm->regions[at], &vm->regions[at + 1], (vm->region_count - at) * sizeof(*vm->regions));
        }
    }
    pthread_mutex_unlock(&vm->lock);
    return status;
}

/* The address, and exactly the size, that were mapped: newer systems kill a process that unmaps a range with a
 * hole in it. */
int rift_hvf_vm_unmap(struct rift_hvf_vm *vm, uint64_t gpa, struct rift_error *error) {
    int status = 0;
    pthread_mutex_lock(&vm->lock);
    uint32_t at = position(vm, gpa);
    if (at >= vm->region_count || vm->regions[at].gpa != gpa) {
        status = rift_hvf_fail(error, ENOENT, "hv_vm_unmap");
    } else {
        int result = vm->framework->calls.vm_unmap(gpa, vm->regions[at].bytes);
        if (result != HV_SUCCESS) {
            status = rift_hvf_fail(error, result, "hv_vm_unmap");
        } else {
            vm->region_count -= 1;
            memmove(&vm->regions[at], &vm->regions[at + 1], (vm->region_count - at) * sizeof(*vm->regions));
        }
    }
    pthread_mutex_unlock(&vm->lock);
    /* Nobody can find the memory any more; a vCPU that has found it still holds it. */
    return status ? status : !rift_hvf_vm_quiet(vm);
}

int rift_hvf_memory_service(struct rift_hvf_vm *vm, const void *code, size_t bytes, uint64_t *gpa,
                            struct rift_error *error) {
    int status = 0;
    pthread_mutex_lock(&vm->lock);
    if (!vm->service) {
        void *page = mmap(NULL, 2 * (size_t)vm->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
        if (page == MAP_FAILED) {
            status = rift_hvf_fail(error, errno, "mmap");
        } else {
            uint8_t *aligned = (uint8_t *)(((uintptr_t)page + vm->page - 1) / vm->page * vm->page);
            memcpy(aligned, code, bytes);
            if (vm->framework->calls.icache_invalidate)
                vm->framework->calls.icache_invalidate(aligned, bytes);
            vm->service = page;
            vm->service_gpa = vm->gpa_end - vm->page;
            int result = vm->framework->calls.vm_map(aligned, vm->service_gpa, vm->page, HV_MEMORY_READ | HV_MEMORY_EXEC);
            if (result != HV_SUCCESS) {
                munmap(page, 2 * (size_t)vm->page);
                vm->service = NULL;
                status = rift_hvf_fail(error, result, "hv_vm_map");
            }
        }
    }
    *gpa = vm->service_gpa;
    pthread_mutex_unlock(&vm->lock);
    return status;
}

void rift_hvf_memory_end_service(struct rift_hvf_vm *vm) {
    if (!vm->service)
        return;
    vm->framework->calls.vm_unmap(vm->service_gpa, vm->page);
    munmap(vm->service, 2 * (size_t)vm->page);
    vm->service = NULL;
}

/* Instruction caches are not coherent with stores on every CPU; where the framework's system has no such call,
 * they are. Only what is memory counts. */
void rift_hvf_vm_code_changed(struct rift_hvf_vm *vm, uint64_t gpa, uint64_t bytes) {
    if (!vm->framework->calls.icache_invalidate || !bytes)
        return;
    const uint64_t last = gpa + (bytes - 1);
    pthread_mutex_lock(&vm->lock);
    for (uint32_t at = position(vm, gpa); at < vm->region_count && vm->regions[at].gpa <= last; ++at) {
        const struct rift_hvf_region *region = &vm->regions[at];
        const uint64_t first = gpa > region->gpa ? gpa - region->gpa : 0;
        const uint64_t end = last - region->gpa < region->bytes ? last - region->gpa + 1 : region->bytes;
        vm->framework->calls.icache_invalidate(region->host + first, end - first);
    }
    pthread_mutex_unlock(&vm->lock);
}
