/* The symbols of one Mach-O image, for the look-ups of rift_symbols.h.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_MACHO_SYMBOLS_H
#define RIFT_MACHO_SYMBOLS_H

#include "macho_check.h"
#include "rift_symbols.h"

/* LC_SYMTAB's tables: symoff, nsyms, stroff, strsize. */
struct rift_macho_symbol_table {
    uint64_t symbols, count, names, names_size;
};

/* Symbols that are listed: defined in a section or absolute, named, and neither for a debugger nor thread-local. They
 * are shown without the underscore that C compilers put before names, and reach to the next symbol or their
 * section's end, for the file tells no sizes. `image` must stay where it is until rift_symbols_close; its contents may
 * change at any time. Returns NULL with *error: ENOMEM, or one of macho_check.h. */
struct rift_symbols *rift_macho_symbols_open(const struct rift_macho_image *image, uint64_t slide,
                                             const struct rift_macho_symbol_table *table,
                                             const struct rift_macho_summary *summary,
                                             struct rift_macho_error *error);

#endif
