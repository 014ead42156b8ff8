/* An access to guest-physical addresses that are not all memory, part by part: each part is within a page, of at most
 * 8 bytes, and either memory of ours, or an exit. */
#include "hvf_x86_64.h"

#include <string.h>

#define PAGE UINT64_C(0x1000)

/* Adds `bytes` at `gpa`, all on one page. */
static void add_parts(struct rift_hvf_x86 *x86, uint64_t gpa, uint32_t offset, uint32_t bytes) {
    while (bytes) {
        const uint32_t size = bytes < 8 ? bytes : 8;
        x86->parts[x86->part_count++] = (struct x86_part){.gpa = gpa, .offset = offset, .size = size};
        gpa += size;
        offset += size;
        bytes -= size;
    }
}

/* The page of `linear`, by the guest's own tables. Returns 0; 1: it cannot be told; 2: a page fault is queued; -1. */
static int translate(struct rift_hvf_cpu *cpu, uint64_t linear, enum x86_access access, uint64_t *gpa,
                     struct rift_error *error) {
    uint32_t code;
    int status = rift_hvf_x86_translate(cpu, linear, access, gpa, &code, error);
    if (status != 2)
        return status;
    rift_hvf_x86_raise(cpu, VECTOR_PF, 1, code);
    return rift_hvf_x86_set(cpu, HV_CR2, linear, error) ? -1 : 2;
}

int rift_hvf_x86_access_plan(struct rift_hvf_cpu *cpu, uint64_t linear, uint64_t gpa, enum x86_access access,
                             struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint32_t size = x86->instruction.size;
    const uint32_t here = (uint32_t)(PAGE - linear % PAGE);
    x86->part_count = x86->part_next = 0;
    if (size <= here) {
        add_parts(x86, gpa, 0, size);
        return linear % PAGE != gpa % PAGE;
    }
    uint64_t first, second;
    int status = translate(cpu, linear, access, &first, error);
    if (!status)
        status = translate(cpu, linear + here, access, &second, error);
    if (status)
        return status;
    add_parts(x86, first, 0, here);
    add_parts(x86, second, here, size - here);
    return first / PAGE != gpa / PAGE && second / PAGE != gpa / PAGE;
}

static uint8_t *place_of(struct rift_hvf_x86 *x86, const struct x86_part *part) {
    return (uint8_t *)x86->access_words + part->offset;
}

static void describe(struct rift_hvf_x86 *x86, const struct x86_part *part, int write, struct rift_exit *exit) {
    *exit = (struct rift_exit){
        .kind = RIFT_EXIT_MMIO,
        .address = part->gpa,
        .size = part->size,
        .is_write = (uint32_t)write,
        .raw_reason = x86->reason,
    };
    if (write)
        memcpy(&exit->value, place_of(x86, part), part->size);
}

/* Carries parts out that are memory, from part_next on. Returns 1 if one follows that is not. */
static int skip_memory(struct rift_hvf_cpu *cpu, int write) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    for (; x86->part_next < x86->part_count; ++x86->part_next) {
        const struct x86_part *part = &x86->parts[x86->part_next];
        void *memory = rift_hvf_memory_find(cpu->vm, part->gpa, part->size, write ? HV_MEMORY_WRITE : HV_MEMORY_READ);
        if (!memory)
            return 1;
        if (write)
            memcpy(memory, place_of(x86, part), part->size);
        else
            memcpy(place_of(x86, part), memory, part->size);
    }
    return 0;
}

static void set_open(struct rift_hvf_cpu *cpu, int open) {
    x86_of(cpu)->open = open ? OPEN_MMIO : OPEN_NOTHING;
    cpu->open = (uint32_t)open;
}

int rift_hvf_x86_access_read(struct rift_hvf_cpu *cpu, struct rift_exit *exit) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const int more = skip_memory(cpu, 0);
    x86->access_reading = (uint32_t)more;
    set_open(cpu, more);
    if (more)
        describe(x86, &x86->parts[x86->part_next], 0, exit);
    return more;
}

void rift_hvf_x86_access_answer(struct rift_hvf_cpu *cpu, uint64_t value) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const struct x86_part *part = &x86->parts[x86->part_next++];
    value &= rift_hvf_mask(part->size);
    memcpy(place_of(x86, part), &value, part->size);
}

/* The last exit of a store waits for nothing: what is memory behind it is written before it. */
int rift_hvf_x86_access_write(struct rift_hvf_cpu *cpu, struct rift_exit *exit) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!skip_memory(cpu, 1)) {
        set_open(cpu, 0);
        return 0;
    }
    describe(x86, &x86->parts[x86->part_next++], 1, exit);
    set_open(cpu, skip_memory(cpu, 1));
    return 1;
}
