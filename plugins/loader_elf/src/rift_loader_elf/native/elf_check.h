/* Checks of an ELF file's structure. Every offset, count and size is compared with the file's length before
 * anybody, in C or in Python, relies on it. The file's bytes are hostile: each field is read once.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_ELF_CHECK_H
#define RIFT_ELF_CHECK_H

#include "rift_abi.h"

/* What is wrong with a file.
 * error.code: ENOEXEC damaged, ENOTSUP of a kind that cannot be loaded, E2BIG an absurd count, ENOENT an
 * undefined symbol (value: its index), ENOMEM. error.operation: the field's name in the gABI, or "".
 * offset: where in the file it stands; value: what stands there; reason: a sentence's end, static. */
struct rift_elf_error {
    struct rift_error error;
    uint64_t offset, value;
    const char *reason;
};

enum rift_elf_number {
    RIFT_ELF_X86_64 = 62,   /* EM_X86_64 */
    RIFT_ELF_AARCH64 = 183, /* EM_AARCH64 */
    RIFT_ELF_ET_EXEC = 2,
    RIFT_ELF_ET_DYN = 3,
    RIFT_ELF_PROGRAM_HEADERS_MAX = 1024, /* linkers write about ten */
    RIFT_ELF_SECTIONS_MAX = 65536,
    RIFT_ELF_DYNAMIC_MAX = 4096,     /* entries; linkers write about thirty */
    RIFT_ELF_INTERPRETER_MAX = 4096, /* PATH_MAX */
    RIFT_ELF_NAME_MAX = 65536        /* bytes of a name that are looked at */
};

/* What a checked file holds. Addresses are those of the file, without bias. */
struct rift_elf_summary {
    uint32_t machine, type;
    uint32_t program_headers, sections; /* counts */
    uint32_t loads;                     /* PT_LOAD headers that take memory */
    uint32_t has_tls;
    uint64_t program_header_offset;
    uint64_t dynamic_offset, dynamic_entries;        /* PT_DYNAMIC; 0 entries: there is none */
    uint64_t interpreter_offset, interpreter_size;   /* PT_INTERP without its NUL; size 0: there is none */
    uint64_t lowest, highest, memory_size;           /* over all loads; memory_size is the sum */
    uint64_t alignment;                              /* largest p_align of a load, at least 1, a power of two */
    uint64_t entry;
};

/* One section header. */
struct rift_elf_section {
    uint32_t index, type, link, info;
    uint64_t flags, address, offset, size, entry_size;
};

/* Checks header, program headers, section headers, PT_DYNAMIC's end and PT_INTERP's string; loads may share
 * pages but no byte, and take at most max_memory bytes. Returns 0, or -1 with *error filled in. */
int rift_elf_file_check(const uint8_t *bytes, uint64_t size, uint64_t max_memory, struct rift_elf_summary *summary,
                        struct rift_elf_error *error);

/* The first section from index `first` on of this type and with all of these flags. Returns 1 if *section is
 * filled in, 0 if there is none, -1 with *error. */
int rift_elf_section_find(const uint8_t *bytes, uint64_t size, uint32_t first, uint32_t type, uint64_t flags,
                          struct rift_elf_section *section, struct rift_elf_error *error);

/* The section of that index, as above; an index that the file has not is an error. */
int rift_elf_section_read(const uint8_t *bytes, uint64_t size, uint32_t index, struct rift_elf_section *section,
                          struct rift_elf_error *error);

/* Length of the string at `offset` of a string table of `size` bytes at `table`, or -1 if it starts outside, is
 * not terminated inside or is longer than RIFT_ELF_NAME_MAX. */
int64_t rift_elf_string_length(const uint8_t *table, uint64_t size, uint64_t offset);

#endif
