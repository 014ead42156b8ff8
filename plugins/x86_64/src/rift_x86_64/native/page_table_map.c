/* Mapping: one recursion over a sorted set of mappings, run twice. The first pass finds overlaps and counts
 * tables without writing; the second one fills. New tables are filled before they are linked. */
#include "page_table_internal.h"

#include <string.h>

struct build {
    struct rift_x86_64_tables *tables;
    const struct rift_x86_64_mapping *mappings;
    int commit;
    uint64_t needed, visits;
    uint64_t where;
};

static uint64_t first_of(const struct rift_x86_64_mapping *mapping) {
    return mapping->linear & LINEAR_MASK;
}

static uint64_t last_of(const struct rift_x86_64_mapping *mapping) {
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

/* A whole slot of `level`, starting at `linear`, can be one leaf of this mapping. */
static int fits_leaf(const struct build *build, const struct rift_x86_64_mapping *mapping, int level, uint64_t linear) {
    uint64_t span = level_span(level);
    if (level > 2 || span > mapping->largest_page || span > build->tables->largest_page)
        return 0;
    if (linear < first_of(mapping) || linear + (span - 1) > last_of(mapping))
        return 0;
    return ((mapping->physical + (linear - first_of(mapping))) & (span - 1)) == 0;
}

static uint64_t leaf_entry(const struct rift_x86_64_mapping *mapping, int level, uint64_t linear) {
    uint64_t flags = mapping->flags;
    if (level > 0) {
        if (flags & ENTRY_PAT_SMALL)
            flags |= ENTRY_PAT_LARGE;
        flags |= ENTRY_PAGE_SIZE;
    }
    return (mapping->physical + (linear - first_of(mapping))) | flags;
}

/* A whole new table. Its own loop, of constant length, because compilers make vector stores of it: filling
 * large ranges with small pages is bound by this. */
static void fill_whole(uint64_t *table, uint64_t entry) {
    for (size_t index = 0; index < TABLE_ENTRIES; ++index)
        table[index] = entry + index * PAGE_SIZE;
}

/* Level 0. `table` is NULL for one that does not exist yet; a fresh one is not visible to the guest. */
static int fill_pages(struct build *build, uint64_t *table, int fresh, uint64_t base, size_t first, size_t last) {
    for (size_t at = first; table && at <= last; ++at) {
        const struct rift_x86_64_mapping *mapping = &build->mappings[at];
        uint64_t linear = larger(first_of(mapping), base);
        uint64_t end = smaller(last_of(mapping), base + (level_span(1) - 1));
        size_t low = level_index(linear, 0), high = level_index(end, 0);
        uint64_t entry = leaf_entry(mapping, 0, linear);
        if (!build->commit) {
            for (size_t index = low; index <= high; ++index)
                if (entry_load(&table[index]) & ENTRY_PRESENT)
                    return fails(build, base + index * PAGE_SIZE, EEXIST);
        } else if (fresh && high - low == TABLE_ENTRIES - 1) {
            fill_whole(table, entry);
        } else if (fresh) {
            for (size_t index = low; index <= high; ++index, entry += PAGE_SIZE)
                table[index] = entry;
        } else {
            for (size_t index = low; index <= high; ++index, entry += PAGE_SIZE)
                entry_store(&table[index], entry);
        }
    }
    return 0;
}

static int fill_table(struct build *build, uint64_t *table, int fresh, int level, uint64_t base, size_t first,
                      size_t last);

/* The table below entry `slot`, made if there is none. Upper entries allow everything that a leaf
 * below may grant, so that the leaves alone decide; U/S only where a user page is below. */
static int fill_child(struct build *build, uint64_t *slot, int level, uint64_t base, size_t first, size_t last) {
    uint64_t entry = slot ? entry_load(slot) : 0;
    uint64_t upper = ENTRY_PRESENT | ENTRY_WRITE;
    int code = 0;
    for (size_t at = first; at <= last; ++at)
        upper |= build->mappings[at].flags & ENTRY_USER;
    if (entry & ENTRY_PRESENT) {
        if (entry & ENTRY_PAGE_SIZE)
            return fails(build, larger(first_of(&build->mappings[first]), base), level == TOP_LEVEL ? EFAULT : EEXIST);
        if (++build->visits > build->tables->memory.visit_limit)
            return fails(build, base, ELOOP);
        uint64_t *child = rift_table_at(&build->tables->memory, entry & ENTRY_ADDRESS, 1, &code);
        if (!child)
            return fails(build, base, code);
        code = fill_table(build, child, 0, level - 1, base, first, last);
        if (code == 0 && build->commit && (~entry & upper))
            __atomic_fetch_or(slot, upper, __ATOMIC_RELEASE);
        if (code == 0 && build->commit && (entry & ENTRY_NO_EXECUTE))
            __atomic_fetch_and(slot, ~ENTRY_NO_EXECUTE, __ATOMIC_RELEASE);
        return code;
    }
    if (!build->commit) {
        build->needed += 1;
        if (build->needed > build->tables->memory.free_pages)
            return ENOMEM;
        return fill_table(build, NULL, 1, level - 1, base, first, last);
    }
    uint64_t address, *child;
    code = rift_table_take(&build->tables->memory, &address, &child);
    if (code)
        return fails(build, base, code);
    const struct rift_x86_64_mapping *mapping = &build->mappings[first];
    int whole = level == 1 && first_of(mapping) <= base && last_of(mapping) >= base + (level_span(1) - 1);
    if (!whole) /* otherwise every entry is about to be written */
        memset(child, 0, PAGE_SIZE);
    code = fill_table(build, child, 1, level - 1, base, first, last);
    entry_store(slot, address | upper);
    return code;
}

/* Mappings first..last, each of which lies at least partly in this table's range, which starts at `base`. */
static int fill_table(struct build *build, uint64_t *table, int fresh, int level, uint64_t base, size_t first,
                      size_t last) {
    if (level == 0)
        return fill_pages(build, table, fresh, base, first, last);
    const uint64_t span = level_span(level);
    const uint64_t table_last = base + (span * TABLE_ENTRIES - 1);
    uint64_t slot = larger(first_of(&build->mappings[first]), base) & ~(span - 1);
    while (first <= last && slot <= table_last) {
        const struct rift_x86_64_mapping *mapping = &build->mappings[first];
        uint64_t slot_last = slot + (span - 1);
        uint64_t *entry = table ? &table[level_index(slot, level)] : NULL;
        int code;
        if (fits_leaf(build, mapping, level, slot) && !(entry && (entry_load(entry) & ENTRY_PRESENT))) {
            code = 0;
            if (build->commit)
                entry_store(entry, leaf_entry(mapping, level, slot));
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

int rift_x86_64_tables_map(struct rift_x86_64_tables *tables, const struct rift_x86_64_mapping *mappings,
                           size_t count, uint64_t *where, struct rift_error *error) {
    const char *operation = "page tables: map";
    int code = 0;
    *where = 0;
    if (count == 0)
        return 0;
    rift_table_begin(&tables->memory);
    uint64_t *root = rift_table_at(&tables->memory, tables->root, 1, &code);
    if (!root)
        return refuse(error, code, operation);
    for (int commit = 0; commit <= 1; ++commit) {
        struct build build = {.tables = tables, .mappings = mappings, .commit = commit};
        code = fill_table(&build, root, 0, TOP_LEVEL, 0, 0, count - 1);
        if (code) {
            *where = code == ENOMEM && !commit ? build.needed - tables->memory.free_pages : build.where;
            return refuse(error, code, operation);
        }
    }
    return 0;
}
