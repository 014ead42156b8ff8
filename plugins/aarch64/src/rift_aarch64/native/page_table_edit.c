/* Unmapping and changing permissions: one recursion, run twice like that of map. Large pages are split where
 * the range ends inside one, contiguous hints dropped where it ends inside a run; tables that have become empty go
 * back to the pool. */
#include "page_table_internal.h"

struct edit {
    struct rift_aarch64_tables *tables;
    uint64_t first, last;  /* as 49 bits */
    uint64_t permissions;  /* of leaf entries; not used by unmap */
    int unmap, commit;
    int cuts; /* a large page or a run is cut */
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

/* The entry with other permissions, its dirty state kept: in the way that the CPU keeps it, or in a bit of ours. */
static uint64_t with_permissions(const struct edit *edit, uint64_t entry) {
    uint64_t changed = (entry & ~(ENTRY_PERMISSIONS | ENTRY_WAS_DIRTY)) | edit->permissions;
    if (entry_is_dirty(entry))
        changed = entry_is_writable(changed) ? changed & ~ENTRY_READ_ONLY : changed | ENTRY_WAS_DIRTY;
    return changed;
}

/* The CPUs may set accessed and dirty bits meanwhile. */
static void change_leaf(const struct edit *edit, uint64_t *slot) {
    uint64_t entry = entry_load(slot);
    if (edit->unmap) {
        entry_store(slot, 0);
        return;
    }
    while (!__atomic_compare_exchange_n(slot, &entry, with_permissions(edit, entry), 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
        ;
}

/* Each entry of the run speaks for itself from now on. */
static void dissolve_run(const struct edit *edit, uint64_t *table, size_t index, int level) {
    const size_t count = contiguous_entries(edit->tables, level);
    const size_t first = index & ~(count - 1);
    rift_aarch64_spread_run(edit->tables, table, index, level);
    for (size_t at = first; at < first + count; ++at)
        __atomic_fetch_and(&table[at], ~ENTRY_CONTIGUOUS, __ATOMIC_RELEASE);
}

/* The run that the entry belongs to is changed in part only. */
static int cuts_run(const struct edit *edit, uint64_t entry, int level, uint64_t linear) {
    const uint64_t run = contiguous_entries(edit->tables, level) * level_span(edit->tables, level);
    return (entry & ENTRY_CONTIGUOUS) && run && !covers(edit, linear & ~(run - 1), run);
}

/* Tables that are needed to cut the range's ends out of a large page of `level` at `linear`. */
static uint64_t split_tables(const struct edit *edit, int level, uint64_t linear) {
    uint64_t needed = 1;
    if (level == LAST_LEVEL - 1)
        return needed;
    uint64_t span = level_span(edit->tables, level), below = level_span(edit->tables, level + 1);
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
    struct rift_aarch64_tables *tables = edit->tables;
    uint64_t address, *table;
    int code = rift_table_take(&tables->memory, &address, &table);
    if (code)
        return fails(edit, linear, code);
    uint64_t flags = entry & ~(ENTRY_ADDRESS | ENTRY_CONTIGUOUS);
    if (level == LAST_LEVEL - 1)
        flags |= ENTRY_TABLE;
    const uint64_t step = level_span(tables, level + 1);
    const size_t entries = level_entries(tables, level + 1);
    uint64_t value = leaf_address(tables, entry, level) | flags;
    for (size_t index = 0; index < entries; ++index, value += step)
        table[index] = value;
    uint64_t before = __atomic_exchange_n(slot, address | ENTRY_VALID | ENTRY_TABLE, __ATOMIC_ACQ_REL);
    const uint64_t accessed = before & ~entry & ENTRY_ACCESSED; /* set by a CPU since we looked */
    const uint64_t written = entry & ~before & ENTRY_READ_ONLY;
    for (size_t index = 0; (accessed | written) && index < entries; ++index) {
        __atomic_fetch_or(&table[index], accessed, __ATOMIC_RELAXED);
        __atomic_fetch_and(&table[index], ~written, __ATOMIC_RELAXED);
    }
    return 0;
}

static int is_empty(const struct rift_aarch64_tables *tables, const uint64_t *table, int level) {
    const size_t entries = level_entries(tables, level);
    for (size_t index = 0; index < entries; ++index)
        if (entry_load(&table[index]))
            return 0;
    return 1;
}

static int edit_table(struct edit *edit, uint64_t *table, int level, uint64_t base);

static int edit_slot(struct edit *edit, uint64_t *table, size_t index, int level, uint64_t linear) {
    struct rift_aarch64_tables *tables = edit->tables;
    uint64_t *slot = &table[index];
    uint64_t entry = entry_load(slot);
    int code = 0;
    if (!(entry & ENTRY_VALID))
        return fails(edit, linear, ENOENT);
    if (entry_is_leaf(entry, level)) {
        if (leaf_is_wrong(tables, entry, level))
            return fails(edit, linear, EFAULT);
        if (cuts_run(edit, entry, level, linear)) {
            edit->cuts = 1;
            if (edit->commit)
                dissolve_run(edit, table, index, level);
        }
        if (covers(edit, linear, level_span(tables, level))) {
            if (edit->commit)
                change_leaf(edit, slot);
            return 0;
        }
        edit->cuts = 1;
        if (!edit->commit) {
            edit->needed += split_tables(edit, level, linear);
            return edit->needed > tables->memory.free_pages ? ENOMEM : 0;
        }
        code = split(edit, slot, entry_load(slot), level, linear);
        if (code)
            return code;
        entry = entry_load(slot);
    }
    if (++edit->visits > tables->memory.visit_limit)
        return fails(edit, linear, ELOOP);
    const uint64_t address = table_address(tables, entry);
    uint64_t *child = rift_table_at(&tables->memory, address, 1, &code);
    if (!child)
        return fails(edit, linear, code);
    code = edit_table(edit, child, level + 1, linear);
    if (code || !edit->commit)
        return code;
    if (!edit->unmap) {
        if (entry & TABLE_LIMITS)
            __atomic_fetch_and(slot, ~TABLE_LIMITS, __ATOMIC_RELEASE);
    } else if (is_empty(tables, child, level + 1)) {
        entry_store(slot, 0);
        if (address != tables->root && address != tables->root + page_size(tables))
            rift_table_retire(&tables->memory, address);
    }
    return 0;
}

static int edit_table(struct edit *edit, uint64_t *table, int level, uint64_t base) {
    const struct rift_aarch64_tables *tables = edit->tables;
    const uint64_t span = level_span(tables, level);
    uint64_t first = edit->first > base ? edit->first : base;
    uint64_t last = base + (span * level_entries(tables, level) - 1);
    if (last > edit->last)
        last = edit->last;
    for (size_t index = level_index(tables, first, level); index <= level_index(tables, last, level); ++index) {
        int code = edit_slot(edit, table, index, level, base + index * span);
        if (code)
            return code;
    }
    return 0;
}

/* One pass; the range lies in one half. */
static int pass(struct edit *edit, int commit) {
    const uint64_t base = edit->first >> ADDRESS_BITS << ADDRESS_BITS;
    int code = 0;
    uint64_t *root = rift_table_at(&edit->tables->memory, root_of(edit->tables, base), 1, &code);
    edit->commit = commit;
    edit->visits = 0;
    return root ? edit_table(edit, root, 0, base) : fails(edit, base, code);
}

static void set_range(struct edit *edit, uint64_t linear, uint64_t size) {
    edit->first = linear & LINEAR_MASK;
    edit->last = edit->first + (size - 1);
}

static int run(struct edit *edit, uint64_t linear, uint64_t size, uint64_t *where, struct rift_error *error,
               const char *operation) {
    *where = 0;
    if (size == 0)
        return 0;
    rift_table_begin(&edit->tables->memory);
    set_range(edit, linear, size);
    for (int commit = 0; commit <= 1; ++commit) {
        int code = pass(edit, commit);
        if (code) {
            *where = code == ENOMEM && !commit ? edit->needed - edit->tables->memory.free_pages : edit->where;
            return refuse(error, code, operation);
        }
    }
    return 0;
}

int rift_aarch64_tables_unmap(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, uint64_t *where,
                              struct rift_error *error) {
    struct edit edit = {.tables = tables, .unmap = 1};
    return run(&edit, linear, size, where, error, "page tables: unmap");
}

int rift_aarch64_tables_protect(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, uint64_t flags,
                                uint64_t *where, struct rift_error *error) {
    struct edit edit = {.tables = tables, .permissions = flags & ENTRY_PERMISSIONS};
    return run(&edit, linear, size, where, error, "page tables: protect");
}

int rift_aarch64_tables_splits(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size) {
    struct edit edit = {.tables = tables};
    if (size == 0)
        return 0;
    set_range(&edit, linear, size);
    pass(&edit, 0); /* what is wrong with the range, the edit itself will say */
    return edit.cuts;
}
