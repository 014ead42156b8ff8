#include "elf_format.h"
#include "relocate.h"

/* What a relocation computes: S symbol, A addend, B bias. A slot (of the GOT or PLT) is one symbol's and no other's. */
enum formula { IGNORE, B_PLUS_A, S_PLUS_A, SLOT_S, SLOT_S_PLUS_A, UNSUPPORTED };

/* System V psABI x86-64, table 4.9 "Relocation Types". */
static enum formula formula_x86_64(uint64_t type) {
    switch (type) {
    case 0: return IGNORE;    /* R_X86_64_NONE */
    case 1: return S_PLUS_A;  /* R_X86_64_64 */
    case 6: return SLOT_S;    /* R_X86_64_GLOB_DAT */
    case 7: return SLOT_S;    /* R_X86_64_JUMP_SLOT */
    case 8: return B_PLUS_A;  /* R_X86_64_RELATIVE */
    default: return UNSUPPORTED;
    }
}

/* ELF for the Arm 64-bit Architecture (AAELF64), "Static data relocations" and "Dynamic relocations". */
static enum formula formula_aarch64(uint64_t type) {
    switch (type) {
    case 0: return IGNORE;           /* R_AARCH64_NONE */
    case 256: return IGNORE;         /* withdrawn, treated as R_AARCH64_NONE */
    case 257: return S_PLUS_A;       /* R_AARCH64_ABS64 */
    case 1025: return SLOT_S_PLUS_A; /* R_AARCH64_GLOB_DAT */
    case 1026: return SLOT_S_PLUS_A; /* R_AARCH64_JUMP_SLOT */
    case 1027: return B_PLUS_A;      /* R_AARCH64_RELATIVE */
    default: return UNSUPPORTED;
    }
}

static enum formula formula_of(uint32_t machine, uint64_t type) {
    return machine == RIFT_ELF_X86_64 ? formula_x86_64(type) : formula_aarch64(type);
}

/* The target that holds the 8 bytes at address, or NULL; *hint is where the last one was. */
static struct rift_elf_target *find_target(const struct rift_elf_relocator *relocator, uint64_t address,
                                           uint64_t *hint) {
    uint64_t low = 0, high = relocator->target_count;
    struct rift_elf_target *target = &relocator->targets[*hint];
    if (address < target->address || address - target->address >= target->memory_size) {
        while (low < high) {
            uint64_t middle = low + (high - low) / 2;
            target = &relocator->targets[middle];
            if (address < target->address)
                high = middle;
            else if (address - target->address >= target->memory_size)
                low = middle + 1;
            else
                break;
        }
        if (low >= high)
            return NULL;
        *hint = (uint64_t)(target - relocator->targets);
    }
    return target->memory_size - (address - target->address) >= 8 ? target : NULL;
}

/* Adds to the word at address (RELR) or sets it. `at`: the relocation's own place in the file. */
static int store(struct rift_elf_relocator *relocator, uint64_t address, uint64_t value, int add, uint64_t at,
                 uint64_t *hint, struct rift_elf_error *error) {
    struct rift_elf_target *target;
    uint64_t old = 0;
    target = relocator->target_count == 0 ? NULL : find_target(relocator, address, hint);
    if (target == NULL)
        return elf_fail(error, ENOEXEC, at, address - relocator->bias, "r_offset",
                        "the relocated word lies outside every segment");
    uint64_t place = address - target->address;
    target->touched = 1;
    if (!elf_range_inside(place, 8, target->size)) {
        if (relocator->write)
            return elf_fail(error, ENOEXEC, at, address - relocator->bias, "r_offset",
                            "the relocated word changed its place while the file was read");
        if (place + 8 > target->needed)
            target->needed = place + 8;
        return 0;
    }
    if (!relocator->write)
        return 0;
    if (add)
        memcpy(&old, target->bytes + place, sizeof old);
    value += old;
    memcpy(target->bytes + place, &value, sizeof value);
    return 0;
}

/* S of the psABI: the run-time address of the symbol of that index. */
static int symbol_value(const struct rift_elf_relocator *relocator, uint64_t index, uint64_t at, uint64_t *value,
                        struct rift_elf_error *error) {
    struct elf_symbol symbol;
    *value = 0;
    if (index == 0) /* STN_UNDEF: no symbol, value 0 */
        return 0;
    if (relocator->symbols_size == 0)
        return elf_fail(error, ENOEXEC, at + 8, index, "r_info",
                        "the relocation needs a dynamic symbol table, which the file has not; "
                        "compile with -fvisibility=hidden or keep .dynsym");
    if (index >= relocator->symbols_size / sizeof symbol)
        return elf_fail(error, ENOEXEC, at + 8, index, "r_info", "there is no symbol of that index");
    memcpy(&symbol, relocator->bytes + relocator->symbols_offset + index * sizeof symbol, sizeof symbol);
    if (symbol.section == ELF_SHN_UNDEF) {
        if (elf_symbol_binding(&symbol) == ELF_STB_WEAK) /* gABI: an undefined weak symbol is 0 */
            return 0;
        return elf_fail(error, ENOENT, at + 8, index, "r_info", "the symbol is not defined in the file");
    }
    if (elf_symbol_type(&symbol) == ELF_STT_TLS)
        return elf_fail(error, ENOEXEC, at + 8, index, "r_info", "the symbol is thread-local and has no address");
    if (elf_symbol_type(&symbol) == ELF_STT_GNU_IFUNC)
        return elf_fail(error, ENOEXEC, at + 8, index, "r_info",
                        "the symbol is an indirect function (STT_GNU_IFUNC), which would run guest code at load time");
    if (symbol.section >= ELF_SHN_RESERVED && symbol.section != ELF_SHN_ABS && symbol.section != ELF_SHN_XINDEX)
        return elf_fail(error, ENOEXEC, at + 8, index, "r_info", "the symbol stands in no section");
    *value = symbol.value + (symbol.section == ELF_SHN_ABS ? 0 : relocator->bias);
    return 0;
}

/* Counts table entries, and RELR's words once more, so that no file takes long. */
static int count(struct rift_elf_relocator *relocator, uint64_t more, uint64_t at, struct rift_elf_error *error) {
    if (more > RIFT_ELF_RELOCATIONS_MAX - relocator->done)
        return elf_fail(error, E2BIG, at, relocator->done + more, "relocations", "more than 8388608 relocations");
    relocator->done += more;
    return 0;
}

static int check_ranges(struct rift_elf_relocator *relocator, uint64_t offset, uint64_t size, uint64_t entry,
                        struct rift_elf_error *error) {
    if (!elf_range_inside(offset, size, relocator->size))
        return elf_fail(error, ENOEXEC, offset, size, "relocations", "the table reaches beyond the end of the file");
    if (size % entry != 0)
        return elf_fail(error, ENOEXEC, offset, size, "relocations", "the table's size is no multiple of its entries'");
    if (!elf_range_inside(relocator->symbols_offset, relocator->symbols_size, relocator->size))
        return elf_fail(error, ENOEXEC, relocator->symbols_offset, relocator->symbols_size, "symbols",
                        "the table reaches beyond the end of the file");
    return count(relocator, size / entry, offset, error);
}

int rift_elf_rela_apply(struct rift_elf_relocator *relocator, uint64_t offset, uint64_t size,
                        struct rift_elf_error *error) {
    struct elf_relocation entry;
    uint64_t hint = 0;
    if (check_ranges(relocator, offset, size, sizeof entry, error) != 0)
        return -1;
    for (uint64_t at = offset; at < offset + size; at += sizeof entry) {
        uint64_t value = 0;
        memcpy(&entry, relocator->bytes + at, sizeof entry);
        uint64_t type = entry.info & 0xffffffff;
        enum formula formula = formula_of(relocator->machine, type);
        if (formula == UNSUPPORTED)
            return elf_fail(error, ENOTSUP, at, type, "r_info", "this type of relocation is not supported");
        if (formula == IGNORE)
            continue;
        if ((formula == SLOT_S || formula == SLOT_S_PLUS_A) && entry.info >> 32 == 0)
            /* What lld leaves where a linker script has discarded .dynsym. */
            return elf_fail(error, ENOEXEC, at + 8, 0, "r_info",
                            "the relocation of a slot names no symbol; compile with -fvisibility=hidden or keep .dynsym");
        if (formula == B_PLUS_A)
            value = relocator->bias;
        else if (symbol_value(relocator, entry.info >> 32, at, &value, error) != 0)
            return -1;
        if (formula != SLOT_S)
            value += entry.addend;
        if (store(relocator, entry.offset + relocator->bias, value, 0, at, &hint, error) != 0)
            return -1;
    }
    return 0;
}

int rift_elf_relr_apply(struct rift_elf_relocator *relocator, uint64_t offset, uint64_t size,
                        struct rift_elf_error *error) {
    uint64_t hint = 0, next = 0; /* next: the file's address that bit 1 of a bitmap stands for */
    if (check_ranges(relocator, offset, size, 8, error) != 0)
        return -1;
    for (uint64_t at = offset; at < offset + size; at += 8) {
        uint64_t word, place;
        memcpy(&word, relocator->bytes + at, sizeof word);
        if ((word & 1) == 0) {
            /* Linkers write ascending addresses; insisting on it lets no word be relocated twice. */
            if (word < next || word > UINT64_MAX - 8)
                return elf_fail(error, ENOEXEC, at, word, "DT_RELR", "the addresses do not ascend");
            if (count(relocator, 1, at, error) != 0 ||
                store(relocator, word + relocator->bias, relocator->bias, 1, at, &hint, error) != 0)
                return -1;
            next = word + 8;
            continue;
        }
        if (next == 0)
            return elf_fail(error, ENOEXEC, at, word, "DT_RELR", "a bitmap stands before any address");
        place = next;
        if (count(relocator, (uint64_t)__builtin_popcountll(word >> 1), at, error) != 0)
            return -1;
        for (uint64_t bits = word >> 1; bits != 0; bits >>= 1, place += 8)
            if ((bits & 1) != 0 &&
                store(relocator, place + relocator->bias, relocator->bias, 1, at, &hint, error) != 0)
                return -1;
        if (next > UINT64_MAX - 63 * 8)
            return elf_fail(error, ENOEXEC, at, word, "DT_RELR", "the addresses overflow");
        next += 63 * 8;
    }
    return 0;
}
