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

/* Table pages that the builder owns, one bit each. A retired page becomes free at the next edit: until
 * the caller has flushed the guest's TLBs, a CPU may still walk through it. */
struct pool {
    uint64_t address, pages;
    uint64_t hint;
    uint64_t *used, *retired;
};

struct rift_x86_64_tables {
    struct rift_x86_64_region *regions;
    size_t region_count;
    struct pool *pools;
    size_t pool_count;
    uint64_t root, largest_page;
    uint64_t free_pages, retired_pages;
    uint64_t visit_limit; /* tables that one pass may visit: no honest tree has more than memory has pages */
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

/* The table at `address`, or NULL if it is not inside guest memory (or `edit` and the memory is read-only:
 * *code tells which). */
uint64_t *rift_x86_64_table_at(const struct rift_x86_64_tables *tables, uint64_t address, int edit, int *code);

/* A table page, not zeroed; returns 0 with its address and bytes, or an errno. */
int rift_x86_64_table_take(struct rift_x86_64_tables *tables, uint64_t *address, uint64_t **table);

/* Gives a page back if the builder owns it; anything else, the guest's own tables included, is left alone. */
void rift_x86_64_table_retire(struct rift_x86_64_tables *tables, uint64_t address);

/* Frees what the edit before retired. */
void rift_x86_64_tables_begin(struct rift_x86_64_tables *tables);

#endif
