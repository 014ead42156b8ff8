/* Relocations of position-independent files, applied to host bytes before the guest sees them.
 * Tables, symbols and targets are hostile: each entry is read once, each address and index checked.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_ELF_RELOCATE_H
#define RIFT_ELF_RELOCATE_H

#include "elf_check.h"

/* Relocations of one file, RELATIVE ones of a RELR bitmap included. The largest browsers have one million. */
#define RIFT_ELF_RELOCATIONS_MAX 8388608

/* One segment. `bytes` are `size` host bytes that will appear at `address` (bias included); the rest of
 * memory_size is zero. Out: `touched`, and `needed`: how many bytes from `address` on hold relocated words, if
 * that is more than `size`, else 0. */
struct rift_elf_target {
    uint64_t address, memory_size;
    uint8_t *bytes;
    uint64_t size;
    uint64_t needed;
    uint64_t touched;
};

/* What relocating takes. Symbols and names are ranges of the file; size 0: there are none. */
struct rift_elf_relocator {
    const uint8_t *bytes; /* the file */
    uint64_t size;
    uint64_t bias; /* modulo 2^64 */
    uint32_t machine;
    uint32_t write; /* 0: check everything and fill in the targets' out fields; 1: store the words as well */
    uint64_t symbols_offset, symbols_size;
    struct rift_elf_target *targets; /* ascending by address, disjoint */
    uint64_t target_count;
    uint64_t done; /* relocations so far, over all tables of the file; start it at 0 */
};

/* Serves a table of Elf64_Rela at [offset, offset + size) of the file. With write set, a word that does not lie
 * within its target's `size` bytes is an error. Returns 0, or -1 with *error: code ENOTSUP and the relocation's
 * type in value, ENOENT and the symbol's index in value, or another one of elf_check.h. */
int rift_elf_rela_apply(struct rift_elf_relocator *relocator, uint64_t offset, uint64_t size,
                        struct rift_elf_error *error);

/* Serves a table of RELR words (gABI, "Relative Relocation Table"): the same results. */
int rift_elf_relr_apply(struct rift_elf_relocator *relocator, uint64_t offset, uint64_t size,
                        struct rift_elf_error *error);

#endif
