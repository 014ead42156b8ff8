/* The guest's memory as its own code sees it: through its page tables, with its permissions.
 *
 * Needed where an exit says that an instruction accessed something, and the hypervisor carries nothing out: to read
 * the instruction, and for the operand of a string instruction that is memory. Tables are the guest's to forge:
 * every entry is read once, and every address looked up. Format: Intel SDM volume 3, 4.5 (4-level and 5-level
 * paging), 4.6 (access rights), 4.7 (error codes). */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

#define PAGE UINT64_C(0x1000)
#define ENTRY_PRESENT UINT64_C(1)
#define ENTRY_WRITABLE UINT64_C(2)
#define ENTRY_USER UINT64_C(4)
#define ENTRY_ACCESSED UINT64_C(0x20)
#define ENTRY_DIRTY UINT64_C(0x40)
#define ENTRY_LARGE UINT64_C(0x80)
#define ENTRY_ADDRESS UINT64_C(0x000FFFFFFFFFF000)

enum { FAULT_PRESENT = 1, FAULT_WRITE = 2, FAULT_USER = 4, FAULT_FETCH = 16 };

/* What the walk depends on. */
struct paging {
    uint64_t cr0, cr3, cr4, rflags;
    int user;
};

/* What the walk found. */
struct translation {
    uint64_t gpa;
    uint32_t code; /* of the page fault, where it failed */
    int missing;   /* a table is not in memory */
};

static int load_paging(const struct rift_hvf_cpu *cpu, struct paging *paging, struct rift_error *error) {
    uint64_t efer;
    uint32_t privilege;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR0, &paging->cr0, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR3, &paging->cr3, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR4, &paging->cr4, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, &efer, error) ||
        rift_hvf_x86_get(cpu, HV_RFLAGS, &paging->rflags, error) ||
        rift_hvf_x86_privilege(cpu, &privilege, error))
        return -1;
    paging->user = privilege == 3;
    return efer & EFER_LMA ? 0 : 1; /* other modes are nobody's here */
}

/* The access rights of a leaf; `rights` are those that all levels have. */
static int allowed(const struct paging *paging, uint64_t rights, enum x86_access access) {
    if (paging->user)
        return (rights & ENTRY_USER) && (access != ACCESS_WRITE || (rights & ENTRY_WRITABLE));
    if (access == ACCESS_WRITE && !(rights & ENTRY_WRITABLE) && (paging->cr0 & CR0_WP))
        return 0;
    return access == ACCESS_FETCH || !(rights & ENTRY_USER) || !(paging->cr4 & CR4_SMAP) ||
           (paging->rflags & RFLAGS_AC);
}

/* Returns 0 with translation->gpa, or 1. */
static int walk(const struct rift_hvf_cpu *cpu, const struct paging *paging, uint64_t linear, enum x86_access access,
                struct translation *translation) {
    const uint32_t levels = paging->cr4 & CR4_LA57 ? 5 : 4;
    const uint32_t unused = 64 - (12 + 9 * levels);
    *translation = (struct translation){.code = access | (paging->user ? FAULT_USER : 0)};
    if ((uint64_t)((int64_t)(linear << unused) >> unused) != linear) {
        translation->missing = 1;
        return 1;
    }
    uint64_t table = paging->cr3 & ENTRY_ADDRESS, rights = ENTRY_WRITABLE | ENTRY_USER;
    for (uint32_t level = levels; level > 0; --level) {
        const uint32_t shift = 12 + 9 * (level - 1);
        uint64_t at = table + 8 * (linear >> shift & 511);
        uint64_t *place = rift_hvf_memory_find(cpu->vm, at, 8, HV_MEMORY_READ);
        if (!place) {
            translation->missing = 1;
            return 1;
        }
        uint64_t entry = __atomic_load_n(place, __ATOMIC_RELAXED);
        if (!(entry & ENTRY_PRESENT))
            return 1;
        rights &= entry;
        const int leaf = level == 1 || (level <= 3 && (entry & ENTRY_LARGE));
        if (leaf && !allowed(paging, rights, access)) {
            translation->code |= FAULT_PRESENT;
            return 1;
        }
        uint64_t marks = ENTRY_ACCESSED | (leaf && access == ACCESS_WRITE ? ENTRY_DIRTY : 0);
        if ((entry & marks) != marks && rift_hvf_memory_find(cpu->vm, at, 8, HV_MEMORY_WRITE))
            __atomic_fetch_or(place, marks, __ATOMIC_RELAXED);
        if (leaf) {
            uint64_t offset = (UINT64_C(1) << shift) - 1;
            translation->gpa = (entry & ENTRY_ADDRESS & ~offset) | (linear & offset);
            return 0;
        }
        table = entry & ENTRY_ADDRESS;
    }
    return 1;
}

/* One page's part of a copy; `data` NULL: only a check. Returns as rift_hvf_x86_copy. */
static int copy_part(const struct rift_hvf_cpu *cpu, const struct paging *paging, uint64_t linear, void *data,
                     uint32_t bytes, enum x86_access access, uint64_t *fault, uint32_t *code) {
    struct translation translation;
    if (walk(cpu, paging, linear, access, &translation)) {
        *fault = linear;
        *code = translation.code;
        return translation.missing ? 1 : 2;
    }
    uint32_t wanted = access == ACCESS_WRITE ? HV_MEMORY_WRITE : HV_MEMORY_READ;
    void *host = rift_hvf_memory_find(cpu->vm, translation.gpa, bytes, wanted);
    if (!host)
        return 1;
    if (data && access == ACCESS_WRITE)
        memcpy(host, data, bytes);
    else if (data)
        memcpy(data, host, bytes);
    return 0;
}

int rift_hvf_x86_copy(const struct rift_hvf_cpu *cpu, uint64_t linear, void *data, uint32_t bytes,
                      enum x86_access access, uint64_t *fault, uint32_t *code, struct rift_error *error) {
    struct paging paging;
    int status = load_paging(cpu, &paging, error);
    for (uint32_t at = 0; !status && at < bytes;) {
        uint32_t part = (uint32_t)(PAGE - (linear + at) % PAGE);
        if (part > bytes - at)
            part = bytes - at;
        status = copy_part(cpu, &paging, linear + at, data ? (uint8_t *)data + at : NULL, part, access, fault, code);
        at += part;
    }
    return status;
}

int rift_hvf_x86_translate(const struct rift_hvf_cpu *cpu, uint64_t linear, enum x86_access access, uint64_t *gpa,
                           uint32_t *code, struct rift_error *error) {
    struct paging paging;
    struct translation translation;
    int status = load_paging(cpu, &paging, error);
    if (status)
        return status;
    status = walk(cpu, &paging, linear, access, &translation);
    *gpa = translation.gpa;
    *code = translation.code;
    return status ? translation.missing ? 1 : 2 : 0;
}

int rift_hvf_x86_check(const struct rift_hvf_cpu *cpu, uint64_t linear, uint32_t bytes, enum x86_access access,
                       uint64_t *fault, uint32_t *code, struct rift_error *error) {
    return rift_hvf_x86_copy(cpu, linear, NULL, bytes, access, fault, code, error);
}

int rift_hvf_x86_fetch(const struct rift_hvf_cpu *cpu, uint8_t code[15], uint32_t *bytes, struct rift_error *error) {
    uint64_t attributes, fault;
    uint32_t fault_code;
    *bytes = 0;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_CS_AR, &attributes, error))
        return -1;
    if (!(attributes & 1u << 13)) /* L: only 64-bit code is understood, whose base is 0 */
        return 0;
    uint32_t first = (uint32_t)(PAGE - x86_of(cpu)->rip % PAGE);
    if (first > 15)
        first = 15;
    int status = rift_hvf_x86_copy(cpu, x86_of(cpu)->rip, code, first, ACCESS_FETCH, &fault, &fault_code, error);
    if (status)
        return status < 0 ? -1 : 0;
    *bytes = first;
    if (first < 15) {
        status = rift_hvf_x86_copy(cpu, x86_of(cpu)->rip + first, code + first, 15 - first, ACCESS_FETCH, &fault,
                                   &fault_code, error);
        if (status < 0)
            return -1;
        if (!status)
            *bytes = 15;
    }
    return 0;
}

int rift_hvf_x86_linear(const struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction, uint64_t *linear,
                        struct rift_error *error) {
    uint64_t address = instruction->displacement, value;
    if (instruction->rip_relative)
        address += x86_of(cpu)->rip + instruction->length;
    if (instruction->base != NO_REGISTER) {
        if (rift_hvf_x86_get(cpu, rift_hvf_x86_general(instruction->base), &value, error))
            return -1;
        address += value;
    }
    if (instruction->index != NO_REGISTER) {
        if (rift_hvf_x86_get(cpu, rift_hvf_x86_general(instruction->index), &value, error))
            return -1;
        address += value << instruction->scale;
    }
    if (instruction->address_size == 4)
        address &= 0xFFFFFFFF;
    if (instruction->segment == SEGMENT_FS || instruction->segment == SEGMENT_GS) {
        if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_ES_BASE + 2u * instruction->segment, &value, error))
            return -1;
        address += value;
    }
    *linear = address;
    return 0;
}
