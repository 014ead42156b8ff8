/* Page tables of one x86-64 address space in guest memory: 4 levels, 4 KiB, 2 MiB and 1 GiB pages
 * (Intel SDM volume 3, "4-Level Paging"; AMD APM volume 2, "Long-Mode Page Translation").
 *
 * The tables are the guest's to forge: every table address is checked against the memory regions,
 * each entry is read once, depth and number of visited tables are bounded. An edit goes through twice,
 * first without writing anything: what can be refused is refused then, and nothing has changed.
 *
 * Not thread-safe: the caller holds one lock around every call on the same object. The guest's own
 * CPUs may read, and set accessed and dirty bits, at any time.
 *
 * The file is also the cdef: declarations only, a preprocessor line stands alone on its line. */
#ifndef RIFT_X86_64_PAGE_TABLE_H
#define RIFT_X86_64_PAGE_TABLE_H

#include "rift_table_memory.h"

struct rift_x86_64_tables;

/* A run of pages. `flags` are the bits of a 4 KiB leaf entry without its address (P, R/W, U/S, PWT, PCD, PAT, XD). */
struct rift_x86_64_mapping {
    uint64_t linear, physical, size, flags;
    uint64_t largest_page; /* bytes: 4 KiB, 2 MiB or 1 GiB */
};

enum rift_x86_64_walk_status {
    RIFT_X86_64_MAPPED = 0,
    RIFT_X86_64_NOT_CANONICAL = 1,
    RIFT_X86_64_NOT_PRESENT = 2,
    RIFT_X86_64_TABLE_OUTSIDE = 3, /* the entry's table lies outside guest memory */
    RIFT_X86_64_RESERVED_BITS = 4
};

/* Index 0 is the top level. `levels` entries were read; the last one is the leaf, or where the walk failed. */
struct rift_x86_64_walk {
    uint64_t entry_address[4], entry[4];
    uint64_t physical, page_size;
    uint32_t levels, status;
    uint32_t writable, user, executable; /* all levels taken together */
    uint32_t memory_type;                /* index into the PAT */
};

struct rift_x86_64_page {
    uint64_t linear, size;
    uint32_t accessed, dirty;
};

/* An address space without tables. `largest_page`: of the CPU, in bytes. NULL without memory. */
struct rift_x86_64_tables *rift_x86_64_tables_create(uint64_t largest_page);
void rift_x86_64_tables_destroy(struct rift_x86_64_tables *tables);

/* Replaces what is known of guest memory; `regions` are copied, ascending, without overlap. */
int rift_x86_64_tables_set_regions(struct rift_x86_64_tables *tables, const struct rift_table_region *regions,
                                   size_t count, struct rift_error *error);

/* Gives [address, address + size), whole pages inside one writable region, to the builder. The first
 * call takes its first page for the top-level table. */
int rift_x86_64_tables_add(struct rift_x86_64_tables *tables, uint64_t address, uint64_t size,
                           struct rift_error *error);
uint64_t rift_x86_64_tables_root(const struct rift_x86_64_tables *tables);
uint64_t rift_x86_64_tables_free(const struct rift_x86_64_tables *tables);

/* Errors of the edits; `*where` is the linear address at which it went wrong:
 * EEXIST mapped already; ENOENT not mapped; ENOMEM no table left (`*where`: pages that are missing);
 * EFAULT an entry that leads outside guest memory or has reserved bits set; EROFS a table in read-only
 * memory; ELOOP more tables than guest memory has pages.
 *
 * map: `mappings` ascending, without overlap, checked for alignment and canonical form.
 * protect: replaces R/W, U/S and XD by those of `flags`. */
int rift_x86_64_tables_map(struct rift_x86_64_tables *tables, const struct rift_x86_64_mapping *mappings,
                           size_t count, uint64_t *where, struct rift_error *error);
int rift_x86_64_tables_unmap(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, uint64_t *where,
                             struct rift_error *error);
int rift_x86_64_tables_protect(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, uint64_t flags,
                               uint64_t *where, struct rift_error *error);

/* `root`: the top-level table to begin with; UINT64_MAX: the one that was built here. */
void rift_x86_64_tables_walk(const struct rift_x86_64_tables *tables, uint64_t root, uint64_t linear,
                             struct rift_x86_64_walk *walk);

/* Lists the mapped pages of the range, at most `capacity` of them; `*next` is where to go on, or `linear + size`
 * when all are listed. A page counts when any of it lies in the range. Clears both bits on request. */
int rift_x86_64_tables_accessed(struct rift_x86_64_tables *tables, uint64_t linear, uint64_t size, int clear,
                                struct rift_x86_64_page *pages, size_t capacity, size_t *count, uint64_t *next,
                                uint64_t *where, struct rift_error *error);

#endif
