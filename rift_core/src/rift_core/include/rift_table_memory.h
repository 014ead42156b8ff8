/* Guest memory as a page-table builder sees it: the regions in which tables may lie, and the table pages that
 * the builder owns. Shared by the ISA plugins; each has a symbolic link to this file.
 *
 * The tables are the guest's to forge: an address of one is worth nothing until rift_table_at() has found it
 * inside guest memory.
 *
 * The file is also the cdef: declarations only, a preprocessor line stands alone on its line. */
#ifndef RIFT_TABLE_MEMORY_H
#define RIFT_TABLE_MEMORY_H

#include "rift_abi.h"

/* Guest-physical memory [address, address + size) and its bytes in this process. */
struct rift_table_region {
    uint64_t address, size;
    uint64_t host;     /* address of the first byte */
    uint32_t writable; /* 0: tables there can be walked, not edited */
    uint32_t reserved;
};

/* Table pages that the builder owns, one bit each. A retired page becomes free at the next edit: until
 * the caller has flushed the guest's TLBs, a CPU may still walk through it. */
struct rift_table_pool {
    uint64_t address, pages;
    uint64_t hint;
    uint64_t *used, *retired;
};

struct rift_table_memory {
    struct rift_table_region *regions;
    size_t region_count;
    struct rift_table_pool *pools;
    size_t pool_count;
    uint64_t page_size; /* of a table, in bytes */
    uint64_t free_pages, retired_pages;
    uint64_t visit_limit; /* tables that one pass may visit: no honest tree has more than memory has pages */
};

/* Frees what the members point at. */
void rift_table_memory_release(struct rift_table_memory *memory);

/* Replaces what is known of guest memory; `regions` are copied, ascending, without overlap. */
int rift_table_memory_set_regions(struct rift_table_memory *memory, const struct rift_table_region *regions,
                                  size_t count, struct rift_error *error);

/* Gives [address, address + size), whole pages inside one writable region, to the builder. EINVAL misaligned, EFAULT
 * not inside a region, EROFS, EEXIST given already, ENOMEM. */
int rift_table_memory_add(struct rift_table_memory *memory, uint64_t address, uint64_t size,
                          struct rift_error *error);

/* The table at `address`, or NULL if it is not inside guest memory (or `edit` and the memory is read-only:
 * *code tells which). */
uint64_t *rift_table_at(const struct rift_table_memory *memory, uint64_t address, int edit, int *code);

/* A table page, not zeroed; returns 0 with its address and bytes, or an errno. */
int rift_table_take(struct rift_table_memory *memory, uint64_t *address, uint64_t **table);

/* Gives a page back if the builder owns it; anything else, the guest's own tables included, is left alone. */
void rift_table_retire(struct rift_table_memory *memory, uint64_t address);

/* Begins an edit: frees what the one before retired. */
void rift_table_begin(struct rift_table_memory *memory);

#endif
