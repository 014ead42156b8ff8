/* Pointers of a file that must be set before it runs: rebased, if it does not stand where it was linked, or bound to
 * symbols. Applied to host bytes before the guest sees them. Opcodes, chains and targets are hostile: each byte is
 * read once, each address and index checked.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_MACHO_FIXUPS_H
#define RIFT_MACHO_FIXUPS_H

#include "macho_check.h"

/* Pointers of one file. The largest browsers have one million. */
#define RIFT_MACHO_FIXUPS_MAX 8388608

/* Names that a file imports, of those that are looked at. */
#define RIFT_MACHO_IMPORTS_MAX 16777216

/* One segment, in the order of the load commands, those without memory included. `bytes` are its `size` host bytes;
 * the rest is zero. Out: `touched`. */
struct rift_macho_target {
    uint64_t address, memory_size; /* as in the file, without slide */
    uint8_t *bytes;
    uint64_t size, offset; /* offset: of the bytes in the image */
    uint64_t touched;
};

/* What fixing takes. */
struct rift_macho_fixer {
    const struct rift_macho_image *image;
    uint64_t slide;          /* modulo 2^64 */
    uint64_t header_address; /* as in the file */
    uint32_t write;          /* 0: check everything and fill in the targets' out fields; 1: store the words as well */
    uint32_t bound_count;
    struct rift_macho_target *targets;
    uint64_t target_count;
    const uint64_t *bound; /* addresses of the first bound_count imports, with addend; RIFT_MACHO_UNBOUND: none */
    uint64_t done;         /* fixups so far; start it at 0 */
};

/* A symbol that a file imports. `library` is its ordinal, or 0 this file, -1 the main program, -2 any, -3 any weak
 * definition. `name` is an offset in the image, of name_size bytes; 0: the name cannot be read. */
struct rift_macho_import {
    int32_t library;
    uint32_t is_weak; /* may be missing; its address is then 0 */
    uint64_t name, name_size;
    uint64_t addend;
    uint64_t index;
};

/* No address: an import that cannot be served. */
#define RIFT_MACHO_UNBOUND 0xfffffffffffffffe

/* LC_DYLD_INFO's rebase opcodes at [offset, offset + size) of the image. All are checked, at slide 0 too, where nothing
 * is stored. Returns 0, or -1 with *error. */
int rift_macho_rebase(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, struct rift_macho_error *error);

/* LC_DYLD_INFO's bind opcodes: pointers to symbols that may be missing become 0, for there is nobody who has them.
 * Returns 0, 1 with *import if a symbol may not be missing, or -1 with *error. `is_lazy`: the opcodes are those of
 * lazy_bind_off. (weak_bind_off names what several files define alike: what the file itself has stands there.) */
int rift_macho_bind(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, int is_lazy,
                    struct rift_macho_import *import, struct rift_macho_error *error);

/* LC_DYLD_CHAINED_FIXUPS at [offset, offset + size) of the image, in pointer formats 2 and 6. Returns 0, or -1 with
 * *error: code ENOTSUP and the format in value, ENOENT and the import's index in value, or another one. */
int rift_macho_chains(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, struct rift_macho_error *error);

/* The import of that index of LC_DYLD_CHAINED_FIXUPS. Returns 1, 0 if there are not so many, -1 with *error. */
int rift_macho_chained_import(const struct rift_macho_image *image, uint64_t offset, uint64_t size, uint64_t index,
                              struct rift_macho_import *import, struct rift_macho_error *error);

#endif
