/* What the pieces of the page-table code share. Levels as in the manual: 0 is the top, 3 has the pages. Linear
 * addresses are kept as 49 bits: bit 48 tells the upper half, which follows the lower one. */
#ifndef RIFT_AARCH64_PAGE_TABLE_INTERNAL_H
#define RIFT_AARCH64_PAGE_TABLE_INTERNAL_H

#include "page_table.h"

#include <errno.h>

#define LAST_LEVEL 3
#define ADDRESS_BITS 48
#define LINEAR_MASK (((uint64_t)1 << (ADDRESS_BITS + 1)) - 1)

/* Descriptor bits: Arm ARM, "Translation table descriptor formats". */
#define ENTRY_VALID ((uint64_t)1 << 0)
#define ENTRY_TABLE ((uint64_t)1 << 1) /* a table; at level 3, a page */
#define ENTRY_USER ((uint64_t)1 << 6)  /* AP[1] */
#define ENTRY_READ_ONLY ((uint64_t)1 << 7) /* AP[2] */
#define ENTRY_ACCESSED ((uint64_t)1 << 10)
#define ENTRY_WRITABLE_CLEAN ((uint64_t)1 << 51) /* DBM: with AP[2], the CPU may clear AP[2] */
#define ENTRY_CONTIGUOUS ((uint64_t)1 << 52)
#define ENTRY_PXN ((uint64_t)1 << 53)
#define ENTRY_UXN ((uint64_t)1 << 54)
#define ENTRY_WAS_DIRTY ((uint64_t)1 << 55) /* ignored by the CPU: dirty when it was made read-only */
#define ENTRY_ADDRESS ((uint64_t)0x0000FFFFFFFFF000)
#define ENTRY_PERMISSIONS (ENTRY_USER | ENTRY_READ_ONLY | ENTRY_WRITABLE_CLEAN | ENTRY_PXN | ENTRY_UXN)

/* Of a table descriptor: limits on everything below. */
#define TABLE_PXN ((uint64_t)1 << 59)
#define TABLE_UXN ((uint64_t)1 << 60)
#define TABLE_NO_USER ((uint64_t)1 << 61)
#define TABLE_READ_ONLY ((uint64_t)1 << 62)
#define TABLE_LIMITS (TABLE_PXN | TABLE_UXN | TABLE_NO_USER | TABLE_READ_ONLY)

struct rift_aarch64_tables {
    struct rift_table_memory memory;
    struct rift_aarch64_geometry geometry;
    uint64_t root;
};

static inline int level_shift(const struct rift_aarch64_tables *tables, int level) {
    int page_bits = (int)tables->geometry.page_bits;
    return page_bits + (page_bits - 3) * (LAST_LEVEL - level);
}

static inline uint64_t level_span(const struct rift_aarch64_tables *tables, int level) {
    return (uint64_t)1 << level_shift(tables, level);
}

static inline uint64_t page_size(const struct rift_aarch64_tables *tables) {
    return (uint64_t)1 << tables->geometry.page_bits;
}

/* Entries of a table: a page of them, but at the top only as many as 48 bits need. */
static inline size_t level_entries(const struct rift_aarch64_tables *tables, int level) {
    if (level == 0)
        return (size_t)1 << (ADDRESS_BITS - level_shift(tables, 0));
    return (size_t)1 << (tables->geometry.page_bits - 3);
}

static inline size_t level_index(const struct rift_aarch64_tables *tables, uint64_t linear, int level) {
    return (size_t)(linear >> level_shift(tables, level)) & (level_entries(tables, level) - 1);
}

/* Entries that one contiguous hint joins (Arm ARM, "The Contiguous bit"); 0 where there are none. */
static inline size_t contiguous_entries(const struct rift_aarch64_tables *tables, int level) {
    if (tables->geometry.page_bits == 12)
        return level >= 1 ? 16 : 0;
    return level == 3 ? 128 : level == 2 ? 32 : 0;
}

/* The level has blocks (or pages) that this CPU takes. */
static inline int level_has_leaves(const struct rift_aarch64_tables *tables, int level) {
    if (level == LAST_LEVEL)
        return 1;
    return level >= (tables->geometry.page_bits == 12 ? 1 : 2) &&
           level_span(tables, level) <= tables->geometry.largest_page;
}

static inline uint64_t canonical(uint64_t linear) {
    linear &= LINEAR_MASK;
    return linear >> ADDRESS_BITS ? linear | ~LINEAR_MASK : linear;
}

static inline uint64_t entry_load(const uint64_t *entry) {
    return __atomic_load_n(entry, __ATOMIC_RELAXED);
}

/* Makes a table visible: everything in it has been written before. */
static inline void entry_store(uint64_t *entry, uint64_t value) {
    __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static inline int entry_is_leaf(uint64_t entry, int level) {
    return level == LAST_LEVEL || (entry & ENTRY_TABLE) == 0;
}

/* A valid leaf where the level has none, or the encoding that level 3 reserves. */
static inline int leaf_is_wrong(const struct rift_aarch64_tables *tables, uint64_t entry, int level) {
    if (level == LAST_LEVEL)
        return (entry & ENTRY_TABLE) == 0;
    return !level_has_leaves(tables, level);
}

static inline uint64_t leaf_address(const struct rift_aarch64_tables *tables, uint64_t entry, int level) {
    return entry & ENTRY_ADDRESS & ~(level_span(tables, level) - 1);
}

static inline uint64_t table_address(const struct rift_aarch64_tables *tables, uint64_t entry) {
    return entry & ENTRY_ADDRESS & ~(page_size(tables) - 1);
}

static inline int entry_is_writable(uint64_t entry) {
    return (entry & (ENTRY_READ_ONLY | ENTRY_WRITABLE_CLEAN)) != ENTRY_READ_ONLY;
}

/* Where the CPU keeps no dirty state, a writable page may have been written. */
static inline int entry_is_dirty(uint64_t entry) {
    return (entry & ENTRY_WAS_DIRTY) != 0 || (entry & ENTRY_READ_ONLY) == 0;
}

static inline uint64_t root_of(const struct rift_aarch64_tables *tables, uint64_t linear) {
    return tables->root + (linear >> ADDRESS_BITS & 1) * page_size(tables);
}

/* The CPU may mark any page of a contiguous run for all of them. An entry with the marks of its run ... */
uint64_t rift_aarch64_with_run(const struct rift_aarch64_tables *tables, const uint64_t *table, size_t index, int level,
                               uint64_t entry);

/* ... and every entry of the run made to bear them itself. */
void rift_aarch64_spread_run(const struct rift_aarch64_tables *tables, uint64_t *table, size_t index, int level);

static inline int refuse(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

#endif
