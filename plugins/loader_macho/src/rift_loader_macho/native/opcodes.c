/* LC_DYLD_INFO: pointers in a little language of opcodes (<mach-o/loader.h>, REBASE_OPCODE_... and BIND_OPCODE_...): the
 * high four bits of a byte say what to do, the low four are a number, and longer numbers follow as LEB128. */
#include "fixups.h"
#include "macho_format.h"

/* The opcodes that are left; `at` is the current one. */
struct opcodes {
    const struct rift_macho_image *image;
    uint64_t next, end, at;
    const char *name;
    struct rift_macho_error *error;
};

static int damaged(const struct opcodes *opcodes, uint64_t value, const char *reason) {
    return macho_fail(opcodes->error, ENOEXEC, opcodes->image->origin + opcodes->at, value, opcodes->name, reason);
}

static int start(struct opcodes *opcodes, uint64_t offset, uint64_t size) {
    opcodes->next = opcodes->at = offset;
    opcodes->end = offset + size;
    if (!macho_range_inside(offset, size, opcodes->image->size))
        return damaged(opcodes, size, "the opcodes reach beyond the end of the file");
    return 0;
}

static int read_number(struct opcodes *opcodes, uint64_t *value) {
    *value = 0;
    for (uint32_t shift = 0; shift < 70; shift += 7) {
        if (opcodes->next == opcodes->end)
            return damaged(opcodes, *value, "the opcodes end within a number");
        uint64_t byte = opcodes->image->bytes[opcodes->next++];
        if (shift == 63 && (byte & 0x7e) != 0)
            break;
        *value |= (byte & 0x7f) << shift;
        if ((byte & 0x80) == 0)
            return 0;
    }
    return damaged(opcodes, *value, "a number of more than 64 bits");
}

/* Signed numbers are only passed over. */
static int skip_signed(struct opcodes *opcodes) {
    for (uint32_t count = 0; count < 10; count++) {
        if (opcodes->next == opcodes->end)
            return damaged(opcodes, count, "the opcodes end within a number");
        if ((opcodes->image->bytes[opcodes->next++] & 0x80) == 0)
            return 0;
    }
    return damaged(opcodes, 10, "a number of more than 64 bits");
}

/* Where the next pointer stands: a segment, and an offset in it that may be anything until it is used. */
struct cursor {
    struct rift_macho_target *target;
    uint64_t offset;
};

/* Counts a pointer and checks where it stands. */
static int check_word(struct rift_macho_fixer *fixer, const struct opcodes *opcodes, const struct cursor *cursor) {
    const struct rift_macho_target *target = cursor->target;
    if (target == NULL)
        return damaged(opcodes, 0, "a pointer before any segment is named");
    if (!macho_range_inside(cursor->offset, 8, target->size))
        return damaged(opcodes, target->address + cursor->offset,
                       "the pointer lies outside the file's part of its segment");
    if (fixer->done++ == RIFT_MACHO_FIXUPS_MAX)
        return macho_fail(opcodes->error, E2BIG, opcodes->image->origin + opcodes->at, fixer->done, opcodes->name,
                          "more than 8388608 pointers");
    return 0;
}

static int rebase_word(struct rift_macho_fixer *fixer, const struct opcodes *opcodes, const struct cursor *cursor) {
    uint64_t word;
    if (check_word(fixer, opcodes, cursor) != 0)
        return -1;
    if (fixer->slide == 0)
        return 0;
    cursor->target->touched = 1;
    if (!fixer->write)
        return 0;
    memcpy(&word, cursor->target->bytes + cursor->offset, sizeof word);
    word += fixer->slide;
    memcpy(cursor->target->bytes + cursor->offset, &word, sizeof word);
    return 0;
}

static int rebase_words(struct rift_macho_fixer *fixer, const struct opcodes *opcodes, struct cursor *cursor,
                        uint64_t count, uint64_t skip) {
    for (; count > 0; count--) {
        if (rebase_word(fixer, opcodes, cursor) != 0)
            return -1;
        cursor->offset += 8 + skip; /* wraps at most into an offset that is refused */
    }
    return 0;
}

enum rebase_opcode {
    REBASE_DONE = 0, REBASE_TYPE = 1, REBASE_SEGMENT = 2, REBASE_ADD = 3, REBASE_ADD_SCALED = 4, REBASE_TIMES = 5,
    REBASE_MANY_TIMES = 6, REBASE_AND_ADD = 7, REBASE_TIMES_SKIPPING = 8,
    REBASE_POINTER = 1 /* the type: a whole pointer */
};

static int rebase_opcode(struct rift_macho_fixer *fixer, struct opcodes *opcodes, struct cursor *cursor,
                         uint8_t opcode) {
    uint64_t low = opcode & 15, count, skip;
    switch (opcode >> 4) {
    case REBASE_TYPE:
        if (low == REBASE_POINTER)
            return 0;
        return macho_fail(opcodes->error, ENOTSUP, opcodes->image->origin + opcodes->at, low, opcodes->name,
                          "only whole pointers are rebased, no instructions (rebase type)");
    case REBASE_SEGMENT:
        if (low >= fixer->target_count)
            return damaged(opcodes, low, "there is no segment of that number");
        cursor->target = &fixer->targets[low];
        return read_number(opcodes, &cursor->offset);
    case REBASE_ADD:
        if (read_number(opcodes, &skip) != 0)
            return -1;
        cursor->offset += skip;
        return 0;
    case REBASE_ADD_SCALED: cursor->offset += low * 8; return 0;
    case REBASE_TIMES: return rebase_words(fixer, opcodes, cursor, low, 0);
    case REBASE_MANY_TIMES:
        if (read_number(opcodes, &count) != 0)
            return -1;
        return rebase_words(fixer, opcodes, cursor, count, 0);
    case REBASE_AND_ADD:
        if (read_number(opcodes, &skip) != 0)
            return -1;
        return rebase_words(fixer, opcodes, cursor, 1, skip);
    case REBASE_TIMES_SKIPPING:
        if (read_number(opcodes, &count) != 0 || read_number(opcodes, &skip) != 0)
            return -1;
        return rebase_words(fixer, opcodes, cursor, count, skip);
    default: return damaged(opcodes, opcode, "unknown opcode");
    }
}

int rift_macho_rebase(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, struct rift_macho_error *error) {
    struct opcodes opcodes = {.image = fixer->image, .name = "rebase opcodes", .error = error};
    struct cursor cursor = {NULL, 0};
    if (start(&opcodes, offset, size) != 0)
        return -1;
    while (opcodes.next < opcodes.end) {
        opcodes.at = opcodes.next;
        uint8_t opcode = opcodes.image->bytes[opcodes.next++];
        if (opcode >> 4 == REBASE_DONE)
            return 0;
        if (rebase_opcode(fixer, &opcodes, &cursor, opcode) != 0)
            return -1;
    }
    return 0;
}

enum bind_opcode {
    BIND_DONE = 0, BIND_LIBRARY = 1, BIND_LIBRARY_NUMBER = 2, BIND_LIBRARY_SPECIAL = 3, BIND_SYMBOL = 4, BIND_TYPE = 5,
    BIND_ADDEND = 6, BIND_SEGMENT = 7, BIND_ADD = 8, BIND_ONE = 9, BIND_AND_ADD = 10, BIND_AND_ADD_SCALED = 11,
    BIND_TIMES_SKIPPING = 12,
    BIND_WEAK_IMPORT = 1 /* BIND_SYMBOL_FLAGS_WEAK_IMPORT */
};

static int read_symbol(struct opcodes *opcodes, uint8_t flags, struct rift_macho_import *import) {
    const uint8_t *name = opcodes->image->bytes + opcodes->next;
    const uint8_t *end = memchr(name, 0, opcodes->end - opcodes->next);
    if (end == NULL)
        return damaged(opcodes, flags, "the opcodes end within a symbol's name");
    import->name = opcodes->next;
    import->name_size = (uint64_t)(end - name);
    import->is_weak = (flags & BIND_WEAK_IMPORT) != 0;
    opcodes->next += import->name_size + 1;
    return 0;
}

/* 1 if it sets a pointer of a symbol from elsewhere, 0 if it does not or that symbol may be missing, -1 with the error. */
static int bind_words(struct rift_macho_fixer *fixer, const struct opcodes *opcodes, struct cursor *cursor,
                      const struct rift_macho_import *import, uint64_t count, uint64_t skip) {
    if (count > 0 && !import->is_weak)
        return 1;
    for (; count > 0; count--) {
        if (check_word(fixer, opcodes, cursor) != 0)
            return -1;
        cursor->target->touched = 1;
        if (fixer->write)
            memset(cursor->target->bytes + cursor->offset, 0, 8);
        cursor->offset += 8 + skip;
    }
    return 0;
}

static int bind_opcode(struct rift_macho_fixer *fixer, struct opcodes *opcodes, struct cursor *cursor, uint8_t opcode,
                       struct rift_macho_import *import) {
    uint64_t low = opcode & 15, number, skip;
    switch (opcode >> 4) {
    case BIND_LIBRARY: import->library = (int32_t)low; return 0;
    case BIND_LIBRARY_NUMBER:
        if (read_number(opcodes, &number) != 0)
            return -1;
        import->library = number < INT32_MAX ? (int32_t)number : INT32_MAX;
        return 0;
    case BIND_LIBRARY_SPECIAL: import->library = low == 0 ? 0 : (int32_t)low - 16; return 0;
    case BIND_SYMBOL: return read_symbol(opcodes, opcode & 15, import);
    case BIND_TYPE: return 0;
    case BIND_ADDEND: return skip_signed(opcodes);
    case BIND_SEGMENT:
        if (low >= fixer->target_count)
            return damaged(opcodes, low, "there is no segment of that number");
        cursor->target = &fixer->targets[low];
        return read_number(opcodes, &cursor->offset);
    case BIND_ADD:
        if (read_number(opcodes, &skip) != 0)
            return -1;
        cursor->offset += skip;
        return 0;
    case BIND_ONE: return bind_words(fixer, opcodes, cursor, import, 1, 0);
    case BIND_AND_ADD:
        if (read_number(opcodes, &skip) != 0)
            return -1;
        return bind_words(fixer, opcodes, cursor, import, 1, skip);
    case BIND_AND_ADD_SCALED: return bind_words(fixer, opcodes, cursor, import, 1, low * 8);
    case BIND_TIMES_SKIPPING:
        if (read_number(opcodes, &number) != 0 || read_number(opcodes, &skip) != 0)
            return -1;
        return bind_words(fixer, opcodes, cursor, import, number, skip);
    default: return damaged(opcodes, opcode, "unknown opcode");
    }
}

int rift_macho_bind(struct rift_macho_fixer *fixer, uint64_t offset, uint64_t size, int is_lazy,
                    struct rift_macho_import *import, struct rift_macho_error *error) {
    struct opcodes opcodes = {.image = fixer->image, .name = "bind opcodes", .error = error};
    struct cursor cursor = {NULL, 0};
    memset(import, 0, sizeof *import);
    if (start(&opcodes, offset, size) != 0)
        return -1;
    while (opcodes.next < opcodes.end) {
        opcodes.at = opcodes.next;
        uint8_t opcode = opcodes.image->bytes[opcodes.next++];
        if (opcode >> 4 == BIND_DONE && !is_lazy)
            return 0;
        if (opcode >> 4 == BIND_DONE) /* lazy: the end of one symbol's opcodes, or padding */
            continue;
        int status = bind_opcode(fixer, &opcodes, &cursor, opcode, import);
        if (status != 0)
            return status;
    }
    return 0;
}
