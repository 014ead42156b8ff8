/* Reading the tables: one address, or the pages of a range with their accessed and dirty bits. */
#include "page_table_internal.h"

uint64_t rift_aarch64_with_run(const struct rift_aarch64_tables *tables, const uint64_t *table, size_t index, int level,
                               uint64_t entry) {
    const size_t count = contiguous_entries(tables, level);
    if (!(entry & ENTRY_CONTIGUOUS) || !count)
        return entry;
    for (size_t at = index & ~(count - 1), end = at + count; at < end; ++at) {
        uint64_t other = entry_load(&table[at]);
        if (!(other & ENTRY_VALID))
            continue;
        entry |= other & ENTRY_ACCESSED;
        if (entry_is_dirty(other))
            entry |= ENTRY_WAS_DIRTY;
    }
    return entry;
}

void rift_aarch64_spread_run(const struct rift_aarch64_tables *tables, uint64_t *table, size_t index, int level) {
    const size_t count = contiguous_entries(tables, level);
    const size_t first = index & ~(count - 1);
    const uint64_t marks = rift_aarch64_with_run(tables, table, index, level, entry_load(&table[index]));
    for (size_t at = first; at < first + count; ++at) {
        uint64_t entry = entry_load(&table[at]), marked;
        do {
            marked = entry | (marks & ENTRY_ACCESSED);
            if (entry_is_dirty(marks))
                marked = entry_is_writable(entry) ? marked & ~ENTRY_READ_ONLY : marked | ENTRY_WAS_DIRTY;
        } while ((entry & ENTRY_VALID) && !__atomic_compare_exchange_n(&table[at], &entry, marked, 0, __ATOMIC_ACQ_REL,
                                                                       __ATOMIC_RELAXED));
    }
}

/* The descriptor is a leaf: what is wrong with it, or where it leads. `marked` has the marks of its run. */
static void finish(const struct rift_aarch64_tables *tables, struct rift_aarch64_walk *walk, uint64_t entry,
                   uint64_t marked, int level, uint64_t linear) {
    const uint64_t limit = (uint64_t)1 << tables->geometry.physical_bits;
    uint64_t address = leaf_address(tables, entry, level);
    if (leaf_is_wrong(tables, entry, level)) {
        walk->status = RIFT_AARCH64_NO_BLOCK;
        return;
    }
    if (address >= limit) {
        walk->status = RIFT_AARCH64_ADDRESS_SIZE;
        return;
    }
    walk->accessed = (marked & ENTRY_ACCESSED) != 0;
    walk->dirty = entry_is_dirty(marked) != 0;
    walk->attribute_index = (uint32_t)(entry >> 2) & 7;
    walk->writable &= (uint32_t)entry_is_writable(entry);
    walk->user &= (entry & ENTRY_USER) != 0;
    walk->executable &= (entry & (walk->user ? ENTRY_UXN : ENTRY_PXN)) == 0;
    walk->physical = address | (linear & (walk->page_size - 1));
    if (!(entry & ENTRY_ACCESSED) && !tables->geometry.hardware_access)
        walk->status = RIFT_AARCH64_ACCESS_FLAG;
}

void rift_aarch64_tables_walk(const struct rift_aarch64_tables *tables, uint64_t root, uint64_t linear,
                              struct rift_aarch64_walk *walk) {
    uint64_t table = root == UINT64_MAX ? root_of(tables, linear) : root & ~(page_size(tables) - 1), limits = 0;
    *walk = (struct rift_aarch64_walk){.writable = 1, .user = 1, .executable = 1};
    if (canonical(linear) != linear) {
        walk->status = RIFT_AARCH64_NOT_CANONICAL;
        return;
    }
    for (int level = 0;; ++level) {
        int code;
        const uint64_t *entries = rift_table_at(&tables->memory, table, 0, &code);
        if (!entries) {
            walk->status = RIFT_AARCH64_TABLE_OUTSIDE;
            return;
        }
        size_t index = level_index(tables, linear, level);
        uint64_t entry = entry_load(&entries[index]);
        walk->entry_address[walk->levels] = table + index * sizeof(entry);
        walk->entry[walk->levels] = entry;
        walk->levels += 1;
        walk->page_size = level_span(tables, level);
        if (!(entry & ENTRY_VALID)) {
            walk->status = RIFT_AARCH64_NOT_PRESENT;
            return;
        }
        if (entry_is_leaf(entry, level)) {
            walk->writable = (limits & TABLE_READ_ONLY) == 0;
            walk->user = (limits & TABLE_NO_USER) == 0;
            uint64_t marked = rift_aarch64_with_run(tables, entries, index, level, entry);
            finish(tables, walk, entry, marked, level, linear);
            walk->executable &= (limits & (walk->user ? TABLE_UXN : TABLE_PXN)) == 0;
            return;
        }
        limits |= entry & TABLE_LIMITS;
        table = table_address(tables, entry);
    }
}

struct list {
    const struct rift_aarch64_tables *tables;
    uint64_t first, last;
    int clear;
    struct rift_aarch64_page *pages;
    size_t count, capacity;
    uint64_t next; /* where to go on when full */
    int full;
    uint64_t visits, where;
    const uint64_t *run_table; /* the contiguous run that was looked at last, and its marks */
    size_t run_first;
    uint64_t run_marks;
};

/* Clears what the CPU can set again. */
static void clear_marks(const struct rift_aarch64_tables *tables, uint64_t *slot) {
    uint64_t entry = entry_load(slot), cleared;
    do {
        cleared = entry & ~ENTRY_WAS_DIRTY;
        if (tables->geometry.hardware_access)
            cleared &= ~ENTRY_ACCESSED;
        if (tables->geometry.hardware_dirty && entry_is_writable(entry))
            cleared |= ENTRY_WRITABLE_CLEAN | ENTRY_READ_ONLY;
    } while (!__atomic_compare_exchange_n(slot, &entry, cleared, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
}

/* The marks of the run that the entry belongs to: looked at once, when its first entry is listed. To be cleared they
 * are first given to all its entries, so that those outside the range keep them. Returns 0 if the rest of the run does
 * not fit into the list: the next call shall see it whole. */
static int look_at_run(struct list *list, uint64_t *table, size_t index, int level, uint64_t entry) {
    const size_t count = contiguous_entries(list->tables, level);
    const size_t first = index & ~(count - 1);
    if (list->run_table == table && list->run_first == first)
        return 1;
    if (list->capacity - list->count < first + count - index)
        return 0;
    if (list->clear)
        rift_aarch64_spread_run(list->tables, table, index, level);
    list->run_table = table;
    list->run_first = first;
    list->run_marks = rift_aarch64_with_run(list->tables, table, index, level, entry);
    return 1;
}

static void take(struct list *list, uint64_t *table, size_t index, int level, uint64_t linear) {
    const uint64_t entry = entry_load(&table[index]);
    const int in_run = (entry & ENTRY_CONTIGUOUS) && contiguous_entries(list->tables, level);
    if (list->count == list->capacity || (in_run && !look_at_run(list, table, index, level, entry))) {
        list->full = 1;
        list->next = linear > list->first ? linear : list->first;
        return;
    }
    const uint64_t marked = in_run ? list->run_marks : entry;
    if (list->clear)
        clear_marks(list->tables, &table[index]);
    list->pages[list->count] = (struct rift_aarch64_page){.linear = canonical(linear),
                                                          .size = level_span(list->tables, level),
                                                          .accessed = (marked & ENTRY_ACCESSED) != 0,
                                                          .dirty = entry_is_dirty(marked) != 0};
    list->count += 1;
}

static int list_table(struct list *list, uint64_t address, int level, uint64_t base) {
    const struct rift_aarch64_tables *tables = list->tables;
    int code = 0;
    uint64_t *table = rift_table_at(&tables->memory, address, list->clear, &code);
    list->where = canonical(base);
    if (!table)
        return code;
    if (++list->visits > tables->memory.visit_limit)
        return ELOOP;
    const uint64_t span = level_span(tables, level);
    uint64_t first = list->first > base ? list->first : base;
    uint64_t last = base + (span * level_entries(tables, level) - 1);
    if (last > list->last)
        last = list->last;
    for (size_t index = level_index(tables, first, level); index <= level_index(tables, last, level) && !list->full;
         ++index) {
        uint64_t entry = entry_load(&table[index]);
        uint64_t linear = base + index * span;
        if (!(entry & ENTRY_VALID))
            continue;
        if (entry_is_leaf(entry, level)) {
            if (leaf_is_wrong(tables, entry, level)) {
                list->where = canonical(linear);
                return EFAULT;
            }
            take(list, table, index, level, linear);
        } else {
            code = list_table(list, table_address(tables, entry), level + 1, linear);
            if (code)
                return code;
        }
    }
    return 0;
}

int rift_aarch64_tables_accessed(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, int clear,
                                 struct rift_aarch64_page *pages, size_t capacity, size_t *count, uint64_t *next,
                                 uint64_t *where, struct rift_error *error) {
    struct list list = {.tables = tables, .clear = clear, .pages = pages, .capacity = capacity};
    *count = 0;
    *where = 0;
    *next = linear + size;
    if (size == 0)
        return 0;
    list.first = linear & LINEAR_MASK;
    list.last = list.first + (size - 1);
    const uint64_t base = list.first >> ADDRESS_BITS << ADDRESS_BITS;
    int code = list_table(&list, root_of(tables, base), 0, base);
    if (code) {
        *where = list.where;
        return refuse(error, code, "page tables: accessed and dirty bits");
    }
    *count = list.count;
    if (list.full)
        *next = canonical(list.next);
    return 0;
}
