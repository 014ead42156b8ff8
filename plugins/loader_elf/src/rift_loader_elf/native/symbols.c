#include <stdlib.h>

#include "elf_format.h"
#include "symbols.h"

struct elf_symbols {
    const uint8_t *table, *names;
    uint64_t names_size, bias;
    uint32_t machine;
};

static uint32_t binding_of(const struct elf_symbol *symbol) {
    switch (elf_symbol_binding(symbol)) {
    case ELF_STB_LOCAL: return RIFT_SYMBOL_LOCAL;
    case ELF_STB_WEAK: return RIFT_SYMBOL_WEAK;
    default: return RIFT_SYMBOL_GLOBAL;
    }
}

/* A rift_symbol_read_fn. */
static int read_symbol(const void *table, uint64_t index, struct rift_symbol *out) {
    const struct elf_symbols *symbols = table;
    struct elf_symbol symbol;
    memcpy(&symbol, symbols->table + index * sizeof symbol, sizeof symbol);
    uint8_t type = elf_symbol_type(&symbol);
    if (symbol.section == ELF_SHN_UNDEF || symbol.name == 0 || symbol.name >= symbols->names_size)
        return 0;
    if (symbol.section >= ELF_SHN_RESERVED && symbol.section != ELF_SHN_ABS && symbol.section != ELF_SHN_XINDEX)
        return 0;
    if (type == ELF_STT_SECTION || type == ELF_STT_FILE || type == ELF_STT_TLS)
        return 0;
    uint8_t first = symbols->names[symbol.name];
    if (first == 0)
        return 0;
    /* AAELF64 "Mapping symbols": $x and $d mark code and data, they name nothing. */
    if (first == '$' && symbols->machine == RIFT_ELF_AARCH64 && type == ELF_STT_NOTYPE &&
        elf_symbol_binding(&symbol) == ELF_STB_LOCAL)
        return 0;
    *out = (struct rift_symbol){
        .name = symbols->names + symbol.name,
        .name_room = symbols->names_size - symbol.name,
        .address = symbol.value + (symbol.section == ELF_SHN_ABS ? 0 : symbols->bias),
        .size = symbol.size,
        .binding = binding_of(&symbol),
        .is_typed = type == ELF_STT_FUNC || type == ELF_STT_OBJECT || type == ELF_STT_GNU_IFUNC,
        .is_absolute = symbol.section == ELF_SHN_ABS};
    return 1;
}

struct rift_symbols *rift_elf_symbols_open(const uint8_t *bytes, uint64_t size, uint32_t machine, uint64_t bias,
                                           const struct rift_elf_section *symbols,
                                           const struct rift_elf_section *names, struct rift_elf_error *error) {
    struct rift_error reason;
    if (symbols->entry_size != sizeof(struct elf_symbol)) {
        elf_fail(error, ENOEXEC, symbols->offset, symbols->entry_size, "sh_entsize", "the size of a symbol is not 24");
        return NULL;
    }
    if (names->type != ELF_SHT_STRTAB) {
        elf_fail(error, ENOEXEC, names->offset, names->type, "sh_link", "the symbols' names are in no string table");
        return NULL;
    }
    if (!elf_range_inside(symbols->offset, symbols->size, size) || !elf_range_inside(names->offset, names->size, size)) {
        elf_fail(error, ENOEXEC, symbols->offset, symbols->size, "sh_size", "the symbols reach beyond the end of the file");
        return NULL;
    }
    if (names->size == 0 || bytes[names->offset + names->size - 1] != 0) { /* so every name in it is terminated */
        elf_fail(error, ENOEXEC, names->offset, names->size, "sh_size", "the string table does not end with a NUL");
        return NULL;
    }
    uint64_t count = symbols->size / sizeof(struct elf_symbol);
    if (count > RIFT_SYMBOLS_MAX) {
        elf_fail(error, E2BIG, symbols->offset, symbols->size, "sh_size", "more than 16777216 symbols");
        return NULL;
    }
    struct elf_symbols *table = malloc(sizeof *table);
    struct rift_symbols *result = NULL;
    if (table != NULL) {
        *table = (struct elf_symbols){bytes + symbols->offset, bytes + names->offset, names->size, bias, machine};
        result = rift_symbols_make(table, count, read_symbol, &reason);
    }
    if (result == NULL)
        elf_fail(error, ENOMEM, symbols->offset, 0, "malloc", "no memory for the symbols");
    return result;
}
