#include "macho_format.h"

/* File types that are something else than a program, and what to do about them. */
static const char *refusal_of(uint32_t type) {
    switch (type) {
    case MACHO_OBJECT: return "an object file; link it, for example with ld64.lld -bundle";
    case MACHO_CORE: return "a core dump, not an executable";
    case MACHO_LIBRARY: return "a dynamic library; link it with -bundle instead of -dylib";
    case MACHO_LINKER: return "a dynamic linker";
    case MACHO_SYMBOLS: return "a file of debugging symbols (dSYM), which has no contents; load the program itself";
    case MACHO_KERNEL: return "a kernel extension; link it with -bundle instead of -kext";
    case MACHO_FILESET: return "a set of kernel files";
    default: return "neither an executable (MH_EXECUTE), a bundle (MH_BUNDLE) nor a firmware image (MH_PRELOAD)";
    }
}

static int check_magic(const struct rift_macho_image *image, struct rift_macho_error *error) {
    uint32_t magic = 0;
    if (image->size < sizeof magic)
        return macho_fail(error, ENOEXEC, image->origin + image->size, image->size, "magic",
                          "the image ends within its magic number");
    memcpy(&magic, image->bytes, sizeof magic);
    switch (magic) {
    case MACHO_MAGIC_64: return 0;
    case 0xfeedface: /* MH_MAGIC */
        return macho_fail(error, ENOTSUP, image->origin, magic, "magic", "not a 64-bit file; build it with -m64");
    case 0xcefaedfe: /* MH_CIGAM, MH_CIGAM_64 */
    case 0xcffaedfe:
        return macho_fail(error, ENOTSUP, image->origin, magic, "magic",
                          "not little-endian; build it for x86_64 or arm64");
    default: return macho_fail(error, ENOEXEC, image->origin, magic, "magic", "this is no Mach-O image");
    }
}

static int check_header(const struct rift_macho_image *image, struct macho_header *header,
                        struct rift_macho_error *error) {
    uint64_t origin = image->origin;
    if (check_magic(image, error) != 0)
        return -1;
    if (image->size < sizeof *header)
        return macho_fail(error, ENOEXEC, origin + image->size, image->size, "mach_header_64",
                          "the image ends within its 32-byte header");
    memcpy(header, image->bytes, sizeof *header);
    if (header->cpu != RIFT_MACHO_X86_64 && header->cpu != RIFT_MACHO_ARM64)
        return macho_fail(error, ENOTSUP, origin + 4, header->cpu, "cputype", "not x86_64 or arm64");
    if (header->cpu == RIFT_MACHO_ARM64 && (header->subtype & 0xffffff) == MACHO_SUBTYPE_ARM64E)
        return macho_fail(error, ENOTSUP, origin + 8, header->subtype, "cpusubtype",
                          "arm64e: its pointers are signed with keys of the process that dyld loads it into; "
                          "build it with -arch arm64");
    if (header->type != RIFT_MACHO_EXECUTE && header->type != RIFT_MACHO_BUNDLE && header->type != RIFT_MACHO_PRELOAD)
        return macho_fail(error, ENOTSUP, origin + 12, header->type, "filetype", refusal_of(header->type));
    if (header->commands > RIFT_MACHO_COMMANDS_MAX)
        return macho_fail(error, E2BIG, origin + 16, header->commands, "ncmds", "more than 4096 load commands");
    if (header->commands_size > RIFT_MACHO_COMMANDS_SIZE_MAX)
        return macho_fail(error, E2BIG, origin + 20, header->commands_size, "sizeofcmds",
                          "more than 1 MiB of load commands");
    if (!macho_range_inside(sizeof *header, header->commands_size, image->size))
        return macho_fail(error, ENOEXEC, origin + 20, header->commands_size, "sizeofcmds",
                          "the load commands reach beyond the end of the file");
    return 0;
}

static int check_commands(struct macho_check *check, const struct macho_header *header) {
    const struct rift_macho_image *image = check->image;
    uint64_t at = sizeof *header, end = sizeof *header + header->commands_size;
    for (uint32_t index = 0; index < header->commands; index++) {
        struct macho_command command;
        if (!macho_range_inside(at, sizeof command, end))
            return macho_fail(check->error, ENOEXEC, image->origin + 16, header->commands, "ncmds",
                              "there is no room for so many commands in sizeofcmds");
        memcpy(&command, image->bytes + at, sizeof command);
        if (command.size < sizeof command || command.size % 4 != 0)
            return macho_fail(check->error, ENOEXEC, image->origin + at + 4, command.size, "cmdsize",
                              "smaller than a command, or no multiple of 4");
        if (!macho_range_inside(at, command.size, end))
            return macho_fail(check->error, ENOEXEC, image->origin + at + 4, command.size, "cmdsize",
                              "the command reaches beyond sizeofcmds");
        int status = command.kind == MACHO_SEGMENT_64 ? macho_check_segment(check, at, command.size)
                                                      : macho_check_command(check, at, &command);
        if (status != 0)
            return -1;
        at += command.size;
    }
    return 0;
}

/* Turns what an entry command names into an address inside a segment. */
static int check_entry(struct macho_check *check) {
    struct rift_macho_summary *summary = check->summary;
    if (!summary->has_entry)
        return 0;
    for (uint32_t index = 0; index < check->ranges; index++) {
        const struct macho_range *range = &check->segment[index];
        if (range->is_hole)
            continue;
        if (!check->entry_is_offset && summary->entry >= range->start && summary->entry < range->end)
            return 0;
        if (check->entry_is_offset && check->entry_offset >= range->file_start &&
            check->entry_offset < range->file_end) {
            summary->entry = range->start + (check->entry_offset - range->file_start);
            return 0;
        }
    }
    if (check->entry_is_offset)
        return macho_fail(check->error, ENOEXEC, check->image->origin + check->entry_at + 8, check->entry_offset,
                          "entryoff", "the entry point lies outside the file's part of every segment");
    return macho_fail(check->error, ENOEXEC, check->image->origin + check->entry_at, summary->entry, "pc",
                      "the entry point lies outside every segment");
}

int rift_macho_image_check(const struct rift_macho_image *image, uint64_t max_memory,
                           struct rift_macho_summary *summary, struct rift_macho_error *error) {
    struct macho_header header;
    struct macho_check check = {.image = image, .summary = summary, .error = error, .max_memory = max_memory};
    memset(summary, 0, sizeof *summary);
    if (check_header(image, &header, error) != 0)
        return -1;
    summary->cpu = header.cpu;
    summary->subtype = header.subtype;
    summary->type = header.type;
    summary->flags = header.flags;
    summary->commands = header.commands;
    summary->commands_size = header.commands_size;
    summary->alignment = 1;
    if (check_commands(&check, &header) != 0 || macho_check_layout(&check) != 0)
        return -1;
    return check_entry(&check);
}

int64_t rift_macho_string_length(const uint8_t *table, uint64_t size, uint64_t offset) {
    if (offset >= size)
        return -1;
    uint64_t limit = size - offset < 65536 ? size - offset : 65536;
    const uint8_t *end = memchr(table + offset, 0, limit);
    return end == NULL ? -1 : end - (table + offset);
}
