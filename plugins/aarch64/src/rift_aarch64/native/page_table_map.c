/* Mapping: one recursion over a sorted set of mappings, run twice. The first pass finds overlaps and counts
 * tables without writing; the second one fills. New tables are filled before they are linked. */
#include "page_table_internal.h"

#include <string.h>

struct build {
    struct rift_aarch64_tables *tables;
    const struct rift_aarch64_mapping *mappings;
    int commit;
    uint64_t needed, visits;
    uint64_t where;
};

static uint64_t first_of(const struct rift_aarch64_mapping *mapping) {
    return mapping->linear & LINEAR_MASK;
}

static uint64_t last_of(const struct rift_aarch64_mapping *mapping) {
    return (mapping->linear & LINEAR_MASK) + mapping->size - 1;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static int fails(struct build *build, uint64_t linear, int code) {
    build->where = canonical(linear);
    return code;
}

/* [linear, linear + span) lies inside the mapping, and its physical address is a multiple of span. */
static int fits(const struct rift_aarch64_mapping *mapping, uint64_t linear, uint64_t span) {
    if (span > mapping->largest_page || linear < first_of(mapping) || linear + (span - 1) > last_of(mapping))
        return 0;
    return ((mapping->physical + (linear - first_of(mapping))) & (span - 1)) == 0;
}

/* A whole slot of `level`, starting at `linear`, can be one leaf of this mapping. */
static int fits_leaf(const struct build *build, const struct rift_aarch64_mapping *mapping, int level,
                     uint64_t linear) {
    return level_has_leaves(build->tables, level) && fits(mapping, linear, level_span(build->tables, level));
}

static uint64_t leaf_entry(const struct build *build, const struct rift_aarch64_mapping *mapping, int level,
                           uint64_t linear) {
    const struct rift_aarch64_tables *tables = build->tables;
    uint64_t flags = level == LAST_LEVEL ? mapping->flags : mapping->flags & ~ENTRY_TABLE;
    const uint64_t run = contiguous_entries(tables, level) * level_span(tables, level);
    if (tables->geometry.contiguous && run && fits(mapping, linear & ~(run - 1), run))
        flags |= ENTRY_CONTIGUOUS;
    return (mapping->physical + (linear - first_of(mapping))) | flags;
}

/* Whole new tables. Loops of constant length, because compilers make vector stores of them: filling
 * large ranges with small pages is bound by this. */
static void fill_whole_4k(uint64_t *table, uint64_t entry) {
    for (size_t index = 0; index < 512; ++index)
        table[index] = entry + index * 0x1000;
}

static void fill_whole_16k(uint64_t *table, uint64_t entry) {
    for (size_t index = 0; index < 2048; ++index)
        table[index] = entry + index * 0x4000;
}

/* Level 3. `table` is NULL for one that does not exist yet; a fresh one is not visible to the guest. */
static int fill_pages(struct build *build, uint64_t *table, int fresh, uint64_t base, size_t first, size_t last) {
    const struct rift_aarch64_tables *tables = build->tables;
    const uint64_t page = page_size(tables), end_of_table = base + (level_span(tables, 2) - 1);
    for (size_t at = first; table && at <= last; ++at) {
        const struct rift_aarch64_mapping *mapping = &build->mappings[at];
        uint64_t linear = larger(first_of(mapping), base);
        uint64_t end = smaller(last_of(mapping), end_of_table);
        size_t low = level_index(tables, linear, LAST_LEVEL), high = level_index(tables, end, LAST_LEVEL);
        if (!build->commit) {
            for (size_t index = low; index <= high; ++index)
                if (entry_load(&table[index]) & ENTRY_VALID)
                    return fails(build, base + index * page, EEXIST);
        } else if (fresh && high - low == level_entries(tables, LAST_LEVEL) - 1) {
            /* With the contiguous hint in all runs or in none: they lie alike. */
            uint64_t entry = leaf_entry(build, mapping, LAST_LEVEL, linear);
            if (tables->geometry.page_bits == 12)
                fill_whole_4k(table, entry);
            else
                fill_whole_16k(table, entry);
        } else {
            for (size_t index = low; index <= high; ++index, linear += page)
                entry_store(&table[index], leaf_entry(build, mapping, LAST_LEVEL, linear));
        }
    }
    return 0;
}

static int fill_table(struct build *build, uint64_t *table, int fresh, int level, uint64_t base, size_t first,
                      size_t last);

/* The table below entry `slot`, made if there is none. Table descriptors limit nothing: the leaves alone decide. */
static int fill_child(struct build *build, uint64_t *slot, int level, uint64_t base, size_t first, size_t last) {
    struct rift_aarch64_tables *tables = build->tables;
    uint64_t entry = slot ? entry_load(slot) : 0;
    int code = 0;
    if (entry & ENTRY_VALID) {
        if (entry_is_leaf(entry, level))
            return fails(build, larger(first_of(&build->mappings[first]), base),
                         leaf_is_wrong(tables, entry, level) ? EFAULT : EEXIST);
        if (++build->visits > tables->memory.visit_limit)
            return fails(build, base, ELOOP);
        uint64_t *child = rift_table_at(&tables->memory, table_address(tables, entry), 1, &code);
        if (!child)
            return fails(build, base, code);
        code = fill_table(build, child, 0, level + 1, base, first, last);
        if (code == 0 && build->commit && (entry & TABLE_LIMITS))
            __atomic_fetch_and(slot, ~TABLE_LIMITS, __ATOMIC_RELEASE);
        return code;
    }
    if (!build->commit) {
        build->needed += 1;
        if (build->needed > tables->memory.free_pages)
            return ENOMEM;
        return fill_table(build, NULL, 1, level + 1, base, first, last);
    }
    uint64_t address, *child;
    code = rift_table_take(&tables->memory, &address, &child);
    if (code)
        return fails(build, base, code);
    const struct rift_aarch64_mapping *mapping = &build->mappings[first];
    int whole = level == LAST_LEVEL - 1 && first_of(mapping) <= base &&
                last_of(mapping) >= base + (level_span(tables, level) - 1);
    if (!whole) /* otherwise every entry is about to be written */
        memset(child, 0, page_size(tables));
    code = fill_table(build, child, 1, level + 1, base, first, last);
    entry_store(slot, address | ENTRY_VALID | ENTRY_TABLE);
    return code;
}

/* Mappings first..last, each of which lies at least partly in this table's range, which starts at `base`. */
static int fill_table(struct build *build, uint64_t *table, int fresh, int level, uint64_t base, size_t first,
                      size_t last) {
    if (level == LAST_LEVEL)
        return fill_pages(build, table, fresh, base, first, last);
    const struct rift_aarch64_tables *tables = build->tables;
    const uint64_t span = level_span(tables, level);
    const uint64_t table_last = base + (span * level_entries(tables, level) - 1);
    uint64_t slot = larger(first_of(&build->mappings[first]), base) & ~(span - 1);
    while (first <= last && slot <= table_last) {
        const struct rift_aarch64_mapping *mapping = &build->mappings[first];
        uint64_t slot_last = slot + (span - 1);
        uint64_t *entry = table ? &table[level_index(tables, slot, level)] : NULL;
        int code;
        if (fits_leaf(build, mapping, level, slot) && !(entry && (entry_load(entry) & ENTRY_VALID))) {
            code = 0;
            if (build->commit)
                entry_store(entry, leaf_entry(build, mapping, level, slot));
        } else {
            size_t end = first;
            while (end < last && first_of(&build->mappings[end + 1]) <= slot_last)
                ++end;
            code = fill_child(build, entry, level, slot, first, end);
        }
        if (code)
            return code;
        while (first <= last && last_of(&build->mappings[first]) <= slot_last)
            ++first;
        if (first <= last)
            slot = larger(slot + span, first_of(&build->mappings[first]) & ~(span - 1));
    }
    return 0;
}

/* Each half has a top-level table of its own. */
static int fill_halves(struct build *build, size_t count) {
    struct rift_aarch64_tables *tables = build->tables;
    size_t first = 0;
    while (first < count) {
        const uint64_t half = first_of(&build->mappings[first]) >> ADDRESS_BITS;
        size_t end = first + 1;
        while (end < count && first_of(&build->mappings[end]) >> ADDRESS_BITS == half)
            ++end;
        const uint64_t base = half << ADDRESS_BITS;
        int code = 0;
        uint64_t *root = rift_table_at(&tables->memory, root_of(tables, base), 1, &code);
        if (!root)
            return fails(build, base, code);
        code = fill_table(build, root, 0, 0, base, first, end - 1);
        if (code)
            return code;
        first = end;
    }
    return 0;
}

int rift_aarch64_tables_map(struct rift_aarch64_tables *tables, const struct rift_aarch64_mapping *mappings,
                            size_t count, uint64_t *where, struct rift_error *error) {
    *where = 0;
    rift_table_begin(&tables->memory);
    for (int commit = 0; commit <= 1; ++commit) {
        struct build build = {.tables = tables, .mappings = mappings, .commit = commit};
        int code = fill_halves(&build, count);
        if (code) {
            *where = code == ENOMEM && !commit ? build.needed - tables->memory.free_pages : build.where;
            return refuse(error, code, "page tables: map");
        }
    }
    return 0;
}
