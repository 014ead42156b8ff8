/* Reading the tables: one address, or the pages of a range with their accessed and dirty bits. */
#include "page_table_internal.h"

void rift_x86_64_tables_walk(const struct rift_x86_64_tables *tables, uint64_t root, uint64_t linear,
                             struct rift_x86_64_walk *walk) {
    uint64_t table_address = root == UINT64_MAX ? tables->root : root & ENTRY_ADDRESS;
    *walk = (struct rift_x86_64_walk){.writable = 1, .user = 1, .executable = 1};
    if (canonical(linear) != linear) {
        walk->status = RIFT_X86_64_NOT_CANONICAL;
        return;
    }
    for (int level = TOP_LEVEL;; --level) {
        int code;
        const uint64_t *table = rift_table_at(&tables->memory, table_address, 0, &code);
        if (!table) {
            walk->status = RIFT_X86_64_TABLE_OUTSIDE;
            return;
        }
        size_t index = level_index(linear, level);
        uint64_t entry = entry_load(&table[index]);
        walk->entry_address[walk->levels] = table_address + index * sizeof(entry);
        walk->entry[walk->levels] = entry;
        walk->levels += 1;
        walk->page_size = level_span(level);
        if (!(entry & ENTRY_PRESENT)) {
            walk->status = RIFT_X86_64_NOT_PRESENT;
            return;
        }
        walk->writable &= (entry & ENTRY_WRITE) != 0;
        walk->user &= (entry & ENTRY_USER) != 0;
        walk->executable &= (entry & ENTRY_NO_EXECUTE) == 0;
        table_address = entry & ENTRY_ADDRESS;
        if (!entry_is_leaf(entry, level))
            continue;
        if (level == TOP_LEVEL || walk->page_size > tables->largest_page || leaf_has_reserved_bits(entry, level)) {
            walk->status = RIFT_X86_64_RESERVED_BITS;
            return;
        }
        uint64_t pat = level == 0 ? ENTRY_PAT_SMALL : ENTRY_PAT_LARGE;
        walk->memory_type = ((entry & ENTRY_PWT) ? 1u : 0u) | ((entry & ENTRY_PCD) ? 2u : 0u) | ((entry & pat) ? 4u : 0u);
        walk->physical = leaf_address(entry, level) | (linear & (walk->page_size - 1));
        return;
    }
}

struct list {
    const struct rift_x86_64_tables *tables;
    uint64_t first, last;
    int clear;
    struct rift_x86_64_page *pages;
    size_t count, capacity;
    uint64_t next; /* where to go on when full */
    int full;
    uint64_t visits, where;
};

static void take(struct list *list, uint64_t *slot, uint64_t entry, uint64_t linear, uint64_t span) {
    if (list->count == list->capacity) {
        list->full = 1;
        list->next = linear > list->first ? linear : list->first;
        return;
    }
    const uint64_t bits = ENTRY_ACCESSED | ENTRY_DIRTY;
    if (list->clear && (entry & bits))
        entry = __atomic_fetch_and(slot, ~bits, __ATOMIC_ACQ_REL);
    list->pages[list->count] = (struct rift_x86_64_page){.linear = canonical(linear),
                                                         .size = span,
                                                         .accessed = (entry & ENTRY_ACCESSED) != 0,
                                                         .dirty = (entry & ENTRY_DIRTY) != 0};
    list->count += 1;
}

static int list_table(struct list *list, uint64_t address, int level, uint64_t base) {
    int code = 0;
    uint64_t *table = rift_table_at(&list->tables->memory, address, list->clear, &code);
    list->where = canonical(base);
    if (!table)
        return code;
    if (++list->visits > list->tables->memory.visit_limit)
        return ELOOP;
    uint64_t span = level_span(level);
    uint64_t first = list->first > base ? list->first : base;
    uint64_t last = base + (span * TABLE_ENTRIES - 1);
    if (last > list->last)
        last = list->last;
    for (size_t index = level_index(first, level); index <= level_index(last, level) && !list->full; ++index) {
        uint64_t entry = entry_load(&table[index]);
        uint64_t linear = base + index * span;
        if (!(entry & ENTRY_PRESENT))
            continue;
        if (entry_is_leaf(entry, level)) {
            if (level == TOP_LEVEL || span > list->tables->largest_page || leaf_has_reserved_bits(entry, level)) {
                list->where = canonical(linear);
                return EFAULT;
            }
            take(list, &table[index], entry, linear, span);
        } else {
            code = list_table(list, entry & ENTRY_ADDRESS, level - 1, linear);
            if (code)
                return code;
        }
    }
    return 0;
}

int rift_x86_64_tables_accessed(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, int clear,
                                struct rift_x86_64_page *pages, size_t capacity, size_t *count, uint64_t *next,
                                uint64_t *where, struct rift_error *error) {
    struct list list = {.tables = tables, .clear = clear, .pages = pages, .capacity = capacity};
    *count = 0;
    *where = 0;
    *next = linear + size;
    if (size == 0)
        return 0;
    list.first = linear & LINEAR_MASK;
    list.last = list.first + (size - 1);
    int code = list_table(&list, tables->root, TOP_LEVEL, 0);
    if (code) {
        *where = list.where;
        return refuse(error, code, "page tables: accessed and dirty bits");
    }
    *count = list.count;
    if (list.full)
        *next = canonical(list.next);
    return 0;
}
