/* The bare twin: what a C program without any framework does for the same guest, with the same system
 * calls. Compiled when a benchmark starts; never part of the installed packages. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rift_abi.h"

struct twin {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    size_t run_size;
};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void twin_close(struct twin *twin) {
    if (!twin)
        return;
    if (twin->run)
        munmap(twin->run, twin->run_size);
    if (twin->vcpu >= 0)
        close(twin->vcpu);
    if (twin->vm >= 0)
        close(twin->vm);
    if (twin->kvm >= 0)
        close(twin->kvm);
    free(twin);
}

struct twin *twin_open(void) {
    struct twin *twin = calloc(1, sizeof *twin);
    twin->vm = twin->vcpu = -1;
    twin->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    twin->vm = ioctl(twin->kvm, KVM_CREATE_VM, 0);
    if (twin->vm < 0) {
        twin_close(twin);
        return NULL;
    }
    return twin;
}

int twin_map(struct twin *twin, uint32_t slot, uint64_t gpa, uint64_t size, uint64_t host, int readonly) {
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .flags = readonly ? KVM_MEM_READONLY : 0,
        .guest_phys_addr = gpa,
        .memory_size = size,
        .userspace_addr = host,
    };
    return ioctl(twin->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static struct kvm_cpuid2 *cpuid(int kvm) {
    static struct kvm_cpuid2 *known;
    if (!known) {
        known = calloc(1, sizeof *known + 256 * sizeof(struct kvm_cpuid_entry2));
        known->nent = 256;
        ioctl(kvm, KVM_GET_SUPPORTED_CPUID, known);
    }
    return known;
}

static struct kvm_segment segment(uint16_t selector, uint8_t type, int code, int system) {
    return (struct kvm_segment){
        .selector = selector, .limit = system ? 0x67 : 0xffffffff, .type = type, .present = 1,
        .s = !system, .l = (uint8_t)code, .db = (uint8_t)(!code && !system), .g = (uint8_t)!system,
    };
}

/* What a vCPU in long mode takes, as Rift has set it. */
struct twin_state {
    uint64_t cr3, cr0, cr4, efer, gdt, idt, tss, xcr0;
};

/* One vCPU in long mode; the tables, descriptor tables and stack are those that Rift has written. */
int twin_vcpu(struct twin *twin, const struct twin_state *state) {
    twin->vcpu = ioctl(twin->vm, KVM_CREATE_VCPU, 0);
    twin->run_size = (size_t)ioctl(twin->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    twin->run = mmap(NULL, twin->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, twin->vcpu, 0);
    if (twin->vcpu < 0 || twin->run == MAP_FAILED || ioctl(twin->vcpu, KVM_SET_CPUID2, cpuid(twin->kvm)) < 0)
        return -errno;
    struct kvm_sregs sregs;
    if (ioctl(twin->vcpu, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cr3 = state->cr3;
    sregs.cr0 = state->cr0;
    sregs.cr4 = state->cr4;
    sregs.efer = state->efer;
    sregs.cs = segment(0x08, 0xb, 1, 0);
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = segment(0x10, 0x3, 0, 0);
    sregs.tr = segment(0x28, 0xb, 0, 1);
    sregs.tr.base = state->tss;
    sregs.gdt.base = state->gdt;
    sregs.gdt.limit = 0x37;
    sregs.idt.base = state->idt;
    sregs.idt.limit = 0xfff;
    if (ioctl(twin->vcpu, KVM_SET_SREGS, &sregs) < 0)
        return -errno;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = state->xcr0}}};
    if (state->xcr0 && ioctl(twin->vcpu, KVM_SET_XCRS, &xcrs) < 0)
        return -errno;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[5];
    } msrs = {
        .head = {.nmsrs = 5},
        .entries = {{.index = 0xc0000081, .data = 0x0013000800000000},
                    {.index = 0xc0000082, .data = state->idt},
                    {.index = 0xc0000084, .data = 0x47700},
                    {.index = 0xc0000102},
                    {.index = 0x277, .data = 0x0007040600070406}},
    };
    return ioctl(twin->vcpu, KVM_SET_MSRS, &msrs) < 0 ? -errno : 0;
}

int twin_set(struct twin *twin, uint64_t rip, uint64_t rsp, uint64_t rdi, uint64_t rsi) {
    struct kvm_regs regs = {.rip = rip, .rsp = rsp, .rdi = rdi, .rsi = rsi, .rflags = 2};
    return ioctl(twin->vcpu, KVM_SET_REGS, &regs);
}

int twin_run(struct twin *twin) {
    if (ioctl(twin->vcpu, KVM_RUN, 0) < 0)
        return -errno;
    return (int)twin->run->exit_reason;
}

/* Nanoseconds for `count` MMIO exits. */
uint64_t twin_exits(struct twin *twin, uint64_t count) {
    uint64_t begin = now();
    for (uint64_t number = 0; number < count; ++number)
        if (ioctl(twin->vcpu, KVM_RUN, 0) < 0 || twin->run->exit_reason != KVM_EXIT_MMIO)
            return 0;
    return now() - begin;
}

/* Nanoseconds for `count` calls: set the registers, run to the store of the return stub, read them. */
uint64_t twin_calls(struct twin *twin, uint64_t count, uint64_t rip, uint64_t rsp, uint64_t left, uint64_t right) {
    uint64_t begin = now();
    for (uint64_t number = 0; number < count; ++number) {
        struct kvm_regs regs;
        if (twin_set(twin, rip, rsp, left, right) < 0 || ioctl(twin->vcpu, KVM_RUN, 0) < 0 ||
            twin->run->exit_reason != KVM_EXIT_MMIO || ioctl(twin->vcpu, KVM_GET_REGS, &regs) < 0 ||
            regs.rax != left + right)
            return 0;
    }
    return now() - begin;
}

struct twin_mapping {
    uint64_t virtual_address, physical, size, flags, page;
};

static uint64_t *table_below(uint8_t *ram, uint64_t ram_gpa, uint64_t *next, uint64_t *entry) {
    if (!(*entry & 1)) {
        *entry = *next | 7;
        *next += 0x1000;
    }
    return (uint64_t *)(ram + ((*entry & 0xffffffffff000) - ram_gpa));
}

/* The same page tables, by the plainest code; tables are taken from `tables` on, the first is the root. */
void twin_tables(uint8_t *ram, uint64_t ram_gpa, uint64_t tables, const struct twin_mapping *mappings, size_t count) {
    uint64_t next = tables + 0x1000;
    uint64_t *root = (uint64_t *)(ram + (tables - ram_gpa));
    for (size_t number = 0; number < count; ++number) {
        const struct twin_mapping *mapping = &mappings[number];
        uint64_t va = mapping->virtual_address, pa = mapping->physical, end = va + mapping->size;
        while (va != end) {
            uint64_t *level3 = table_below(ram, ram_gpa, &next, &root[va >> 39 & 511]);
            uint64_t *level2 = table_below(ram, ram_gpa, &next, &level3[va >> 30 & 511]);
            if (mapping->page >= 0x200000 && !((va | pa) & 0x1fffff) && end - va >= 0x200000) {
                level2[va >> 21 & 511] = pa | mapping->flags | 0x80;
                va += 0x200000;
                pa += 0x200000;
                continue;
            }
            uint64_t *level1 = table_below(ram, ram_gpa, &next, &level2[va >> 21 & 511]);
            do {
                level1[va >> 12 & 511] = pa | mapping->flags;
                va += 0x1000;
                pa += 0x1000;
            } while (va != end && (va & 0x1fffff));
        }
    }
}

/* A native handler that counts, and stops at its limit. */
struct twin_counter {
    uint64_t count, limit;
};

int twin_count_exit(void *context, const struct rift_host *host, struct rift_exit *exit) {
    (void)host;
    struct twin_counter *counter = context;
    if (++counter->count < counter->limit)
        return RIFT_RESUME;
    exit->value = 0;
    return RIFT_STOP;
}

/* Guest memory as Rift makes it: a memfd, shared. */
static void *shared_memory(uint64_t size) {
    int descriptor = memfd_create("twin", MFD_CLOEXEC);
    if (ftruncate(descriptor, (off_t)size) < 0)
        return NULL;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    return memory == MAP_FAILED ? NULL : memory;
}

/* A piece of the file, and where in RAM it goes. */
struct twin_part {
    uint64_t offset, size, physical;
};

struct twin_plan {
    const char *path;
    const struct twin_part *parts;
    size_t part_count;
    const struct twin_mapping *mappings;
    size_t mapping_count;
    uint64_t ram_gpa, ram_size, tables;
    struct twin_state state;
    uint64_t entry, stack;
};

/* Maps the file, fills RAM, writes the tables, makes one VM and one vCPU, and runs to the first exit: nanoseconds,
 * or 0 when something failed or the exit is not the store that was expected. Clearing up is not in it. */
uint64_t twin_start(const struct twin_plan *plan) {
    uint64_t begin = now();
    int descriptor = open(plan->path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) < 0)
        return 0;
    size_t file_size = (size_t)status.st_size;
    uint8_t *file = mmap(NULL, file_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    uint8_t *ram = shared_memory(plan->ram_size);
    if (file == MAP_FAILED || !ram)
        return 0;
    for (size_t number = 0; number < plan->part_count; ++number) {
        const struct twin_part *part = &plan->parts[number];
        memcpy(ram + (part->physical - plan->ram_gpa), file + part->offset, part->size);
    }
    twin_tables(ram, plan->ram_gpa, plan->tables, plan->mappings, plan->mapping_count);
    struct twin *twin = twin_open();
    int ended = -1;
    if (twin && twin_map(twin, 0, plan->ram_gpa, plan->ram_size, (uint64_t)ram, 0) == 0 &&
        twin_vcpu(twin, &plan->state) == 0 && twin_set(twin, plan->entry, plan->stack, 0, 0) == 0)
        ended = twin_run(twin);
    uint64_t spent = now() - begin;
    twin_close(twin);
    munmap(ram, plan->ram_size);
    munmap(file, file_size);
    return ended == KVM_EXIT_MMIO ? spent : 0;
}
