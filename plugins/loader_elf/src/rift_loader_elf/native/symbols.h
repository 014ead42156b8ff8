/* The symbols of one file: an index over the file's own tables, without an object for each symbol.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_ELF_SYMBOLS_H
#define RIFT_ELF_SYMBOLS_H

#include "elf_check.h"

/* Symbols of one file; the index by name takes 8 to 12 bytes of memory for each, the one by address 32. */
#define RIFT_ELF_SYMBOLS_MAX 16777216

struct rift_elf_symbols;

/* One symbol; `name` points into the file's bytes, is name_size bytes long and not terminated there. */
struct rift_elf_found {
    const uint8_t *name;
    uint64_t name_size;
    uint64_t address, size;
    uint64_t index;
};

/* Symbols that are listed: defined, named, and neither a section, a file, thread-local nor an AArch64 mapping
 * symbol. `bytes` must stay where they are until rift_elf_symbols_close; their contents may change at any time.
 * Reads the names' last byte and nothing else. Returns NULL with *error: ENOMEM, or one of elf_check.h. */
struct rift_elf_symbols *rift_elf_symbols_open(const uint8_t *bytes, uint64_t size, uint32_t machine, uint64_t bias,
                                               const struct rift_elf_section *symbols,
                                               const struct rift_elf_section *names, struct rift_elf_error *error);

/* Frees the index; NULL is allowed. */
void rift_elf_symbols_close(struct rift_elf_symbols *symbols);

/* How many symbols are listed. Reads the whole table. */
uint64_t rift_elf_symbols_count(const struct rift_elf_symbols *symbols);

/* The first listed symbol from that index of the table on: 1 with *found, or 0. */
int rift_elf_symbols_next(const struct rift_elf_symbols *symbols, uint64_t first, struct rift_elf_found *found);

/* The symbol of exactly that name; global before weak before local, then the first. Returns 1, 0 if there is
 * none, -1 with *error (ENOMEM). The first call builds the index: one thread at a time. */
int rift_elf_symbols_find(struct rift_elf_symbols *symbols, const uint8_t *name, uint64_t name_size,
                          struct rift_elf_found *found, struct rift_elf_error *error);

/* The symbol for an address within [low, high): the innermost function or object that contains it, else any
 * symbol that does, else the closest at or below it and not below `low`. Results and threads as above. */
int rift_elf_symbols_nearest(struct rift_elf_symbols *symbols, uint64_t address, uint64_t low,
                             struct rift_elf_found *found, struct rift_elf_error *error);

/* Up to `limit` (at most 64) symbols with names like that one, best first, each name once. Returns how many.
 * The work is bounded, whatever the file holds. */
int rift_elf_symbols_similar(const struct rift_elf_symbols *symbols, const uint8_t *name, uint64_t name_size,
                             struct rift_elf_found *found, uint32_t limit);

#endif
