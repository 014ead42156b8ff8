/* Checks of a Mach-O file's structure. Every offset, count and size is compared with the file's length before
 * anybody, in C or in Python, relies on it. The file's bytes are hostile: each field is read once.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_MACHO_CHECK_H
#define RIFT_MACHO_CHECK_H

#include "rift_abi.h"

/* What is wrong with a file.
 * error.code: ENOEXEC damaged, ENOTSUP of a kind that cannot be loaded, E2BIG an absurd count, ENOENT a symbol from
 * elsewhere (value: its number), ENOMEM. error.operation: the field's name in <mach-o/loader.h>, or "".
 * offset: where in the file it stands; value: what stands there; reason: a sentence's end, static. */
struct rift_macho_error {
    struct rift_error error;
    uint64_t offset, value;
    const char *reason;
};

enum rift_macho_number {
    RIFT_MACHO_X86_64 = 0x01000007,   /* CPU_TYPE_X86_64 */
    RIFT_MACHO_ARM64 = 0x0100000c,    /* CPU_TYPE_ARM64 */
    RIFT_MACHO_EXECUTE = 2,           /* MH_EXECUTE */
    RIFT_MACHO_PRELOAD = 5,           /* MH_PRELOAD */
    RIFT_MACHO_BUNDLE = 8,            /* MH_BUNDLE */
    RIFT_MACHO_PIE = 0x200000,        /* MH_PIE */
    RIFT_MACHO_SLICES_MAX = 64,       /* universal files in use have two or three */
    RIFT_MACHO_COMMANDS_MAX = 4096,   /* linkers write about fifteen, and one a library */
    RIFT_MACHO_COMMANDS_SIZE_MAX = 1048576,
    RIFT_MACHO_SEGMENTS_MAX = 256,    /* linkers write about five */
    RIFT_MACHO_SECTIONS_MAX = 255     /* MAX_SECT: a symbol names its section by one byte */
};

/* One image: the whole file, or one of a universal file's. `bytes` is where it starts, `origin` where that is in
 * the file; offsets inside the image count from there. */
struct rift_macho_image {
    const uint8_t *bytes;
    uint64_t size;
    uint64_t origin;
};

/* An image of a universal file; `entry` is where in the file it is described. */
struct rift_macho_slice {
    uint32_t cpu, subtype;
    uint64_t offset, size, entry;
};

/* Sections by the number that symbols name them by, less one. `end` is the first address behind it. */
struct rift_macho_section {
    uint64_t address, end;
    uint32_t type; /* of section_64.flags, the low byte */
    uint32_t reserved;
};

/* What a checked image holds. Addresses are those of the file, without slide; *_at are offsets of load commands
 * in the image, 0: there is none. A segment without permissions and without bytes (__PAGEZERO) counts nowhere. */
struct rift_macho_summary {
    uint32_t cpu, subtype, type, flags;
    uint32_t commands, commands_size, segments, sections;
    uint32_t has_thread_data, is_universal;
    uint64_t symbols_at, dynamic_symbols_at, dyld_info_at, chained_fixups_at;
    uint64_t lowest, highest, memory_size; /* over all segments; memory_size is the sum */
    uint64_t alignment;                    /* largest of a section, at least 1, a power of two */
    uint64_t header_address;               /* where the image's first byte appears; has_header 0: nowhere */
    uint64_t entry;
    uint32_t has_header, has_entry;
    struct rift_macho_section section[255];
};

/* The images of a universal file, or the one of a thin file. Returns how many, or -1 with *error filled in. */
int rift_macho_slices(const uint8_t *bytes, uint64_t size, struct rift_macho_slice *slices,
                      struct rift_macho_error *error);

/* Checks header, load commands, segments, sections, the tables that they name, and the entry point; segments may
 * share pages but no byte, and take at most max_memory bytes. Returns 0, or -1 with *error filled in. */
int rift_macho_image_check(const struct rift_macho_image *image, uint64_t max_memory,
                           struct rift_macho_summary *summary, struct rift_macho_error *error);

/* Length of the string at `offset` of `size` bytes at `table`, or -1 if it starts outside, is not terminated inside
 * or is longer than 64 KiB. */
int64_t rift_macho_string_length(const uint8_t *table, uint64_t size, uint64_t offset);

#endif
