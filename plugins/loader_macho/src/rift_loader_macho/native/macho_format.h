/* Mach-O structures as they stand in a file, little-endian (<mach-o/loader.h>, <mach-o/nlist.h>; the names there are
 * in the comments). Internal: not part of the cdef. Apple's headers are not used: only macOS has them. */
#ifndef RIFT_MACHO_FORMAT_H
#define RIFT_MACHO_FORMAT_H

#include <errno.h>
#include <string.h>

#include "macho_check.h"

struct macho_header { /* mach_header_64, 32 bytes */
    uint32_t magic, cpu, subtype, type, commands, commands_size, flags, reserved;
};

struct macho_command { /* load_command, 8 bytes; sizes below count it */
    uint32_t kind, size;
};

struct macho_segment { /* segment_command_64, 72 bytes */
    uint32_t kind, size;
    char name[16];
    uint64_t address, memory_size, offset, file_size; /* vmaddr, vmsize, fileoff, filesize */
    uint32_t most_protection, protection, sections, flags; /* maxprot, initprot, nsects */
};

struct macho_section { /* section_64, 80 bytes */
    char name[16], segment[16];
    uint64_t address, size;
    uint32_t offset, alignment, relocations, relocation_count, flags, reserved[3];
};

struct macho_symbol_table { /* symtab_command, 24 bytes */
    uint32_t kind, size, symbols, count, names, names_size; /* symoff, nsyms, stroff, strsize */
};

struct macho_dynamic_symbols { /* dysymtab_command, 80 bytes */
    uint32_t kind, size, groups[6];
    uint32_t contents, content_count, modules, module_count, references, reference_count; /* toc, modtab, extrefsym */
    uint32_t indirect, indirect_count, external, external_count, local, local_count; /* indirectsym, extrel, locrel */
};

struct macho_data { /* linkedit_data_command, 16 bytes */
    uint32_t kind, size, offset, data_size;
};

struct macho_dyld_info { /* dyld_info_command, 48 bytes */
    uint32_t kind, size;
    struct {
        uint32_t offset, size;
    } rebase, bind, weak_bind, lazy_bind, exports;
};

struct macho_main { /* entry_point_command, 24 bytes */
    uint32_t kind, size;
    uint64_t offset, stack_size;
};

struct macho_symbol { /* nlist_64, 16 bytes */
    uint32_t name;
    uint8_t type, section;
    uint16_t description;
    uint64_t value;
};

enum {
    MACHO_MAGIC_64 = 0xfeedfacf,
    MACHO_OBJECT = 1, MACHO_CORE = 4, MACHO_LIBRARY = 6, MACHO_LINKER = 7, MACHO_SYMBOLS = 10, MACHO_KERNEL = 11,
    MACHO_FILESET = 12,
    MACHO_SUBTYPE_ARM64E = 2,
    MACHO_SEGMENT_PROTECTED = 8, /* SG_PROTECTED_VERSION_1 */
    MACHO_PROTECTION = 7         /* VM_PROT_READ, _WRITE, _EXECUTE: 1, 2, 4 */
};

enum macho_command_kind { /* LC_... */
    MACHO_REQUIRED = 0x80000000, /* LC_REQ_DYLD: who does not know the command must not load the file */
    MACHO_SEGMENT_32 = 0x1, MACHO_SYMTAB = 0x2, MACHO_THREAD = 0x4, MACHO_UNIX_THREAD = 0x5, MACHO_DYSYMTAB = 0xb,
    MACHO_LOAD_WEAK_DYLIB = 0x18, MACHO_SEGMENT_64 = 0x19, MACHO_RPATH = 0x1c, MACHO_CODE_SIGNATURE = 0x1d,
    MACHO_SPLIT_INFO = 0x1e, MACHO_REEXPORT_DYLIB = 0x1f, MACHO_ENCRYPTION_INFO = 0x21, MACHO_DYLD_INFO = 0x22,
    MACHO_UPWARD_DYLIB = 0x23, MACHO_FUNCTION_STARTS = 0x26, MACHO_MAIN = 0x28, MACHO_DATA_IN_CODE = 0x29,
    MACHO_SIGN_REQUIREMENTS = 0x2b, MACHO_ENCRYPTION_INFO_64 = 0x2c, MACHO_OPTIMIZATION_HINT = 0x2e,
    MACHO_EXPORTS_TRIE = 0x33, MACHO_CHAINED_FIXUPS = 0x34
};

enum macho_section_type { /* S_... */
    MACHO_ZERO_FILL = 1, MACHO_HUGE_ZERO_FILL = 0xc,
    MACHO_THREAD_DATA = 0x11, MACHO_THREAD_ZERO_FILL = 0x12, MACHO_THREAD_LAST = 0x15
};

enum { /* nlist_64.n_type and n_desc */
    MACHO_N_DEBUG = 0xe0, MACHO_N_PRIVATE = 0x10, MACHO_N_TYPE = 0x0e, MACHO_N_ABSOLUTE = 0x02, MACHO_N_SECTION = 0x0e,
    MACHO_N_EXTERNAL = 0x01, MACHO_N_WEAK_DEFINITION = 0x80
};

/* Whether [offset, offset + size) lies within [0, limit); no sum can overflow. */
static inline int macho_range_inside(uint64_t offset, uint64_t size, uint64_t limit) {
    return offset <= limit && size <= limit - offset;
}

/* Fills in the error and returns -1. `at`: offset in the file. */
static inline int macho_fail(struct rift_macho_error *error, int code, uint64_t at, uint64_t value,
                             const char *operation, const char *reason) {
    error->error.code = code;
    error->error.operation = operation;
    error->offset = at;
    error->value = value;
    error->reason = reason;
    return -1;
}

/* What the checks of one image share. */
struct macho_check {
    const struct rift_macho_image *image;
    struct rift_macho_summary *summary;
    struct rift_macho_error *error;
    uint64_t max_memory;
    struct macho_range {
        uint64_t start, end, file_start, file_end, at; /* at: offset of its load command in the image */
        int is_hole;                                   /* nothing may be there */
    } segment[RIFT_MACHO_SEGMENTS_MAX];                /* ascending by address; those that take no memory left out */
    uint32_t ranges;
    uint64_t entry_at, entry_offset; /* where the command stands; entry_offset: LC_MAIN's, in the image */
    int entry_is_offset;
};

/* Segments and sections (macho_segments.c). */
int macho_check_segment(struct macho_check *check, uint64_t at, uint32_t size);
int macho_check_layout(struct macho_check *check);

/* All other commands (macho_commands.c); *found in the summary. */
int macho_check_command(struct macho_check *check, uint64_t at, const struct macho_command *command);

#endif
