/* LC_SEGMENT_64 and the sections in it. */
#include "macho_format.h"

static int is_zero_fill(uint32_t type) {
    return type == MACHO_ZERO_FILL || type == MACHO_HUGE_ZERO_FILL || type == MACHO_THREAD_ZERO_FILL;
}

static int check_section(struct macho_check *check, const struct macho_segment *segment,
                         const struct macho_section *section, uint64_t at) {
    struct rift_macho_summary *summary = check->summary;
    const struct rift_macho_image *image = check->image;
    uint32_t type = section->flags & 0xff;
    if (summary->sections == RIFT_MACHO_SECTIONS_MAX)
        return macho_fail(check->error, E2BIG, image->origin + at, summary->sections + 1, "nsects",
                          "more than 255 sections");
    if (section->alignment > 30)
        return macho_fail(check->error, ENOEXEC, image->origin + at + 52, section->alignment, "align",
                          "sections are not aligned to more than a page of 1 GiB (2^30)");
    if (section->size != 0 && (section->address < segment->address ||
                               !macho_range_inside(section->address - segment->address, section->size,
                                                   segment->memory_size)))
        return macho_fail(check->error, ENOEXEC, image->origin + at + 32, section->address, "addr",
                          "the section reaches beyond its segment");
    if (!is_zero_fill(type) && section->offset != 0 && !macho_range_inside(section->offset, section->size, image->size))
        return macho_fail(check->error, ENOEXEC, image->origin + at + 48, section->offset, "offset",
                          "offset and size of the section reach beyond the end of the file");
    if (type >= MACHO_THREAD_DATA && type <= MACHO_THREAD_LAST)
        summary->has_thread_data = 1;
    if (1ull << section->alignment > summary->alignment)
        summary->alignment = 1ull << section->alignment;
    summary->section[summary->sections++] = (struct rift_macho_section){
        .address = section->address, .end = section->address + section->size, .type = type};
    return 0;
}

/* Puts a segment that takes memory into its place among the others. */
static int take_segment(struct macho_check *check, const struct macho_segment *segment, uint64_t at) {
    struct rift_macho_summary *summary = check->summary;
    uint64_t origin = check->image->origin;
    uint64_t end = segment->address + segment->memory_size;
    if (end <= segment->address) /* an end of exactly 2^64 cannot be written down, and no guest needs it */
        return macho_fail(check->error, ENOEXEC, origin + at + 32, segment->memory_size, "vmsize",
                          "the segment reaches the end of the address space or goes beyond it");
    int is_hole = (segment->protection & MACHO_PROTECTION) == 0 && segment->file_size == 0; /* __PAGEZERO */
    struct macho_range range = {segment->address, end,     segment->offset, segment->offset + segment->file_size,
                                at,               is_hole};
    uint32_t place = check->ranges++; /* insertion sort: linkers write them in order */
    for (; place > 0 && check->segment[place - 1].start > range.start; place--)
        check->segment[place] = check->segment[place - 1];
    check->segment[place] = range;
    if (is_hole)
        return 0;

    if (segment->memory_size > check->max_memory ||
        summary->memory_size > check->max_memory - segment->memory_size)
        return macho_fail(check->error, E2BIG, origin + at + 32, segment->memory_size, "vmsize",
                          "the segments take more memory than max_memory allows");
    if (summary->memory_size == 0 || segment->address < summary->lowest)
        summary->lowest = segment->address;
    if (end > summary->highest)
        summary->highest = end;
    summary->memory_size += segment->memory_size;
    if (segment->offset == 0 && segment->file_size != 0 && !summary->has_header) {
        summary->has_header = 1;
        summary->header_address = segment->address;
    }
    return 0;
}

int macho_check_segment(struct macho_check *check, uint64_t at, uint32_t size) {
    const struct rift_macho_image *image = check->image;
    struct macho_segment segment;
    uint64_t origin = image->origin;
    if (size < sizeof segment)
        return macho_fail(check->error, ENOEXEC, origin + at + 4, size, "cmdsize", "too small for a segment");
    memcpy(&segment, image->bytes + at, sizeof segment);
    if (segment.sections != (size - sizeof segment) / sizeof(struct macho_section) ||
        (size - sizeof segment) % sizeof(struct macho_section) != 0)
        return macho_fail(check->error, ENOEXEC, origin + at + 64, segment.sections, "nsects",
                          "the command's size does not fit its sections");
    if (check->summary->segments == RIFT_MACHO_SEGMENTS_MAX)
        return macho_fail(check->error, E2BIG, origin + at, RIFT_MACHO_SEGMENTS_MAX + 1, "LC_SEGMENT_64",
                          "more than 256 segments");
    check->summary->segments++;
    if (segment.file_size > segment.memory_size)
        return macho_fail(check->error, ENOEXEC, origin + at + 48, segment.file_size, "filesize",
                          "larger than vmsize");
    if (segment.file_size != 0 && !macho_range_inside(segment.offset, segment.file_size, image->size))
        return macho_fail(check->error, ENOEXEC, origin + at + 48, segment.file_size, "filesize",
                          "fileoff and filesize reach beyond the end of the file");
    if ((segment.flags & MACHO_SEGMENT_PROTECTED) != 0)
        return macho_fail(check->error, ENOTSUP, origin + at + 68, segment.flags, "flags", "the segment is encrypted");
    if (segment.memory_size != 0 && take_segment(check, &segment, at) != 0)
        return -1;
    for (uint32_t index = 0; index < segment.sections; index++) {
        struct macho_section section;
        uint64_t place = at + sizeof segment + index * sizeof section;
        memcpy(&section, image->bytes + place, sizeof section);
        if (check_section(check, &segment, &section, place) != 0)
            return -1;
    }
    return 0;
}

int macho_check_layout(struct macho_check *check) {
    if (check->summary->memory_size == 0)
        return macho_fail(check->error, ENOEXEC, check->image->origin + 16, check->summary->segments, "ncmds",
                          "no segment takes any memory");
    for (uint32_t index = 1; index < check->ranges; index++)
        if (check->segment[index].start < check->segment[index - 1].end)
            return macho_fail(check->error, ENOEXEC, check->image->origin + check->segment[index].at + 24,
                              check->segment[index].start, "vmaddr", "the segment overlaps another one");
    return 0;
}
