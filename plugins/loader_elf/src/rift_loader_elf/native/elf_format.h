/* ELF64 structures as they stand in a file, little-endian (System V gABI, chapters 4 and 5; field names of the
 * gABI are in the comments). Internal: not part of the cdef. <elf.h> is not used: macOS has none. */
#ifndef RIFT_ELF_FORMAT_H
#define RIFT_ELF_FORMAT_H

#include <errno.h>
#include <string.h>

#include "elf_check.h"

struct elf_header { /* Elf64_Ehdr, 64 bytes */
    uint8_t identity[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, program_headers, section_headers; /* e_entry, e_phoff, e_shoff */
    uint32_t flags;
    uint16_t header_size, program_header_size, program_header_count; /* e_ehsize, e_phentsize, e_phnum */
    uint16_t section_header_size, section_header_count, section_names; /* e_shentsize, e_shnum, e_shstrndx */
};

struct elf_program_header { /* Elf64_Phdr, 56 bytes */
    uint32_t type, flags;
    uint64_t offset, address, physical, file_size, memory_size, alignment;
};

struct elf_section_header { /* Elf64_Shdr, 64 bytes */
    uint32_t name, type;
    uint64_t flags, address, offset, size;
    uint32_t link, info;
    uint64_t alignment, entry_size;
};

struct elf_symbol { /* Elf64_Sym, 24 bytes */
    uint32_t name;
    uint8_t info, other;
    uint16_t section; /* st_shndx */
    uint64_t value, size;
};

struct elf_relocation { /* Elf64_Rela, 24 bytes */
    uint64_t offset, info;
    uint64_t addend; /* signed in the gABI; all arithmetic is modulo 2^64 */
};

struct elf_dynamic { /* Elf64_Dyn, 16 bytes */
    uint64_t tag, value;
};

enum {
    ELF_CLASS_64 = 2, ELF_DATA_LITTLE = 1, ELF_VERSION_CURRENT = 1,
    ELF_PN_XNUM = 0xffff,
    ELF_PT_LOAD = 1, ELF_PT_DYNAMIC = 2, ELF_PT_INTERP = 3, ELF_PT_TLS = 7,
    ELF_SHT_NULL = 0, ELF_SHT_STRTAB = 3, ELF_SHT_NOBITS = 8,
    ELF_SHN_UNDEF = 0, ELF_SHN_RESERVED = 0xff00, ELF_SHN_ABS = 0xfff1, ELF_SHN_XINDEX = 0xffff,
    ELF_STB_LOCAL = 0, ELF_STB_GLOBAL = 1, ELF_STB_WEAK = 2, ELF_STB_GNU_UNIQUE = 10,
    ELF_STT_NOTYPE = 0, ELF_STT_OBJECT = 1, ELF_STT_FUNC = 2, ELF_STT_SECTION = 3, ELF_STT_FILE = 4,
    ELF_STT_TLS = 6, ELF_STT_GNU_IFUNC = 10
};

static inline uint8_t elf_symbol_binding(const struct elf_symbol *symbol) { return (uint8_t)(symbol->info >> 4); }
static inline uint8_t elf_symbol_type(const struct elf_symbol *symbol) { return symbol->info & 15; }

/* Whether [offset, offset + size) lies within [0, limit); no sum can overflow. */
static inline int elf_range_inside(uint64_t offset, uint64_t size, uint64_t limit) {
    return offset <= limit && size <= limit - offset;
}

/* Fills in the error and returns -1. */
static inline int elf_fail(struct rift_elf_error *error, int code, uint64_t offset, uint64_t value,
                           const char *operation, const char *reason) {
    error->error.code = code;
    error->error.operation = operation;
    error->offset = offset;
    error->value = value;
    error->reason = reason;
    return -1;
}

#endif
