/* LC_DYLD_CHAINED_FIXUPS (<mach-o/fixup-chains.h>): the pointers of a page are a linked list inside themselves, and the
 * command's data say where each page's list starts. */
#include "fixups.h"
#include "macho_format.h"

struct chains_header { /* dyld_chained_fixups_header */
    uint32_t version, starts, imports, symbols, import_count, import_format, symbol_format;
};

struct segment_starts { /* dyld_chained_starts_in_segment, without page_start[], 22 bytes */
    uint32_t size;
    uint16_t page_size, format;
    uint64_t offset;
    uint32_t largest; /* of 32-bit formats */
    uint16_t page_count;
};

enum {
    SEGMENT_STARTS = 22,
    PAGE_EMPTY = 0xffff,        /* DYLD_CHAINED_PTR_START_NONE */
    FORMAT_ADDRESS = 2,         /* DYLD_CHAINED_PTR_64: targets are addresses */
    FORMAT_OFFSET = 6,          /* DYLD_CHAINED_PTR_64_OFFSET: targets count from the header */
    IMPORT_PLAIN = 1, IMPORT_ADDEND = 2, IMPORT_WIDE = 3 /* DYLD_CHAINED_IMPORT, _ADDEND, _ADDEND64 */
};

/* The data of the command: [start, start + size) of the image. */
struct chains {
    const struct rift_macho_image *image;
    uint64_t start, size;
    struct chains_header header;
    struct rift_macho_error *error;
};

/* `at`: offset in the command's data. */
static int damaged(const struct chains *chains, uint64_t at, uint64_t value, const char *name, const char *reason) {
    return macho_fail(chains->error, ENOEXEC, chains->image->origin + chains->start + at, value, name, reason);
}

static int open_chains(struct chains *chains, uint64_t offset, uint64_t size) {
    struct chains_header *header = &chains->header;
    chains->start = offset;
    chains->size = size;
    if (!macho_range_inside(offset, size, chains->image->size))
        return damaged(chains, 0, size, "datasize", "the fixups reach beyond the end of the file");
    if (size < sizeof *header)
        return damaged(chains, 0, size, "datasize", "too small for the header of the fixups");
    memcpy(header, chains->image->bytes + offset, sizeof *header);
    if (header->version != 0)
        return macho_fail(chains->error, ENOTSUP, chains->image->origin + offset, header->version, "fixups_version",
                          "unknown version of chained fixups");
    return 0;
}

/* The pointer at `place` of the target: checks it, sets it, and tells how far the next one is; 0: it was the last. */
static int fix_pointer(struct rift_macho_fixer *fixer, const struct chains *chains, struct rift_macho_target *target,
                       uint64_t place, uint32_t format, uint64_t *distance) {
    uint64_t word, value, origin = chains->image->origin + target->offset;
    memcpy(&word, target->bytes + place, sizeof word);
    *distance = (word >> 51 & 0xfff) * 4;
    if (fixer->done++ == RIFT_MACHO_FIXUPS_MAX)
        return macho_fail(chains->error, E2BIG, origin + place, fixer->done, "chained fixups",
                          "more than 8388608 pointers");
    if (word >> 63 == 0) { /* dyld_chained_ptr_64_rebase */
        value = (word & 0xfffffffff) + fixer->slide + (format == FORMAT_OFFSET ? fixer->header_address : 0);
        value += (word >> 36 & 0xff) << 56;
    } else { /* dyld_chained_ptr_64_bind */
        uint64_t import = word & 0xffffff;
        if (import >= chains->header.import_count)
            return macho_fail(chains->error, ENOEXEC, origin + place, import, "chained fixups",
                              "there is no import of that number");
        if (import >= fixer->bound_count || fixer->bound[import] == RIFT_MACHO_UNBOUND)
            return macho_fail(chains->error, ENOENT, origin + place, import, "chained fixups",
                              "the symbol is not defined in the file");
        value = fixer->bound[import] + (fixer->bound[import] == 0 ? 0 : word >> 24 & 0xff);
    }
    target->touched = 1;
    if (fixer->write)
        memcpy(target->bytes + place, &value, sizeof value);
    return 0;
}

/* All pointers of a page; each lies behind the one before, so that the list ends. */
static int fix_page(struct rift_macho_fixer *fixer, const struct chains *chains, struct rift_macho_target *target,
                    uint64_t page, uint64_t page_size, uint64_t start, uint32_t format) {
    uint64_t place = page + start, distance = 0;
    uint64_t origin = chains->image->origin + target->offset;
    do {
        place += distance;
        if (place - page >= page_size || !macho_range_inside(place, 8, target->size))
            return macho_fail(chains->error, ENOEXEC, origin + page, place, "chained fixups",
                              "a pointer of this page lies outside the page or the file's part of its segment");
        if (fix_pointer(fixer, chains, target, place, format, &distance) != 0)
            return -1;
    } while (distance != 0);
    return 0;
}

static int fix_segment(struct rift_macho_fixer *fixer, const struct chains *chains, uint64_t at,
                       struct rift_macho_target *target) {
    struct segment_starts starts;
    const uint8_t *bytes = chains->image->bytes + chains->start + at;
    if (!macho_range_inside(at, SEGMENT_STARTS, chains->size))
        return damaged(chains, at, at, "seg_info_offset", "the segment's pages lie outside the fixups");
    memcpy(&starts, bytes, SEGMENT_STARTS);
    if (starts.format != FORMAT_ADDRESS && starts.format != FORMAT_OFFSET)
        return macho_fail(chains->error, ENOTSUP, chains->image->origin + chains->start + at + 6, starts.format,
                          "pointer_format", "only DYLD_CHAINED_PTR_64 (2) and _64_OFFSET (6) are supported");
    if (starts.page_size != 0x1000 && starts.page_size != 0x4000)
        return damaged(chains, at + 4, starts.page_size, "page_size", "neither 4 KiB nor 16 KiB");
    if (!macho_range_inside(at + SEGMENT_STARTS, (uint64_t)starts.page_count * 2, chains->size))
        return damaged(chains, at + 20, starts.page_count, "page_count", "the list of pages reaches beyond the fixups");
    if (starts.offset != target->address - fixer->header_address)
        return damaged(chains, at + 8, starts.offset, "segment_offset", "not where the segment is");
    for (uint32_t index = 0; index < starts.page_count; index++) {
        uint16_t start;
        memcpy(&start, bytes + SEGMENT_STARTS + 2 * (uint64_t)index, sizeof start);
        if (start != PAGE_EMPTY && fix_page(fixer, chains, target, (uint64_t)index * starts.page_size,
                                            starts.page_size, start, starts.format) != 0)
            return -1;
    }
    return 0;
}

int rift_macho_chains(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, struct rift_macho_error *error) {
    struct chains chains = {.image = fixer->image, .error = error};
    uint32_t count;
    if (open_chains(&chains, offset, size) != 0)
        return -1;
    uint64_t at = chains.header.starts;
    if (!macho_range_inside(at, sizeof count, size))
        return damaged(&chains, 4, at, "starts_offset", "the list of segments lies outside the fixups");
    memcpy(&count, chains.image->bytes + offset + at, sizeof count);
    if (count > fixer->target_count)
        return damaged(&chains, at, count, "seg_count", "more segments than the file has");
    if (!macho_range_inside(at + sizeof count, (uint64_t)count * 4, size))
        return damaged(&chains, at, count, "seg_count", "the list of segments reaches beyond the fixups");
    for (uint32_t index = 0; index < count; index++) {
        uint32_t place;
        memcpy(&place, chains.image->bytes + offset + at + sizeof count + 4 * (uint64_t)index, sizeof place);
        if (place != 0 && fix_segment(fixer, &chains, at + place, &fixer->targets[index]) != 0)
            return -1;
    }
    return 0;
}

int rift_macho_chained_import(const struct rift_macho_image *image, uint64_t offset, uint64_t size, uint64_t index,
                              struct rift_macho_import *import, struct rift_macho_error *error) {
    static const uint8_t entry_sizes[] = {0, 4, 8, 16};
    struct chains chains = {.image = image, .error = error};
    uint32_t words[4] = {0, 0, 0, 0};
    if (open_chains(&chains, offset, size) != 0)
        return -1;
    const struct chains_header *header = &chains.header;
    if (index >= header->import_count || index >= RIFT_MACHO_IMPORTS_MAX)
        return 0;
    if (header->import_format < IMPORT_PLAIN || header->import_format > IMPORT_WIDE)
        return macho_fail(error, ENOTSUP, image->origin + offset + 20, header->import_format, "imports_format",
                          "unknown format of imports");
    uint64_t entry_size = entry_sizes[header->import_format];
    uint64_t at = header->imports + index * entry_size;
    if (!macho_range_inside(at, entry_size, size))
        return damaged(&chains, 8, header->imports, "imports_offset", "the imports reach beyond the fixups");
    memcpy(words, image->bytes + offset + at, entry_size);
    memset(import, 0, sizeof *import);
    import->index = index;
    uint64_t name;
    if (header->import_format == IMPORT_WIDE) {
        uint32_t library = words[0] & 0xffff;
        import->library = library > 0xfff0 ? (int32_t)library - 0x10000 : (int32_t)library;
        import->is_weak = words[0] >> 16 & 1;
        import->addend = (uint64_t)words[3] << 32 | words[2];
        name = words[1];
    } else {
        uint32_t library = words[0] & 0xff;
        import->library = library > 0xf0 ? (int32_t)library - 0x100 : (int32_t)library;
        import->is_weak = words[0] >> 8 & 1;
        import->addend = (words[1] & 0x80000000) != 0 ? words[1] | 0xffffffff00000000 : words[1];
        name = words[0] >> 9;
    }
    if (header->symbol_format != 0 || header->symbols > size) /* compressed names, or none */
        return 1;
    int64_t length = rift_macho_string_length(image->bytes + offset + header->symbols, size - header->symbols, name);
    if (length > 0) {
        import->name = offset + header->symbols + name;
        import->name_size = (uint64_t)length;
    }
    return 1;
}
