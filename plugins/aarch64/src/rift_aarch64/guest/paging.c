/* Page tables as the guest itself sees and edits them (Arm ARM, "The AArch64 Virtual Memory System
 * Architecture"). Supervisor mode only. Both halves of the address
 * space, 4 KiB and 16 KiB granules, whatever TCR_EL1 says. */
#include "rift_internal.h"

enum { LAST_LEVEL = 3 };

/* TCR_EL1 */
#define TCR_TG0(tcr) ((tcr) >> 14 & 3) /* 0: 4 KiB, 2: 16 KiB */
#define TCR_TG1(tcr) ((tcr) >> 30 & 3) /* 2: 4 KiB, 1: 16 KiB */
#define TCR_T0SZ(tcr) ((unsigned)(tcr) & 0x3f)
#define TCR_T1SZ(tcr) ((unsigned)((tcr) >> 16) & 0x3f)
#define TCR_HD (1ull << 40)

/* Limits of a table descriptor on everything below it. */
#define TABLE_NO_USER (1ull << 61)
#define TABLE_READ_ONLY (1ull << 62)
#define TABLE_NO_USER_EXECUTE (1ull << 60)
#define TABLE_NO_SUPERVISOR_EXECUTE (1ull << 59)

/* The half of the address space that an address lies in. */
struct half {
    unsigned page_bits; /* 0: neither half */
    unsigned address_bits;
    uint64_t root;
};

RIFT_RUNTIME(walk) static struct half half_of(uintptr_t address) {
    const uint64_t tcr = rift_read_tcr_el1();
    const bool upper = address >> 55 & 1;
    struct half half = {.address_bits = 64 - (upper ? TCR_T1SZ(tcr) : TCR_T0SZ(tcr)),
                        .root = (upper ? rift_read_ttbr1_el1() : rift_read_ttbr0_el1()) & RIFT_PTE_ADDRESS};
    const uint64_t above = address >> half.address_bits;
    if (above != (upper ? ~0ull >> half.address_bits : 0))
        return half;
    if (upper)
        half.page_bits = TCR_TG1(tcr) == 2 ? 12 : TCR_TG1(tcr) == 1 ? 14 : 0;
    else
        half.page_bits = TCR_TG0(tcr) == 0 ? 12 : TCR_TG0(tcr) == 2 ? 14 : 0;
    return half;
}

/* Virtual-address bits that one entry of a table of `level` translates. */
RIFT_RUNTIME(walk) static unsigned level_shift(const struct half *half, unsigned level) {
    return half->page_bits + (half->page_bits - 3) * (LAST_LEVEL - level);
}

/* The level of the root: as many as the address bits need. */
RIFT_RUNTIME(walk) static unsigned first_level(const struct half *half) {
    return LAST_LEVEL - (half->address_bits - half->page_bits - 1) / (half->page_bits - 3);
}

RIFT_RUNTIME(walk) static size_t entry_index(const struct half *half, unsigned level, uintptr_t address) {
    const uint64_t inside = address & (~0ull >> (64 - half->address_bits));
    return (size_t)(inside >> level_shift(half, level)) & ((1ull << (half->page_bits - 3)) - 1);
}

/* Where the table at a guest-physical address can be reached, or NULL. */
RIFT_RUNTIME(walk) static uint64_t *table_at(uint64_t physical) {
    if (physical - rift_info.tables_gpa < rift_info.tables_size)
        return (uint64_t *)(uintptr_t)(rift_info.tables_gva + (physical - rift_info.tables_gpa));
    if (rift_info.spare_gva && physical - rift_info.spare_gpa < rift_info.spare_size)
        return (uint64_t *)(uintptr_t)(rift_info.spare_gva + (physical - rift_info.spare_gpa));
    return NULL;
}

RIFT_RUNTIME(walk) static int permissions_of(uint64_t value, uint64_t limits) {
    int permissions = RIFT_READ;
    const bool user = (value & RIFT_PTE_USER) && !(limits & TABLE_NO_USER);
    if ((!(value & RIFT_PTE_READ_ONLY) || value & RIFT_PTE_WRITABLE_CLEAN) && !(limits & TABLE_READ_ONLY))
        permissions |= RIFT_WRITE;
    if (user)
        permissions |= RIFT_USER;
    if (!(value & (user ? RIFT_PTE_NO_USER_EXECUTE : RIFT_PTE_NO_SUPERVISOR_EXECUTE)) &&
        !(limits & (user ? TABLE_NO_USER_EXECUTE : TABLE_NO_SUPERVISOR_EXECUTE)))
        permissions |= RIFT_EXECUTE;
    return permissions;
}

RIFT_RUNTIME(walk) int rift_walk(uintptr_t address, struct rift_walk *walk) {
    const struct half half = half_of(address);
    *walk = (struct rift_walk){.permissions = RIFT_READ | RIFT_WRITE | RIFT_EXECUTE | RIFT_USER};
    if (!half.page_bits)
        return RIFT_WALK_NOT_CANONICAL;
    uint64_t table = half.root, limits = 0;
    for (unsigned level = first_level(&half);; ++level) {
        uint64_t *entries = table_at(table);
        if (!entries)
            return RIFT_WALK_OUT_OF_REACH;
        const uint64_t offset_mask = (1ull << level_shift(&half, level)) - 1;
        walk->entry = &entries[entry_index(&half, level, address)];
        walk->level = LAST_LEVEL + 1 - level;
        walk->value = rift_atomic_load(walk->entry);
        if (!(walk->value & RIFT_PTE_VALID))
            return RIFT_WALK_NOT_PRESENT;
        if (level == LAST_LEVEL || !(walk->value & RIFT_PTE_TABLE)) {
            walk->permissions = permissions_of(walk->value, limits);
            walk->page_size = offset_mask + 1;
            walk->physical = (walk->value & RIFT_PTE_ADDRESS & ~offset_mask) | (address & offset_mask);
            return RIFT_WALK_MAPPED;
        }
        limits |= walk->value;
        table = walk->value & RIFT_PTE_ADDRESS;
    }
}

/* Attributes of a page with these permissions: write-back memory, the first of MAIR_EL1 as the host sets it. The
 * access flag is set, since whoever maps a page is about to use it. */
RIFT_RUNTIME(map_page) static uint64_t attributes(uintptr_t address, int permissions) {
    uint64_t value = RIFT_PTE_VALID | RIFT_PTE_TABLE | RIFT_PTE_INNER_SHAREABLE | RIFT_PTE_ACCESSED;
    if (!(permissions & RIFT_WRITE))
        value |= RIFT_PTE_READ_ONLY;
    else if (rift_read_tcr_el1() & TCR_HD)
        value |= RIFT_PTE_READ_ONLY | RIFT_PTE_WRITABLE_CLEAN;
    if (permissions & RIFT_USER)
        value |= RIFT_PTE_USER;
    if (!(permissions & RIFT_EXECUTE))
        value |= RIFT_PTE_NO_SUPERVISOR_EXECUTE | RIFT_PTE_NO_USER_EXECUTE;
    else if (!(permissions & RIFT_USER))
        value |= RIFT_PTE_NO_USER_EXECUTE;
    if (!(address >> 55 & 1))
        value |= RIFT_PTE_NOT_GLOBAL;
    return value;
}

/* The table walks of this CPU, and of the others, see the entry before anything that follows. */
RIFT_RUNTIME(map_page) static void store_entry(uint64_t *entry, uint64_t value) {
    rift_atomic_store(entry, value);
    __asm__ volatile("dsb ishst\n\tisb" ::: "memory");
}

RIFT_RUNTIME(map_page) int rift_map_page(uintptr_t address, uint64_t physical, int permissions) {
    const struct half half = half_of(address);
    if (!half.page_bits)
        return -1;
    uint64_t *entry = NULL;
    uint64_t table = half.root;
    for (unsigned level = first_level(&half);; ++level) {
        uint64_t *entries = table_at(table);
        if (!entries)
            return -1;
        entry = &entries[entry_index(&half, level, address)];
        if (level == LAST_LEVEL)
            break;
        uint64_t value = *entry;
        if (!(value & RIFT_PTE_VALID)) {
            const uint64_t page = rift_info.spare_gva ? rift_spare_page() : 0;
            if (!page)
                return -1;
            value = page | RIFT_PTE_VALID | RIFT_PTE_TABLE;
            store_entry(entry, value);
        } else if (!(value & RIFT_PTE_TABLE)) {
            return -1;
        }
        table = value & RIFT_PTE_ADDRESS;
    }
    const uint64_t before = *entry;
    if (before & RIFT_PTE_VALID) {
        if (before & RIFT_PTE_CONTIGUOUS)
            return -1;
        rift_atomic_store(entry, 0); /* break before make */
        rift_flush_tlb(address);
    }
    const uint64_t page_mask = (1ull << half.page_bits) - 1;
    store_entry(entry, (physical & RIFT_PTE_ADDRESS & ~page_mask) | attributes(address, permissions));
    return 0;
}

RIFT_RUNTIME(unmap_page) int rift_unmap_page(uintptr_t address) {
    struct rift_walk walk;
    if (rift_walk(address, &walk) != RIFT_WALK_MAPPED || walk.level != 1 || walk.value & RIFT_PTE_CONTIGUOUS)
        return -1;
    rift_atomic_store(walk.entry, 0);
    rift_flush_tlb(address);
    return 0;
}

/* These reach all CPUs of the machine, which is more than rift_guest.h asks for. */
RIFT_RUNTIME(flush_tlb) void rift_flush_tlb(uintptr_t address) {
    const uint64_t page = address >> 12 & ((1ull << 44) - 1);
    __asm__ volatile("dsb ishst\n\ttlbi vaae1is, %0\n\tdsb ish\n\tisb" ::"r"(page) : "memory");
}

RIFT_RUNTIME(flush_tlb_all) void rift_flush_tlb_all(void) {
    __asm__ volatile("dsb ishst\n\ttlbi vmalle1is\n\tdsb ish\n\tisb" ::: "memory");
}
