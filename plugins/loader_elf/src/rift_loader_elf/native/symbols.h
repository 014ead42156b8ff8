/* The symbols of one ELF file, for the look-ups of rift_symbols.h.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_ELF_SYMBOLS_H
#define RIFT_ELF_SYMBOLS_H

#include "elf_check.h"
#include "rift_symbols.h"

/* Symbols that are listed: defined, named, and neither a section, a file, thread-local nor an AArch64 mapping
 * symbol. `bytes` must stay where they are until rift_symbols_close; their contents may change at any time.
 * Reads the names' last byte and nothing else. Returns NULL with *error: ENOMEM, or one of elf_check.h. */
struct rift_symbols *rift_elf_symbols_open(const uint8_t *bytes, uint64_t size, uint32_t machine, uint64_t bias,
                                           const struct rift_elf_section *symbols,
                                           const struct rift_elf_section *names, struct rift_elf_error *error);

#endif
