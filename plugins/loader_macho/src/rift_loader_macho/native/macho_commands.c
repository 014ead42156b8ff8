/* The load commands beside segments. */
#include "macho_format.h"

static int fail_at(struct macho_check *check, int code, uint64_t at, uint64_t value, const char *operation,
                   const char *reason) {
    return macho_fail(check->error, code, check->image->origin + at, value, operation, reason);
}

/* Copies a command out of the image; its own size must be that of its structure or more. */
static int read_command(struct macho_check *check, uint64_t at, const struct macho_command *command, void *out,
                        size_t size) {
    if (command->size < size)
        return fail_at(check, ENOEXEC, at + 4, command->size, "cmdsize", "too small for a command of its kind");
    memcpy(out, check->image->bytes + at, size);
    return 0;
}

/* A table somewhere in the file; an empty one may stand anywhere. */
static int check_table(struct macho_check *check, uint64_t at, uint64_t offset, uint64_t count, uint64_t entry,
                       const char *name) {
    if (count == 0 || macho_range_inside(offset, count * entry, check->image->size))
        return 0;
    return fail_at(check, ENOEXEC, at, offset, name, "the table reaches beyond the end of the file");
}

/* Remembers where a command stands of which there can be one only. */
static int take_single(struct macho_check *check, uint64_t at, uint64_t *place, const char *name) {
    if (*place != 0)
        return fail_at(check, ENOEXEC, at, *place, name, "a second command of this kind");
    *place = at;
    return 0;
}

static int check_symbols(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct macho_symbol_table table;
    if (read_command(check, at, command, &table, sizeof table) != 0 ||
        check_table(check, at + 8, table.symbols, table.count, sizeof(struct macho_symbol), "symoff") != 0 ||
        check_table(check, at + 16, table.names, table.names_size, 1, "stroff") != 0)
        return -1;
    return take_single(check, at, &check->summary->symbols_at, "LC_SYMTAB");
}

static int check_dynamic_symbols(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct macho_dynamic_symbols table;
    if (read_command(check, at, command, &table, sizeof table) != 0 ||
        check_table(check, at + 32, table.contents, table.content_count, 8, "tocoff") != 0 ||
        check_table(check, at + 40, table.modules, table.module_count, 56, "modtaboff") != 0 ||
        check_table(check, at + 48, table.references, table.reference_count, 4, "extrefsymoff") != 0 ||
        check_table(check, at + 56, table.indirect, table.indirect_count, 4, "indirectsymoff") != 0 ||
        check_table(check, at + 64, table.external, table.external_count, 8, "extreloff") != 0 ||
        check_table(check, at + 72, table.local, table.local_count, 8, "locreloff") != 0)
        return -1;
    return take_single(check, at, &check->summary->dynamic_symbols_at, "LC_DYSYMTAB");
}

static int check_dyld_info(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct macho_dyld_info info;
    if (read_command(check, at, command, &info, sizeof info) != 0 ||
        check_table(check, at + 8, info.rebase.offset, info.rebase.size, 1, "rebase_off") != 0 ||
        check_table(check, at + 16, info.bind.offset, info.bind.size, 1, "bind_off") != 0 ||
        check_table(check, at + 24, info.weak_bind.offset, info.weak_bind.size, 1, "weak_bind_off") != 0 ||
        check_table(check, at + 32, info.lazy_bind.offset, info.lazy_bind.size, 1, "lazy_bind_off") != 0 ||
        check_table(check, at + 40, info.exports.offset, info.exports.size, 1, "export_off") != 0)
        return -1;
    return take_single(check, at, &check->summary->dyld_info_at, "LC_DYLD_INFO");
}

static int check_data(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct macho_data data;
    if (read_command(check, at, command, &data, sizeof data) != 0)
        return -1;
    return check_table(check, at + 8, data.offset, data.data_size, 1, "dataoff");
}

static int check_encryption(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    uint32_t info[5]; /* encryption_info_command: cmd, cmdsize, cryptoff, cryptsize, cryptid */
    if (read_command(check, at, command, info, sizeof info) != 0)
        return -1;
    return info[4] == 0 ? 0 : fail_at(check, ENOTSUP, at + 16, info[4], "cryptid", "the file is encrypted");
}

static int take_entry(struct macho_check *check, uint64_t at) {
    if (check->summary->has_entry)
        return fail_at(check, ENOEXEC, at, check->entry_at, "LC_MAIN", "a second entry point");
    check->summary->has_entry = 1;
    check->entry_at = at;
    return 0;
}

static int check_main(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct macho_main entry;
    if (read_command(check, at, command, &entry, sizeof entry) != 0 || take_entry(check, at) != 0)
        return -1;
    check->entry_is_offset = 1;
    check->entry_offset = entry.offset;
    return 0;
}

/* LC_UNIXTHREAD (<mach/machine/thread_status.h>): flavours of registers, one behind the other; the one of the general
 * registers holds the program counter. A start at 0 is none. */
static int check_thread(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    int is_x86 = check->summary->cpu == RIFT_MACHO_X86_64;
    uint32_t wanted = is_x86 ? 4 : 6;      /* x86_THREAD_STATE64, ARM_THREAD_STATE64 */
    uint32_t place = is_x86 ? 16 * 8 : 32 * 8; /* of rip, of pc */
    for (uint64_t next = sizeof *command; next + 8 <= command->size;) {
        uint32_t flavour[2]; /* and count of 32-bit words */
        memcpy(flavour, check->image->bytes + at + next, sizeof flavour);
        next += sizeof flavour;
        if (!macho_range_inside(next, (uint64_t)flavour[1] * 4, command->size))
            return fail_at(check, ENOEXEC, at + next - 4, flavour[1], "count",
                           "the registers reach beyond the command");
        if (flavour[0] == wanted && flavour[1] * 4 >= place + 8) {
            memcpy(&check->summary->entry, check->image->bytes + at + next + place, 8);
            return check->summary->entry == 0 ? 0 : take_entry(check, at + next + place);
        }
        next += (uint64_t)flavour[1] * 4;
    }
    return fail_at(check, ENOEXEC, at, command->size, "LC_UNIXTHREAD", "no program counter of this CPU in it");
}

int macho_check_command(struct macho_check *check, uint64_t at, const struct macho_command *command) {
    struct rift_macho_summary *summary = check->summary;
    switch (command->kind & ~(uint32_t)MACHO_REQUIRED) {
    case MACHO_SYMTAB: return check_symbols(check, at, command);
    case MACHO_DYSYMTAB: return check_dynamic_symbols(check, at, command);
    case MACHO_DYLD_INFO: return check_dyld_info(check, at, command);
    case MACHO_CHAINED_FIXUPS:
        if (check_data(check, at, command) != 0)
            return -1;
        return take_single(check, at, &summary->chained_fixups_at, "LC_DYLD_CHAINED_FIXUPS");
    case MACHO_MAIN: return check_main(check, at, command);
    case MACHO_THREAD:
    case MACHO_UNIX_THREAD: return check_thread(check, at, command);
    case MACHO_ENCRYPTION_INFO:
    case MACHO_ENCRYPTION_INFO_64: return check_encryption(check, at, command);
    case MACHO_CODE_SIGNATURE:
    case MACHO_SPLIT_INFO:
    case MACHO_FUNCTION_STARTS:
    case MACHO_DATA_IN_CODE:
    case MACHO_SIGN_REQUIREMENTS:
    case MACHO_OPTIMIZATION_HINT:
    case MACHO_EXPORTS_TRIE: return check_data(check, at, command);
    case MACHO_SEGMENT_32:
        return fail_at(check, ENOEXEC, at, command->kind, "LC_SEGMENT", "a 32-bit segment in a 64-bit file");
    case MACHO_LOAD_WEAK_DYLIB: /* libraries matter only if something of theirs is used: see fixups.h */
    case MACHO_RPATH:
    case MACHO_REEXPORT_DYLIB:
    case MACHO_UPWARD_DYLIB: return 0;
    default: break;
    }
    if ((command->kind & MACHO_REQUIRED) != 0)
        return fail_at(check, ENOTSUP, at, command->kind, "cmd",
                       "an unknown load command which a loader is required to understand");
    return 0;
}
