#include "elf_format.h"

struct load {
    uint64_t start, end, header;
};

/* Copies a structure out of the file; its range has been checked or is checked here. */
static int read_at(const uint8_t *bytes, uint64_t size, uint64_t offset, void *out, size_t length) {
    if (!elf_range_inside(offset, length, size))
        return -1;
    memcpy(out, bytes + offset, length);
    return 0;
}

static int check_header(const uint8_t *bytes, uint64_t size, struct elf_header *header,
                        struct rift_elf_error *error) {
    if (size < 16)
        return elf_fail(error, ENOEXEC, 0, size, "e_ident", "the file ends within its identification");
    memcpy(header->identity, bytes, 16);
    if (memcmp(header->identity, "\177ELF", 4) != 0)
        return elf_fail(error, ENOEXEC, 0, header->identity[0], "e_ident", "this is no ELF file");
    if (header->identity[4] != ELF_CLASS_64)
        return elf_fail(error, header->identity[4] == 1 ? ENOTSUP : ENOEXEC, 4, header->identity[4], "EI_CLASS",
                        "not a 64-bit file; build it with -m64");
    if (header->identity[5] != ELF_DATA_LITTLE)
        return elf_fail(error, header->identity[5] == 2 ? ENOTSUP : ENOEXEC, 5, header->identity[5], "EI_DATA",
                        "not little-endian; build it for x86-64 or little-endian AArch64");
    if (header->identity[6] != ELF_VERSION_CURRENT)
        return elf_fail(error, ENOEXEC, 6, header->identity[6], "EI_VERSION", "unknown version of ELF");
    if (read_at(bytes, size, 0, header, sizeof *header) != 0)
        return elf_fail(error, ENOEXEC, 0, size, "e_ident", "the file ends within its 64-byte header");
    if (header->machine != RIFT_ELF_X86_64 && header->machine != RIFT_ELF_AARCH64)
        return elf_fail(error, ENOTSUP, 18, header->machine, "e_machine", "not x86-64 or AArch64");
    if (header->type == 1)
        return elf_fail(error, ENOTSUP, 16, header->type, "e_type",
                        "a relocatable object file; link it, for example with gcc -static-pie -nostdlib");
    if (header->type == 4)
        return elf_fail(error, ENOTSUP, 16, header->type, "e_type", "a core dump, not an executable");
    if (header->type != RIFT_ELF_ET_EXEC && header->type != RIFT_ELF_ET_DYN)
        return elf_fail(error, ENOTSUP, 16, header->type, "e_type",
                        "neither an executable (ET_EXEC) nor position-independent (ET_DYN)");
    if (header->version != ELF_VERSION_CURRENT)
        return elf_fail(error, ENOEXEC, 20, header->version, "e_version", "unknown version of ELF");
    if (header->header_size != sizeof *header)
        return elf_fail(error, ENOEXEC, 52, header->header_size, "e_ehsize", "the header's size is not 64");
    return 0;
}

/* One of PT_LOAD: its own fields, then its place among the others. */
static int check_load(const struct elf_program_header *header, uint64_t at, uint64_t max_memory, struct load *loads,
                      struct rift_elf_summary *summary, struct rift_elf_error *error) {
    uint64_t end = header->address + header->memory_size;
    if (header->file_size > header->memory_size)
        return elf_fail(error, ENOEXEC, at + 32, header->file_size, "p_filesz", "larger than p_memsz");
    if ((header->alignment & (header->alignment - 1)) != 0)
        return elf_fail(error, ENOEXEC, at + 48, header->alignment, "p_align", "not a power of two");
    if (header->memory_size == 0)
        return 0;
    if (end <= header->address) /* an end of exactly 2^64 cannot be written down, and no guest needs it */
        return elf_fail(error, ENOEXEC, at + 40, header->memory_size, "p_memsz",
                        "the segment reaches the end of the address space or goes beyond it");
    if (header->memory_size > max_memory || summary->memory_size > max_memory - header->memory_size)
        return elf_fail(error, E2BIG, at + 40, header->memory_size, "p_memsz",
                        "the segments take more memory than max_memory allows");
    summary->memory_size += header->memory_size;
    if (header->alignment > summary->alignment)
        summary->alignment = header->alignment;

    uint32_t place = summary->loads++; /* insertion sort: linkers write them in order */
    while (place > 0 && loads[place - 1].start > header->address) {
        loads[place] = loads[place - 1];
        place--;
    }
    loads[place] = (struct load){header->address, end, at};
    return 0;
}

static int check_dynamic(const uint8_t *bytes, const struct elf_program_header *header, uint64_t at,
                         struct rift_elf_summary *summary, struct rift_elf_error *error) {
    if (summary->dynamic_entries != 0)
        return elf_fail(error, ENOEXEC, at, header->type, "p_type", "a second PT_DYNAMIC");
    uint64_t count = header->file_size / sizeof(struct elf_dynamic);
    if (count == 0)
        return elf_fail(error, ENOEXEC, at + 32, header->file_size, "p_filesz", "PT_DYNAMIC is too small for an entry");
    if (count > RIFT_ELF_DYNAMIC_MAX)
        count = RIFT_ELF_DYNAMIC_MAX;
    for (uint64_t index = 0; index < count; index++) {
        struct elf_dynamic entry;
        memcpy(&entry, bytes + header->offset + index * sizeof entry, sizeof entry);
        if (entry.tag == 0) {
            summary->dynamic_offset = header->offset;
            summary->dynamic_entries = index + 1;
            return 0;
        }
    }
    return elf_fail(error, ENOEXEC, header->offset, header->file_size, "PT_DYNAMIC",
                    "no DT_NULL ends the table within its size and 4096 entries");
}

static int check_interpreter(const uint8_t *bytes, const struct elf_program_header *header, uint64_t at,
                             struct rift_elf_summary *summary, struct rift_elf_error *error) {
    if (summary->interpreter_size != 0)
        return elf_fail(error, ENOEXEC, at, header->type, "p_type", "a second PT_INTERP");
    if (header->file_size < 2 || header->file_size > RIFT_ELF_INTERPRETER_MAX)
        return elf_fail(error, ENOEXEC, at + 32, header->file_size, "p_filesz", "no path of 1 to 4095 bytes");
    if (memchr(bytes + header->offset, 0, header->file_size) != bytes + header->offset + header->file_size - 1)
        return elf_fail(error, ENOEXEC, header->offset, 0, "PT_INTERP", "the path does not end with its only NUL");
    summary->interpreter_offset = header->offset;
    summary->interpreter_size = header->file_size - 1;
    return 0;
}

static int check_program_headers(const uint8_t *bytes, uint64_t size, const struct elf_header *file,
                                 uint64_t max_memory, struct rift_elf_summary *summary,
                                 struct rift_elf_error *error) {
    struct load loads[RIFT_ELF_PROGRAM_HEADERS_MAX];
    if (file->program_header_count == 0)
        return elf_fail(error, ENOEXEC, 56, 0, "e_phnum", "no program headers: nothing says what to load");
    if (file->program_header_size != sizeof(struct elf_program_header))
        return elf_fail(error, ENOEXEC, 54, file->program_header_size, "e_phentsize",
                        "the size of a program header is not 56");
    if (file->program_header_count > RIFT_ELF_PROGRAM_HEADERS_MAX)
        return elf_fail(error, E2BIG, 56, file->program_header_count, "e_phnum", "more than 1024 program headers");
    if (!elf_range_inside(file->program_headers, file->program_header_count * sizeof(struct elf_program_header), size))
        return elf_fail(error, ENOEXEC, 32, file->program_headers, "e_phoff",
                        "the program headers reach beyond the end of the file");
    if (file->program_headers < sizeof *file)
        return elf_fail(error, ENOEXEC, 32, file->program_headers, "e_phoff",
                        "the program headers overlap the file header");
    summary->program_headers = file->program_header_count;
    summary->program_header_offset = file->program_headers;
    summary->alignment = 1;

    for (uint32_t index = 0; index < file->program_header_count; index++) {
        struct elf_program_header header;
        uint64_t at = file->program_headers + index * sizeof header;
        int status = 0;
        memcpy(&header, bytes + at, sizeof header);
        if (header.type == 0) /* PT_NULL: the other fields have no meaning */
            continue;
        if (header.file_size != 0 && !elf_range_inside(header.offset, header.file_size, size))
            return elf_fail(error, ENOEXEC, at + 32, header.file_size, "p_filesz",
                            "p_offset and p_filesz reach beyond the end of the file");
        if (header.type == ELF_PT_LOAD)
            status = check_load(&header, at, max_memory, loads, summary, error);
        if (header.type == ELF_PT_DYNAMIC)
            status = check_dynamic(bytes, &header, at, summary, error);
        if (header.type == ELF_PT_INTERP)
            status = check_interpreter(bytes, &header, at, summary, error);
        if (header.type == ELF_PT_TLS)
            summary->has_tls = 1;
        if (status != 0)
            return status;
    }

    if (summary->loads == 0)
        return elf_fail(error, ENOEXEC, file->program_headers, 0, "p_type", "no PT_LOAD segment takes any memory");
    for (uint32_t index = 1; index < summary->loads; index++)
        if (loads[index].start < loads[index - 1].end)
            return elf_fail(error, ENOEXEC, loads[index].header + 16, loads[index].start, "p_vaddr",
                            "the segment overlaps another one");
    summary->lowest = loads[0].start;
    summary->highest = loads[summary->loads - 1].end;
    summary->entry = file->entry;
    if (file->entry == 0)
        return 0;
    for (uint32_t index = 0; index < summary->loads; index++)
        if (file->entry >= loads[index].start && file->entry < loads[index].end)
            return 0;
    return elf_fail(error, ENOEXEC, 24, file->entry, "e_entry", "the entry point lies outside every segment");
}

/* How many sections there are, and that their headers lie in the file; 0 if there are none. */
static int section_count(const uint8_t *bytes, uint64_t size, const struct elf_header *file, uint64_t *count,
                         struct rift_elf_error *error) {
    struct elf_section_header first;
    *count = file->section_header_count;
    if (file->section_headers == 0) {
        if (*count != 0)
            return elf_fail(error, ENOEXEC, 40, 0, "e_shoff", "sections are counted but their headers are nowhere");
        return 0;
    }
    if (*count == 0 && file->section_header_size == 0) /* some strippers leave e_shoff alone */
        return 0;
    if (file->section_header_size != sizeof first)
        return elf_fail(error, ENOEXEC, 58, file->section_header_size, "e_shentsize",
                        "the size of a section header is not 64");
    if (read_at(bytes, size, file->section_headers, &first, sizeof first) != 0)
        return elf_fail(error, ENOEXEC, 40, file->section_headers, "e_shoff",
                        "the section headers start beyond the end of the file");
    if (*count == 0) /* gABI: 0xff00 sections or more are counted in the first header's sh_size */
        *count = first.size;
    if (*count > RIFT_ELF_SECTIONS_MAX)
        return elf_fail(error, E2BIG, file->section_headers + 32, *count, "e_shnum", "more than 65536 sections");
    if (!elf_range_inside(file->section_headers, *count * sizeof first, size))
        return elf_fail(error, ENOEXEC, 40, file->section_headers, "e_shoff",
                        "the section headers reach beyond the end of the file");
    return 0;
}

static int check_sections(const uint8_t *bytes, uint64_t size, const struct elf_header *file,
                          struct rift_elf_summary *summary, struct rift_elf_error *error) {
    uint64_t count;
    if (section_count(bytes, size, file, &count, error) != 0)
        return -1;
    for (uint64_t index = 1; index < count; index++) {
        struct elf_section_header header;
        uint64_t at = file->section_headers + index * sizeof header;
        memcpy(&header, bytes + at, sizeof header);
        if (header.type == ELF_SHT_NULL || header.type == ELF_SHT_NOBITS)
            continue;
        if (!elf_range_inside(header.offset, header.size, size))
            return elf_fail(error, ENOEXEC, at + 32, header.size, "sh_size",
                            "sh_offset and sh_size reach beyond the end of the file");
    }
    summary->sections = (uint32_t)count;
    return 0;
}

int rift_elf_file_check(const uint8_t *bytes, uint64_t size, uint64_t max_memory, struct rift_elf_summary *summary,
                        struct rift_elf_error *error) {
    struct elf_header header;
    memset(summary, 0, sizeof *summary);
    if (check_header(bytes, size, &header, error) != 0)
        return -1;
    summary->machine = header.machine;
    summary->type = header.type;
    if (check_program_headers(bytes, size, &header, max_memory, summary, error) != 0)
        return -1;
    return check_sections(bytes, size, &header, summary, error);
}

int rift_elf_section_find(const uint8_t *bytes, uint64_t size, uint32_t first, uint32_t type, uint64_t flags,
                          struct rift_elf_section *section, struct rift_elf_error *error) {
    struct elf_header file;
    uint64_t count;
    if (read_at(bytes, size, 0, &file, sizeof file) != 0)
        return elf_fail(error, ENOEXEC, 0, size, "e_ident", "the file ends within its 64-byte header");
    if (section_count(bytes, size, &file, &count, error) != 0)
        return -1;
    for (uint64_t index = first; index < count; index++) {
        struct elf_section_header header;
        memcpy(&header, bytes + file.section_headers + index * sizeof header, sizeof header);
        if (header.type != type || (header.flags & flags) != flags)
            continue;
        if (type != ELF_SHT_NOBITS && !elf_range_inside(header.offset, header.size, size))
            return elf_fail(error, ENOEXEC, file.section_headers + index * sizeof header + 32, header.size, "sh_size",
                            "sh_offset and sh_size reach beyond the end of the file");
        *section = (struct rift_elf_section){
            .index = (uint32_t)index, .type = header.type, .link = header.link, .info = header.info,
            .flags = header.flags, .address = header.address, .offset = header.offset, .size = header.size,
            .entry_size = header.entry_size};
        return 1;
    }
    return 0;
}

int rift_elf_section_read(const uint8_t *bytes, uint64_t size, uint32_t index, struct rift_elf_section *section,
                          struct rift_elf_error *error) {
    struct elf_header file;
    struct elf_section_header header;
    uint64_t count = 0;
    if (read_at(bytes, size, 0, &file, sizeof file) != 0)
        return elf_fail(error, ENOEXEC, 0, size, "e_ident", "the file ends within its 64-byte header");
    if (section_count(bytes, size, &file, &count, error) != 0)
        return -1;
    if (index >= count)
        return elf_fail(error, ENOEXEC, file.section_headers, index, "sh_link", "there is no section of that index");
    memcpy(&header, bytes + file.section_headers + index * sizeof header, sizeof header);
    return rift_elf_section_find(bytes, size, index, header.type, header.flags, section, error);
}

int64_t rift_elf_string_length(const uint8_t *table, uint64_t size, uint64_t offset) {
    const uint8_t *end;
    if (offset >= size)
        return -1;
    uint64_t limit = size - offset;
    if (limit > RIFT_ELF_NAME_MAX)
        limit = RIFT_ELF_NAME_MAX;
    end = memchr(table + offset, 0, limit);
    return end == NULL ? -1 : end - (table + offset);
}
