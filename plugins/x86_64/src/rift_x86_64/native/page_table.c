/* The object: its memory and its root. */
#include "page_table_internal.h"

#include <stdlib.h>
#include <string.h>

struct rift_x86_64_tables *rift_x86_64_tables_create(uint64_t largest_page) {
    struct rift_x86_64_tables *tables = calloc(1, sizeof(*tables));
    if (tables) {
        tables->largest_page = largest_page;
        tables->memory.page_size = PAGE_SIZE;
    }
    return tables;
}

void rift_x86_64_tables_destroy(struct rift_x86_64_tables *tables) {
    if (!tables)
        return;
    rift_table_memory_release(&tables->memory);
    free(tables);
}

int rift_x86_64_tables_set_regions(struct rift_x86_64_tables *tables, const struct rift_table_region *regions,
                                   size_t count, struct rift_error *error) {
    return rift_table_memory_set_regions(&tables->memory, regions, count, error);
}

int rift_x86_64_tables_add(struct rift_x86_64_tables *tables, uint64_t address, uint64_t size,
                           struct rift_error *error) {
    const int first = tables->memory.pool_count == 0;
    if (rift_table_memory_add(&tables->memory, address, size, error) < 0)
        return -1;
    if (first) {
        uint64_t *root;
        rift_table_take(&tables->memory, &tables->root, &root); /* the region has just been checked */
        memset(root, 0, PAGE_SIZE);
    }
    return 0;
}

uint64_t rift_x86_64_tables_root(const struct rift_x86_64_tables *tables) {
    return tables->root;
}

uint64_t rift_x86_64_tables_free(const struct rift_x86_64_tables *tables) {
    return tables->memory.free_pages + tables->memory.retired_pages;
}
