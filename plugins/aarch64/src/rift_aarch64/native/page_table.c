/* The object: its geometry, its memory, its two roots. */
#include "page_table_internal.h"

#include <stdlib.h>
#include <string.h>

struct rift_aarch64_tables *rift_aarch64_tables_create(const struct rift_aarch64_geometry *geometry) {
    struct rift_aarch64_tables *tables = calloc(1, sizeof(*tables));
    if (tables) {
        tables->geometry = *geometry;
        tables->memory.page_size = page_size(tables);
    }
    return tables;
}

void rift_aarch64_tables_destroy(struct rift_aarch64_tables *tables) {
    if (!tables)
        return;
    rift_table_memory_release(&tables->memory);
    free(tables);
}

int rift_aarch64_tables_set_regions(struct rift_aarch64_tables *tables, const struct rift_table_region *regions,
                                    size_t count, struct rift_error *error) {
    return rift_table_memory_set_regions(&tables->memory, regions, count, error);
}

int rift_aarch64_tables_add(struct rift_aarch64_tables *tables, uint64_t address, uint64_t size,
                            struct rift_error *error) {
    const int first = tables->memory.pool_count == 0;
    if (first && size == page_size(tables))
        return refuse(error, ENOSPC, "page tables: add memory");
    if (rift_table_memory_add(&tables->memory, address, size, error) < 0)
        return -1;
    if (first) {
        uint64_t *lower, *upper, second;
        rift_table_take(&tables->memory, &tables->root, &lower); /* the region has just been checked */
        rift_table_take(&tables->memory, &second, &upper);
        memset(lower, 0, page_size(tables));
        memset(upper, 0, page_size(tables));
    }
    return 0;
}

uint64_t rift_aarch64_tables_root(const struct rift_aarch64_tables *tables) {
    return tables->root;
}

uint64_t rift_aarch64_tables_free(const struct rift_aarch64_tables *tables) {
    return tables->memory.free_pages + tables->memory.retired_pages;
}
