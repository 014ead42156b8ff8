/* Page tables of one AArch64 address space in guest memory: stage 1 of EL1 and EL0, 48-bit addresses in either half,
 * 4 KiB granule (4 KiB, 2 MiB, 1 GiB) or 16 KiB granule (16 KiB, 32 MiB). Arm ARM, "The AArch64
 * Virtual Memory System Architecture".
 *
 * The lower half's table (TTBR0) is the first page that the builder is given, the upper half's (TTBR1) the second.
 *
 * The tables are the guest's to forge: every table address is checked against the memory regions,
 * each entry is read once, depth and number of visited tables are bounded. An edit goes through twice,
 * first without writing anything: what can be refused is refused then, and nothing has changed.
 *
 * Entries that a CPU may be using change in one store, except that the architecture wants a large page, or a run with
 * the contiguous hint, taken out and its TLB entries flushed before it is replaced by smaller pages
 * ("break-before-make"). A guest that runs meanwhile could see neither, so there is no such gap here: the caller keeps
 * the CPUs out of the guest until the TLBs are flushed (rift_aarch64_tables_splits tells when that is needed).
 *
 * Not thread-safe: the caller holds one lock around every call on the same object. The guest's own
 * CPUs may read, and set accessed and dirty bits, at any time.
 *
 * The file is also the cdef: declarations only, a preprocessor line stands alone on its line. */
#ifndef RIFT_AARCH64_PAGE_TABLE_H
#define RIFT_AARCH64_PAGE_TABLE_H

#include "rift_table_memory.h"

struct rift_aarch64_tables;

struct rift_aarch64_geometry {
    uint32_t page_bits;       /* 12 or 14: the granule */
    uint32_t physical_bits;   /* as TCR_EL1.IPS says */
    uint64_t largest_page;    /* bytes */
    uint32_t hardware_access; /* TCR_EL1.HA: the CPU sets the access flag; without it a clear flag is a fault */
    uint32_t hardware_dirty;  /* TCR_EL1.HD: the CPU makes a writable-clean page dirty */
    uint32_t contiguous;      /* use the contiguous hint */
    uint32_t reserved;
};

/* A run of pages. `flags` are the bits of a level 3 descriptor without its address (valid, page, AttrIndx, AP, SH, AF,
 * nG, DBM, PXN, UXN). */
struct rift_aarch64_mapping {
    uint64_t linear, physical, size, flags;
    uint64_t largest_page; /* bytes */
};

enum rift_aarch64_walk_status {
    RIFT_AARCH64_MAPPED = 0,
    RIFT_AARCH64_NOT_CANONICAL = 1,
    RIFT_AARCH64_NOT_PRESENT = 2,   /* bit 0 is clear */
    RIFT_AARCH64_TABLE_OUTSIDE = 3, /* the entry's table lies outside guest memory */
    RIFT_AARCH64_NO_BLOCK = 4,      /* a block where the level has none, or a reserved encoding */
    RIFT_AARCH64_ADDRESS_SIZE = 5,  /* the output address has more bits than the CPU */
    RIFT_AARCH64_ACCESS_FLAG = 6    /* the access flag is clear, and this CPU does not set it */
};

/* Index 0 is level 0. `levels` entries were read; the last one is the leaf, or where the walk failed. */
struct rift_aarch64_walk {
    uint64_t entry_address[4], entry[4];
    uint64_t physical, page_size;
    uint32_t levels, status;
    uint32_t writable, user, executable; /* all levels taken together */
    uint32_t accessed, dirty;
    uint32_t attribute_index; /* into MAIR_EL1 */
};

struct rift_aarch64_page {
    uint64_t linear, size;
    uint32_t accessed, dirty;
};

/* An address space without tables. NULL without memory. */
struct rift_aarch64_tables *rift_aarch64_tables_create(const struct rift_aarch64_geometry *geometry);
void rift_aarch64_tables_destroy(struct rift_aarch64_tables *tables);

/* Replaces what is known of guest memory; `regions` are copied, ascending, without overlap. */
int rift_aarch64_tables_set_regions(struct rift_aarch64_tables *tables, const struct rift_table_region *regions,
                                    size_t count, struct rift_error *error);

/* Gives [address, address + size), whole pages inside one writable region, to the builder. The first
 * call takes two pages for the top-level tables; ENOSPC if there are not two. */
int rift_aarch64_tables_add(struct rift_aarch64_tables *tables, uint64_t address, uint64_t size,
                            struct rift_error *error);
uint64_t rift_aarch64_tables_root(const struct rift_aarch64_tables *tables);
uint64_t rift_aarch64_tables_free(const struct rift_aarch64_tables *tables);

/* Errors of the edits; `*where` is the linear address at which it went wrong:
 * EEXIST mapped already; ENOENT not mapped; ENOMEM no table left (`*where`: pages that are missing);
 * EFAULT an entry that leads outside guest memory or is no valid encoding; EROFS a table in read-only
 * memory; ELOOP more tables than guest memory has pages.
 *
 * map: `mappings` ascending, without overlap, each in one half, checked for alignment.
 * protect: replaces the permissions by those of `flags`. */
int rift_aarch64_tables_map(struct rift_aarch64_tables *tables, const struct rift_aarch64_mapping *mappings,
                            size_t count, uint64_t *where, struct rift_error *error);
int rift_aarch64_tables_unmap(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, uint64_t *where,
                              struct rift_error *error);
int rift_aarch64_tables_protect(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, uint64_t flags,
                                uint64_t *where, struct rift_error *error);

/* Whether unmap or protect of this range would cut a large page or a contiguous run; the tables stay as they are. */
int rift_aarch64_tables_splits(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size);

/* `root`: the table of level 0 to begin with; UINT64_MAX: the one that was built here for this half. */
void rift_aarch64_tables_walk(const struct rift_aarch64_tables *tables, uint64_t root, uint64_t linear,
                              struct rift_aarch64_walk *walk);

/* Lists the mapped pages of the range, at most `capacity` of them; `*next` is where to go on, or `linear + size`
 * when all are listed; `capacity` is at least that of a contiguous run, 128. A page counts when any of it lies in the
 * range. On request clears what the CPU can set again: where it does not keep a bit, the answer stays "may have
 * been". */
int rift_aarch64_tables_accessed(struct rift_aarch64_tables *tables, uint64_t linear, uint64_t size, int clear,
                                 struct rift_aarch64_page *pages, size_t capacity, size_t *count, uint64_t *next,
                                 uint64_t *where, struct rift_error *error);

#endif
