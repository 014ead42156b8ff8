/* Regions of guest memory and the pool of table pages. */
#include "page_table_internal.h"

#include <stdlib.h>
#include <string.h>

struct rift_x86_64_tables *rift_x86_64_tables_create(uint64_t largest_page) {
    struct rift_x86_64_tables *tables = calloc(1, sizeof(*tables));
    if (tables)
        tables->largest_page = largest_page;
    return tables;
}

void rift_x86_64_tables_destroy(struct rift_x86_64_tables *tables) {
    if (!tables)
        return;
    for (size_t at = 0; at < tables->pool_count; ++at)
        free(tables->pools[at].used);
    free(tables->pools);
    free(tables->regions);
    free(tables);
}

int rift_x86_64_tables_set_regions(struct rift_x86_64_tables *tables, const struct rift_x86_64_region *regions,
                                   size_t count, struct rift_error *error) {
    struct rift_x86_64_region *copy = malloc((count ? count : 1) * sizeof(*copy));
    if (!copy)
        return refuse(error, ENOMEM, "malloc");
    uint64_t pages = 0;
    for (size_t at = 0; at < count; ++at) {
        copy[at] = regions[at];
        pages += regions[at].size / PAGE_SIZE;
    }
    free(tables->regions);
    tables->regions = copy;
    tables->region_count = count;
    tables->visit_limit = pages + 1024;
    return 0;
}

/* The region that holds the whole page at `address`. */
static const struct rift_x86_64_region *region_of(const struct rift_x86_64_tables *tables, uint64_t address) {
    size_t low = 0, high = tables->region_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tables->regions[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    const struct rift_x86_64_region *region = &tables->regions[low - 1];
    uint64_t offset = address - region->address;
    if (offset >= region->size || region->size - offset < PAGE_SIZE)
        return NULL;
    return region;
}

uint64_t *rift_x86_64_table_at(const struct rift_x86_64_tables *tables, uint64_t address, int edit, int *code) {
    const struct rift_x86_64_region *region = region_of(tables, address);
    if (!region) {
        *code = EFAULT;
        return NULL;
    }
    if (edit && !region->writable) {
        *code = EROFS;
        return NULL;
    }
    return (uint64_t *)(uintptr_t)(region->host + (address - region->address));
}

int rift_x86_64_tables_add(struct rift_x86_64_tables *tables, uint64_t address, uint64_t size,
                           struct rift_error *error) {
    const char *operation = "page tables: add memory";
    int code = 0;
    if (address % PAGE_SIZE || size % PAGE_SIZE || size == 0)
        return refuse(error, EINVAL, operation);
    const struct rift_x86_64_region *region = region_of(tables, address);
    if (!region || region->size - (address - region->address) < size)
        return refuse(error, EFAULT, operation);
    if (!rift_x86_64_table_at(tables, address, 1, &code))
        return refuse(error, code, operation);
    for (size_t at = 0; at < tables->pool_count; ++at) {
        const struct pool *other = &tables->pools[at];
        if (address < other->address + other->pages * PAGE_SIZE && other->address < address + size)
            return refuse(error, EEXIST, operation);
    }
    struct pool *pools = realloc(tables->pools, (tables->pool_count + 1) * sizeof(*pools));
    if (!pools)
        return refuse(error, ENOMEM, "realloc");
    tables->pools = pools;
    uint64_t pages = size / PAGE_SIZE;
    size_t words = (size_t)((pages + 63) / 64);
    uint64_t *bits = calloc(2 * words, sizeof(*bits));
    if (!bits)
        return refuse(error, ENOMEM, "calloc");
    pools[tables->pool_count] =
        (struct pool){.address = address, .pages = pages, .used = bits, .retired = bits + words};
    tables->pool_count += 1;
    tables->free_pages += pages;
    if (tables->pool_count == 1) {
        uint64_t *root;
        rift_x86_64_table_take(tables, &tables->root, &root);
        memset(root, 0, PAGE_SIZE);
    }
    return 0;
}

uint64_t rift_x86_64_tables_root(const struct rift_x86_64_tables *tables) {
    return tables->root;
}

uint64_t rift_x86_64_tables_free(const struct rift_x86_64_tables *tables) {
    return tables->free_pages + tables->retired_pages;
}

int rift_x86_64_table_take(struct rift_x86_64_tables *tables, uint64_t *address, uint64_t **table) {
    for (size_t at = 0; tables->free_pages && at < tables->pool_count; ++at) {
        struct pool *pool = &tables->pools[at];
        size_t words = (size_t)((pool->pages + 63) / 64);
        for (size_t word = (size_t)(pool->hint / 64); word < words; ++word) {
            uint64_t free_bits = ~pool->used[word];
            if (!free_bits)
                continue;
            uint64_t page = (uint64_t)word * 64 + (uint64_t)__builtin_ctzll(free_bits);
            if (page >= pool->pages)
                break;
            int code = ENOMEM;
            *address = pool->address + page * PAGE_SIZE;
            *table = rift_x86_64_table_at(tables, *address, 1, &code);
            if (!*table) /* the region was taken away behind our back */
                return code;
            pool->used[word] |= (uint64_t)1 << (page % 64);
            pool->hint = page;
            tables->free_pages -= 1;
            return 0;
        }
        pool->hint = pool->pages;
    }
    return ENOMEM;
}

void rift_x86_64_table_retire(struct rift_x86_64_tables *tables, uint64_t address) {
    if (address == tables->root)
        return;
    for (size_t at = 0; at < tables->pool_count; ++at) {
        struct pool *pool = &tables->pools[at];
        if (address < pool->address || address - pool->address >= pool->pages * PAGE_SIZE)
            continue;
        uint64_t page = (address - pool->address) / PAGE_SIZE;
        uint64_t bit = (uint64_t)1 << (page % 64);
        if (!(pool->used[page / 64] & bit) || (pool->retired[page / 64] & bit))
            return;
        pool->retired[page / 64] |= bit;
        tables->retired_pages += 1;
        return;
    }
}

void rift_x86_64_tables_begin(struct rift_x86_64_tables *tables) {
    if (!tables->retired_pages)
        return;
    for (size_t at = 0; at < tables->pool_count; ++at) {
        struct pool *pool = &tables->pools[at];
        size_t words = (size_t)((pool->pages + 63) / 64);
        for (size_t word = 0; word < words; ++word) {
            pool->used[word] &= ~pool->retired[word];
            pool->retired[word] = 0;
        }
        pool->hint = 0;
    }
    tables->free_pages += tables->retired_pages;
    tables->retired_pages = 0;
}
