/* What the pieces of the page-table code share. Levels: 3 is the PML4, 0 the page table. Linear addresses
 * are kept without their upper 16 bits, so that the upper half follows the lower one. */
#ifndef RIFT_X86_64_PAGE_TABLE_INTERNAL_H
#define RIFT_X86_64_PAGE_TABLE_INTERNAL_H

#include "page_table.h"

#include <errno.h>

#define PAGE_SIZE ((uint64_t)0x1000)
#define TABLE_ENTRIES ((size_t)512)
#define TOP_LEVEL 3
#define LINEAR_MASK (((uint64_t)1 << 48) - 1)

/* Entry bits: SDM volume 3, tables "Format of a ... Entry". */
#define ENTRY_PRESENT ((uint64_t)1 << 0)
#define ENTRY_WRITE ((uint64_t)1 << 1)
#define ENTRY_USER ((uint64_t)1 << 2)
#define ENTRY_PWT ((uint64_t)1 << 3)
#define ENTRY_PCD ((uint64_t)1 << 4)
#define ENTRY_ACCESSED ((uint64_t)1 << 5)
#define ENTRY_DIRTY ((uint64_t)1 << 6)
#define ENTRY_PAGE_SIZE ((uint64_t)1 << 7) /* of levels 1 and 2: the entry is a leaf */
#define ENTRY_PAT_SMALL ((uint64_t)1 << 7)
#define ENTRY_PAT_LARGE ((uint64_t)1 << 12)
#define ENTRY_NO_EXECUTE ((uint64_t)1 << 63)
#define ENTRY_ADDRESS ((uint64_t)0x000FFFFFFFFFF000)
#define ENTRY_PERMISSIONS (ENTRY_WRITE | ENTRY_USER | ENTRY_NO_EXECUTE)

struct rift_x86_64_tables {
    struct rift_table_memory memory;
    uint64_t root, largest_page;
};

static inline int level_shift(int level) {
    return 12 + 9 * level;
}

static inline uint64_t level_span(int level) {
    return (uint64_t)1 << level_shift(level);
}

static inline size_t level_index(uint64_t linear, int level) {
    return (size_t)(linear >> level_shift(level)) & (TABLE_ENTRIES - 1);
}

static inline uint64_t canonical(uint64_t linear) {
    linear &= LINEAR_MASK;
    return linear >> 47 ? linear | ~LINEAR_MASK : linear;
}

static inline uint64_t entry_load(const uint64_t *entry) {
    return __atomic_load_n(entry, __ATOMIC_RELAXED);
}

/* Makes a table visible: everything in it has been written before. */
static inline void entry_store(uint64_t *entry, uint64_t value) {
    __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static inline int entry_is_leaf(uint64_t entry, int level) {
    return level == 0 || (entry & ENTRY_PAGE_SIZE) != 0;
}

/* Address of the page behind a leaf entry; bit 12 of a large page's is its PAT bit. */
static inline uint64_t leaf_address(uint64_t entry, int level) {
    return entry & ENTRY_ADDRESS & ~(level_span(level) - 1);
}

/* Bits of a present leaf entry that must be zero: between the PAT bit and the address of a large page. */
static inline int leaf_has_reserved_bits(uint64_t entry, int level) {
    if (level == 0)
        return 0;
    return (entry & (level_span(level) - 1) & ~((uint64_t)0x1FFF)) != 0;
}

static inline int refuse(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

#endif
