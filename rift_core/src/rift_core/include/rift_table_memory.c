/* Regions of guest memory and the pool of table pages. */
#include "rift_table_memory.h"

#include <errno.h>
#include <stdlib.h>

static int refuse(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

void rift_table_memory_release(struct rift_table_memory *memory) {
    for (size_t at = 0; at < memory->pool_count; ++at)
        free(memory->pools[at].used);
    free(memory->pools);
    free(memory->regions);
}

int rift_table_memory_set_regions(struct rift_table_memory *memory, const struct rift_table_region *regions,
                                  size_t count, struct rift_error *error) {
    struct rift_table_region *copy = malloc((count ? count : 1) * sizeof(*copy));
    if (!copy)
        return refuse(error, ENOMEM, "malloc");
    uint64_t pages = 0;
    for (size_t at = 0; at < count; ++at) {
        copy[at] = regions[at];
        pages += regions[at].size / memory->page_size;
    }
    free(memory->regions);
    memory->regions = copy;
    memory->region_count = count;
    memory->visit_limit = pages + 1024;
    return 0;
}

/* The region that holds the whole page at `address`. */
static const struct rift_table_region *region_of(const struct rift_table_memory *memory, uint64_t address) {
    size_t low = 0, high = memory->region_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memory->regions[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    const struct rift_table_region *region = &memory->regions[low - 1];
    uint64_t offset = address - region->address;
    if (offset >= region->size || region->size - offset < memory->page_size)
        return NULL;
    return region;
}

uint64_t *rift_table_at(const struct rift_table_memory *memory, uint64_t address, int edit, int *code) {
    const struct rift_table_region *region = region_of(memory, address);
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

int rift_table_memory_add(struct rift_table_memory *memory, uint64_t address, uint64_t size,
                          struct rift_error *error) {
    const char *operation = "page tables: add memory";
    int code = 0;
    if (address % memory->page_size || size % memory->page_size || size == 0)
        return refuse(error, EINVAL, operation);
    const struct rift_table_region *region = region_of(memory, address);
    if (!region || region->size - (address - region->address) < size)
        return refuse(error, EFAULT, operation);
    if (!rift_table_at(memory, address, 1, &code))
        return refuse(error, code, operation);
    for (size_t at = 0; at < memory->pool_count; ++at) {
        const struct rift_table_pool *other = &memory->pools[at];
        if (address < other->address + other->pages * memory->page_size && other->address < address + size)
            return refuse(error, EEXIST, operation);
    }
    struct rift_table_pool *pools = realloc(memory->pools, (memory->pool_count + 1) * sizeof(*pools));
    if (!pools)
        return refuse(error, ENOMEM, "realloc");
    memory->pools = pools;
    uint64_t pages = size / memory->page_size;
    size_t words = (size_t)((pages + 63) / 64);
    uint64_t *bits = calloc(2 * words, sizeof(*bits));
    if (!bits)
        return refuse(error, ENOMEM, "calloc");
    pools[memory->pool_count] =
        (struct rift_table_pool){.address = address, .pages = pages, .used = bits, .retired = bits + words};
    memory->pool_count += 1;
    memory->free_pages += pages;
    return 0;
}

int rift_table_take(struct rift_table_memory *memory, uint64_t *address, uint64_t **table) {
    for (size_t at = 0; memory->free_pages && at < memory->pool_count; ++at) {
        struct rift_table_pool *pool = &memory->pools[at];
        size_t words = (size_t)((pool->pages + 63) / 64);
        for (size_t word = (size_t)(pool->hint / 64); word < words; ++word) {
            uint64_t free_bits = ~pool->used[word];
            if (!free_bits)
                continue;
            uint64_t page = (uint64_t)word * 64 + (uint64_t)__builtin_ctzll(free_bits);
            if (page >= pool->pages)
                break;
            int code = ENOMEM;
            *address = pool->address + page * memory->page_size;
            *table = rift_table_at(memory, *address, 1, &code);
            if (!*table) /* the region was taken away behind our back */
                return code;
            pool->used[word] |= (uint64_t)1 << (page % 64);
            pool->hint = page;
            memory->free_pages -= 1;
            return 0;
        }
        pool->hint = pool->pages;
    }
    return ENOMEM;
}

void rift_table_retire(struct rift_table_memory *memory, uint64_t address) {
    for (size_t at = 0; at < memory->pool_count; ++at) {
        struct rift_table_pool *pool = &memory->pools[at];
        if (address < pool->address || address - pool->address >= pool->pages * memory->page_size)
            continue;
        uint64_t page = (address - pool->address) / memory->page_size;
        uint64_t bit = (uint64_t)1 << (page % 64);
        if (!(pool->used[page / 64] & bit) || (pool->retired[page / 64] & bit))
            return;
        pool->retired[page / 64] |= bit;
        memory->retired_pages += 1;
        return;
    }
}

void rift_table_begin(struct rift_table_memory *memory) {
    if (!memory->retired_pages)
        return;
    for (size_t at = 0; at < memory->pool_count; ++at) {
        struct rift_table_pool *pool = &memory->pools[at];
        size_t words = (size_t)((pool->pages + 63) / 64);
        for (size_t word = 0; word < words; ++word) {
            pool->used[word] &= ~pool->retired[word];
            pool->retired[word] = 0;
        }
        pool->hint = 0;
    }
    memory->free_pages += memory->retired_pages;
    memory->retired_pages = 0;
}
