/* The symbols of one executable: look-up by name, by address and by likeness, over the file's own table and without
 * an object for each symbol. A loader brings the function that reads one entry of its format.
 * The only copy; each loader that compiles it has symbolic links to this file, rift_symbols.c and rift_similar.c.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_SYMBOLS_H
#define RIFT_SYMBOLS_H

#include "rift_abi.h"

/* Symbols of one file; the index by name takes 8 to 12 bytes of memory for each, the one by address 32. */
#define RIFT_SYMBOLS_MAX 16777216

enum rift_symbol_number {
    RIFT_SYMBOL_LOCAL = 0,
    RIFT_SYMBOL_WEAK = 1,
    RIFT_SYMBOL_GLOBAL = 2,
    RIFT_SYMBOL_NAME_MAX = 65536, /* bytes of a name that are looked at */
    RIFT_SYMBOL_SIMILAR_MAX = 64  /* names that one search for similar ones gives */
};

/* One entry of the file's table, as its reader gives it. */
struct rift_symbol {
    const uint8_t *name;        /* the spelling in the file */
    uint64_t name_room;         /* bytes that may be read there, at least 1; a name without NUL ends with them */
    uint64_t prefix;            /* how many bytes of the spelling, fewer than name_room, are not shown, such as Mach-O's "_" */
    uint64_t address;
    uint64_t size;              /* 0: not told */
    uint64_t limit;             /* if not 0, and size is 0: the symbol reaches to the next one, at most to this address */
    uint32_t binding;           /* RIFT_SYMBOL_LOCAL, _WEAK or _GLOBAL */
    uint16_t is_typed;          /* a function or an object: look-up by address prefers it */
    uint16_t is_absolute;       /* a number, not a place: look-up by address passes it over */
};

/* Reads entry `index` of `table` once; 1 if it is to be listed, else 0. The bytes may change at any time. */
typedef int rift_symbol_read_fn(const void *table, uint64_t index, struct rift_symbol *symbol);

struct rift_symbols;

/* One symbol that was found; `name`, as shown, points into the file's bytes, is name_size bytes long and not
 * terminated there. */
struct rift_found {
    const uint8_t *name;
    uint64_t name_size;
    uint64_t address, size;
    uint64_t index;
};

/* Takes over `table` (from malloc), whatever comes of it; what it points to must stay until rift_symbols_close.
 * At most RIFT_SYMBOLS_MAX entries. Returns NULL with *error. */
struct rift_symbols *rift_symbols_make(void *table, uint64_t count, rift_symbol_read_fn *read,
                                       struct rift_error *error);

/* Frees the index and the table; NULL is allowed. */
void rift_symbols_close(struct rift_symbols *symbols);

/* How many symbols are listed. Reads the whole table. */
uint64_t rift_symbols_count(const struct rift_symbols *symbols);

/* The first listed symbol from that index of the table on: 1 with *found, whose size is what the file tells, or 0. */
int rift_symbols_peek(const struct rift_symbols *symbols, uint64_t first, struct rift_found *found);

/* The same with its size; -1 with *error (ENOMEM). This and the next two: one thread at a time. */
int rift_symbols_next(struct rift_symbols *symbols, uint64_t first, struct rift_found *found,
                      struct rift_error *error);

/* The symbol of exactly that spelling; global before weak before local, then the first. Returns as above; the
 * first call builds the index. */
int rift_symbols_find(struct rift_symbols *symbols, const uint8_t *name, uint64_t name_size,
                      struct rift_found *found, struct rift_error *error);

/* The symbol for an address within [low, high): the innermost function or object that contains it, else any
 * symbol that does, else the closest at or below it and not below `low`. Returns as above. */
int rift_symbols_nearest(struct rift_symbols *symbols, uint64_t address, uint64_t low, struct rift_found *found,
                         struct rift_error *error);

/* Up to `limit` (at most RIFT_SYMBOL_SIMILAR_MAX) symbols with shown names like that one, best first, each name once.
 * Returns how many; sizes are as those of rift_symbols_peek. The work is bounded, whatever the file holds. */
int rift_symbols_similar(const struct rift_symbols *symbols, const uint8_t *name, uint64_t name_size,
                         struct rift_found *found, uint32_t limit);

#endif
