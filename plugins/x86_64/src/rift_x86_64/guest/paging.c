/* Page tables as the guest itself sees and edits them (SDM 3A, 4.5). Supervisor mode only. */
#include "rift_internal.h"

enum { INDEX_BITS = 9, ENTRIES = 1 << INDEX_BITS, PAGE_BITS = 12, PAGE = 1 << PAGE_BITS };

#define CR4_LA57 (1ull << 12)

RIFT_RUNTIME(walk) static unsigned level_count(void) {
    return rift_read_cr4() & CR4_LA57 ? 5 : 4;
}

/* Virtual-address bits that one entry of a table of `level` translates. */
RIFT_RUNTIME(walk) static unsigned level_shift(unsigned level) {
    return PAGE_BITS + INDEX_BITS * (level - 1);
}

RIFT_RUNTIME(walk) static bool is_canonical(uintptr_t address, unsigned levels) {
    const unsigned unused = 64 - level_shift(levels + 1);
    return (uintptr_t)((int64_t)(address << unused) >> unused) == address;
}

/* Where the table at a guest-physical address can be reached, or NULL. */
RIFT_RUNTIME(walk) static uint64_t *table_at(uint64_t physical) {
    if (physical - rift_info.tables_gpa < rift_info.tables_size)
        return (uint64_t *)(uintptr_t)(rift_info.tables_gva + (physical - rift_info.tables_gpa));
    if (rift_info.spare_gva && physical - rift_info.spare_gpa < rift_info.spare_size)
        return (uint64_t *)(uintptr_t)(rift_info.spare_gva + (physical - rift_info.spare_gpa));
    return NULL;
}

RIFT_RUNTIME(walk) int rift_walk(uintptr_t address, struct rift_walk *walk) {
    const unsigned levels = level_count();
    *walk = (struct rift_walk){.permissions = RIFT_READ | RIFT_WRITE | RIFT_EXECUTE | RIFT_USER};
    if (!is_canonical(address, levels))
        return RIFT_WALK_NOT_CANONICAL;
    uint64_t table = rift_page_table_root();
    for (unsigned level = levels; level; --level) {
        uint64_t *entries = table_at(table);
        if (!entries)
            return RIFT_WALK_OUT_OF_REACH;
        const unsigned shift = level_shift(level);
        walk->entry = &entries[(address >> shift) & (ENTRIES - 1)];
        walk->level = level;
        walk->value = rift_atomic_load(walk->entry);
        if (!(walk->value & RIFT_PTE_PRESENT))
            return RIFT_WALK_NOT_PRESENT;
        if (!(walk->value & RIFT_PTE_WRITE))
            walk->permissions &= ~RIFT_WRITE;
        if (!(walk->value & RIFT_PTE_USER))
            walk->permissions &= ~RIFT_USER;
        if (walk->value & RIFT_PTE_NO_EXECUTE)
            walk->permissions &= ~RIFT_EXECUTE;
        table = walk->value & RIFT_PTE_ADDRESS;
        if (level == 1 || (level <= 3 && walk->value & RIFT_PTE_LARGE)) {
            const uint64_t offset_mask = (1ull << shift) - 1;
            walk->page_size = offset_mask + 1;
            walk->physical = (table & ~offset_mask) | (address & offset_mask);
            return RIFT_WALK_MAPPED;
        }
    }
    return RIFT_WALK_OUT_OF_REACH; /* not reached: level 1 always returns */
}

RIFT_RUNTIME(map_page) int rift_map_page(uintptr_t address, uint64_t physical, int permissions) {
    const unsigned levels = level_count();
    if (!is_canonical(address, levels))
        return -1;
    uint64_t *entry = NULL;
    uint64_t table = rift_page_table_root();
    for (unsigned level = levels; level; --level) {
        uint64_t *entries = table_at(table);
        if (!entries)
            return -1;
        entry = &entries[(address >> level_shift(level)) & (ENTRIES - 1)];
        if (level == 1)
            break;
        uint64_t value = *entry;
        if (!(value & RIFT_PTE_PRESENT)) {
            const uint64_t page = rift_info.spare_gva ? rift_spare_page() : 0;
            if (!page)
                return -1;
            /* A table of our own forbids nothing: the entry of the page decides. */
            value = page | RIFT_PTE_PRESENT | RIFT_PTE_WRITE | RIFT_PTE_USER;
            rift_atomic_store(entry, value);
        } else if (value & RIFT_PTE_LARGE) {
            return -1;
        }
        table = value & RIFT_PTE_ADDRESS;
    }
    uint64_t value = (physical & RIFT_PTE_ADDRESS) | RIFT_PTE_PRESENT;
    if (permissions & RIFT_WRITE)
        value |= RIFT_PTE_WRITE;
    if (permissions & RIFT_USER)
        value |= RIFT_PTE_USER;
    if (!(permissions & RIFT_EXECUTE))
        value |= RIFT_PTE_NO_EXECUTE;
    rift_atomic_store(entry, value);
    rift_flush_tlb(address);
    return 0;
}

RIFT_RUNTIME(unmap_page) int rift_unmap_page(uintptr_t address) {
    struct rift_walk walk;
    if (rift_walk(address, &walk) != RIFT_WALK_MAPPED || walk.level != 1)
        return -1;
    rift_atomic_store(walk.entry, 0);
    rift_flush_tlb(address);
    return 0;
}

RIFT_RUNTIME(flush_tlb) void rift_flush_tlb(uintptr_t address) {
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}

/* Writing CR3 flushes all but global pages (SDM 3A, 4.10.4.1), and the host's tables have none of those. */
RIFT_RUNTIME(flush_tlb_all) void rift_flush_tlb_all(void) {
    __asm__ volatile("mov %0, %%cr3" ::"r"(rift_read_cr3()) : "memory");
}
