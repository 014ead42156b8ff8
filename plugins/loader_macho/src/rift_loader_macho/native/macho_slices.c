/* Universal files (<mach-o/fat.h>): their own fields are big-endian. */
#include "macho_format.h"

enum {
    FAT_MAGIC = 0xcafebabe, FAT_MAGIC_64 = 0xcafebabf,
    ENTRY_32 = 20, ENTRY_64 = 32 /* sizes of fat_arch and fat_arch_64 */
};

static uint32_t big_32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static uint64_t big_64(const uint8_t *bytes) {
    return (uint64_t)big_32(bytes) << 32 | big_32(bytes + 4);
}

static int check_slice(const struct rift_macho_slice *slices, uint32_t index, uint64_t size, uint64_t table_end,
                       struct rift_macho_error *error) {
    const struct rift_macho_slice *slice = &slices[index];
    if (!macho_range_inside(slice->offset, slice->size, size))
        return macho_fail(error, ENOEXEC, slice->entry + 8, slice->offset, "fat_arch.offset",
                          "offset and size reach beyond the end of the file");
    if (slice->size == 0)
        return macho_fail(error, ENOEXEC, slice->entry + 12, 0, "fat_arch.size", "the image is empty");
    if (slice->offset < table_end)
        return macho_fail(error, ENOEXEC, slice->entry + 8, slice->offset, "fat_arch.offset",
                          "the image overlaps the header of the universal file");
    for (uint32_t other = 0; other < index; other++)
        if (slice->offset < slices[other].offset + slices[other].size &&
            slices[other].offset < slice->offset + slice->size)
            return macho_fail(error, ENOEXEC, slice->entry + 8, slice->offset, "fat_arch.offset",
                              "the image overlaps another one");
    return 0;
}

int rift_macho_slices(const uint8_t *bytes, uint64_t size, struct rift_macho_slice *slices,
                      struct rift_macho_error *error) {
    uint32_t magic = size < 4 ? 0 : big_32(bytes);
    if (magic != FAT_MAGIC && magic != FAT_MAGIC_64) {
        uint32_t cpu[2] = {0, 0}; /* cputype, cpusubtype */
        if (size >= 12)
            memcpy(cpu, bytes + 4, sizeof cpu);
        slices[0] = (struct rift_macho_slice){.cpu = cpu[0], .subtype = cpu[1], .size = size};
        return 1;
    }
    if (size < 8)
        return macho_fail(error, ENOEXEC, size, size, "fat_header", "the file ends within its 8-byte header");
    uint32_t count = big_32(bytes + 4), entry_size = magic == FAT_MAGIC ? ENTRY_32 : ENTRY_64;
    if (count == 0)
        return macho_fail(error, ENOEXEC, 4, 0, "nfat_arch", "the universal file holds no image");
    if (count > RIFT_MACHO_SLICES_MAX)
        return macho_fail(error, E2BIG, 4, count, "nfat_arch", "more than 64 images");
    uint64_t table_end = 8 + (uint64_t)count * entry_size;
    if (table_end > size)
        return macho_fail(error, ENOEXEC, 4, count, "nfat_arch", "the file ends within the list of its images");
    for (uint32_t index = 0; index < count; index++) {
        uint64_t at = 8 + (uint64_t)index * entry_size;
        const uint8_t *entry = bytes + at;
        slices[index] = (struct rift_macho_slice){.cpu = big_32(entry), .subtype = big_32(entry + 4), .entry = at};
        slices[index].offset = magic == FAT_MAGIC ? big_32(entry + 8) : big_64(entry + 8);
        slices[index].size = magic == FAT_MAGIC ? big_32(entry + 12) : big_64(entry + 16);
        if (check_slice(slices, index, size, table_end, error) != 0)
            return -1;
    }
    return (int)count;
}
