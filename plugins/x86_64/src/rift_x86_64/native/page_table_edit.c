/* Unmapping and changing permissions: one recursion, run twice like that of map. Large pages are split where
 * the range ends inside one; tables that have become empty go back to the pool. */
#include "page_table_internal.h"

struct edit {
    struct rift_x86_64_tables *tables;
    uint64_t first, last; /* without the upper 16 bits */
    uint64_t set, clear;  /* of leaf entries; not used by unmap */
    int unmap, commit;
    uint64_t needed, visits;
    uint64_t where;
};

static int fails(struct edit *edit, uint64_t linear, int code) {
    edit->where = canonical(linear < edit->first ? edit->first : linear);
    return code;
}

static int covers(const struct edit *edit, uint64_t linear, uint64_t span) {
    return edit->first <= linear && linear + (span - 1) <= edit->last;
}

/* The CPUs may set accessed and dirty bits meanwhile: only the bits in question are touched. What is
 * taken away goes first. */
static void change_leaf(const struct edit *edit, uint64_t *entry) {
    if (edit->unmap) {
        entry_store(entry, 0);
        return;
    }
    __atomic_fetch_and(entry, ~(edit->clear & ENTRY_PERMISSIONS & ~ENTRY_NO_EXECUTE), __ATOMIC_RELEASE);
    __atomic_fetch_or(entry, edit->set, __ATOMIC_RELEASE);
    if (edit->clear & ENTRY_NO_EXECUTE)
        __atomic_fetch_and(entry, ~ENTRY_NO_EXECUTE, __ATOMIC_RELEASE);
}

/* Tables that are needed to cut the range's ends out of a large page of `level` at `linear`. */
static uint64_t split_tables(const struct edit *edit, int level, uint64_t linear) {
    uint64_t needed = 1;
    if (level < 2)
        return needed;
    uint64_t span = level_span(level), below = level_span(level - 1);
    uint64_t first = edit->first > linear ? edit->first : linear;
    uint64_t last = edit->last < linear + (span - 1) ? edit->last : linear + (span - 1);
    int head = (first & (below - 1)) != 0;
    int tail = ((last + 1) & (below - 1)) != 0;
    if (head && tail && first / below == last / below)
        return needed + 1;
    return needed + (uint64_t)head + (uint64_t)tail;
}

/* Replaces a large page by a table of the next smaller ones that says the same. */
static int split(struct edit *edit, uint64_t *slot, uint64_t entry, int level, uint64_t linear) {
    uint64_t address, *table;
    int code = rift_table_take(&edit->tables->memory, &address, &table);
    if (code)
        return fails(edit, linear, code);
    uint64_t flags = entry & ~ENTRY_ADDRESS;
    if (level == 1) {
        flags &= ~ENTRY_PAGE_SIZE;
        if (entry & ENTRY_PAT_LARGE)
            flags |= ENTRY_PAT_SMALL;
    } else {
        flags |= entry & ENTRY_PAT_LARGE;
    }
    uint64_t step = level_span(level - 1);
    uint64_t value = leaf_address(entry, level) | flags;
    for (size_t index = 0; index < TABLE_ENTRIES; ++index, value += step)
        table[index] = value;
    uint64_t upper = ENTRY_PRESENT | ENTRY_WRITE | ((entry | edit->set) & ENTRY_USER);
    uint64_t before = __atomic_exchange_n(slot, address | upper, __ATOMIC_ACQ_REL);
    uint64_t meanwhile = before & ~entry & (ENTRY_ACCESSED | ENTRY_DIRTY); /* set by a CPU since we looked */
    for (size_t index = 0; meanwhile && index < TABLE_ENTRIES; ++index)
        __atomic_fetch_or(&table[index], meanwhile, __ATOMIC_RELAXED);
    return 0;
}

static int is_empty(const uint64_t *table) {
    for (size_t index = 0; index < TABLE_ENTRIES; ++index)
        if (entry_load(&table[index]))
            return 0;
    return 1;
}

static int edit_table(struct edit *edit, uint64_t *table, int level, uint64_t base);

static int edit_slot(struct edit *edit, uint64_t *slot, int level, uint64_t linear) {
    uint64_t entry = entry_load(slot);
    int code = 0;
    if (!(entry & ENTRY_PRESENT))
        return fails(edit, linear, ENOENT);
    if (entry_is_leaf(entry, level)) {
        if (level == TOP_LEVEL || leaf_has_reserved_bits(entry, level))
            return fails(edit, linear, EFAULT);
        if (covers(edit, linear, level_span(level))) {
            if (edit->commit)
                change_leaf(edit, slot);
            return 0;
        }
        if (!edit->commit) {
            edit->needed += split_tables(edit, level, linear);
            return edit->needed > edit->tables->memory.free_pages ? ENOMEM : 0;
        }
        code = split(edit, slot, entry, level, linear);
        if (code)
            return code;
        entry = entry_load(slot);
    }
    if (++edit->visits > edit->tables->memory.visit_limit)
        return fails(edit, linear, ELOOP);
    uint64_t *child = rift_table_at(&edit->tables->memory, entry & ENTRY_ADDRESS, 1, &code);
    if (!child)
        return fails(edit, linear, code);
    code = edit_table(edit, child, level - 1, linear);
    if (code || !edit->commit)
        return code;
    if (!edit->unmap) {
        uint64_t upper = edit->set & (ENTRY_WRITE | ENTRY_USER);
        if (~entry & upper)
            __atomic_fetch_or(slot, upper, __ATOMIC_RELEASE);
        if (entry & edit->clear & ENTRY_NO_EXECUTE)
            __atomic_fetch_and(slot, ~ENTRY_NO_EXECUTE, __ATOMIC_RELEASE);
    } else if (is_empty(child)) {
        entry_store(slot, 0);
        if ((entry & ENTRY_ADDRESS) != edit->tables->root)
            rift_table_retire(&edit->tables->memory, entry & ENTRY_ADDRESS);
    }
    return 0;
}

static int edit_table(struct edit *edit, uint64_t *table, int level, uint64_t base) {
    uint64_t span = level_span(level);
    uint64_t first = edit->first > base ? edit->first : base;
    uint64_t last = base + (span * TABLE_ENTRIES - 1);
    if (last > edit->last)
        last = edit->last;
    for (size_t index = level_index(first, level); index <= level_index(last, level); ++index) {
        int code = edit_slot(edit, &table[index], level, base + index * span);
        if (code)
            return code;
    }
    return 0;
}

static int run(struct edit *edit, uint64_t linear, uint64_t size, uint64_t *where, struct rift_error *error,
               const char *operation) {
    int code = 0;
    *where = 0;
    if (size == 0)
        return 0;
    rift_table_begin(&edit->tables->memory);
    edit->first = linear & LINEAR_MASK;
    edit->last = edit->first + (size - 1);
    uint64_t *root = rift_table_at(&edit->tables->memory, edit->tables->root, 1, &code);
    if (!root)
        return refuse(error, code, operation);
    for (edit->commit = 0; edit->commit <= 1; ++edit->commit) {
        edit->visits = 0;
        code = edit_table(edit, root, TOP_LEVEL, 0);
        if (code) {
            *where = code == ENOMEM && !edit->commit ? edit->needed - edit->tables->memory.free_pages : edit->where;
            return refuse(error, code, operation);
        }
    }
    return 0;
}

int rift_x86_64_tables_unmap(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, uint64_t *where,
                             struct rift_error *error) {
    struct edit edit = {.tables = tables, .unmap = 1};
    return run(&edit, linear, size, where, error, "page tables: unmap");
}

int rift_x86_64_tables_protect(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, uint64_t flags,
                               uint64_t *where, struct rift_error *error) {
    uint64_t permissions = flags & ENTRY_PERMISSIONS;
    struct edit edit = {.tables = tables, .set = permissions, .clear = ENTRY_PERMISSIONS & ~permissions};
    return run(&edit, linear, size, where, error, "page tables: protect");
}
