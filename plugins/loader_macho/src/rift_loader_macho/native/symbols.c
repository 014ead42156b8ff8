#include <stdlib.h>

#include "macho_format.h"
#include "symbols.h"

struct symbols {
    const uint8_t *table, *names;
    uint64_t names_size, slide;
    uint32_t sections;
    struct rift_macho_section section[RIFT_MACHO_SECTIONS_MAX];
};

static uint32_t binding_of(const struct macho_symbol *symbol) {
    if ((symbol->type & MACHO_N_EXTERNAL) != 0)
        return (symbol->description & MACHO_N_WEAK_DEFINITION) != 0 ? RIFT_SYMBOL_WEAK : RIFT_SYMBOL_GLOBAL;
    /* Hidden ones were global in the sources: they stand between those that still are and static ones. */
    return (symbol->type & MACHO_N_PRIVATE) != 0 ? RIFT_SYMBOL_WEAK : RIFT_SYMBOL_LOCAL;
}

/* A rift_symbol_read_fn. */
static int read_symbol(const void *table, uint64_t index, struct rift_symbol *out) {
    const struct symbols *symbols = table;
    struct macho_symbol symbol;
    memcpy(&symbol, symbols->table + index * sizeof symbol, sizeof symbol);
    uint8_t type = symbol.type & MACHO_N_TYPE;
    if ((symbol.type & MACHO_N_DEBUG) != 0 || symbol.name == 0 || symbol.name >= symbols->names_size)
        return 0;
    const uint8_t *name = symbols->names + symbol.name;
    uint64_t room = symbols->names_size - symbol.name;
    if (name[0] == 0)
        return 0;
    *out = (struct rift_symbol){
        .name = name,
        .name_room = room,
        .prefix = name[0] == '_' && room > 1 && name[1] != 0,
        .address = symbol.value,
        .binding = binding_of(&symbol)};
    if (type == MACHO_N_ABSOLUTE) {
        out->is_absolute = 1;
        return 1;
    }
    if (type != MACHO_N_SECTION || symbol.section == 0 || symbol.section > symbols->sections)
        return 0;
    const struct rift_macho_section *section = &symbols->section[symbol.section - 1];
    if (section->type >= MACHO_THREAD_DATA && section->type <= MACHO_THREAD_LAST)
        return 0;
    out->address = symbol.value + symbols->slide;
    if (symbol.value >= section->address && symbol.value < section->end) {
        out->limit = section->end + symbols->slide;
        out->is_typed = 1;
    }
    return 1;
}

struct rift_symbols *rift_macho_symbols_open(const struct rift_macho_image *image, uint64_t slide,
                                             const struct rift_macho_symbol_table *table,
                                             const struct rift_macho_summary *summary,
                                             struct rift_macho_error *error) {
    struct rift_error reason;
    if (table->count > RIFT_SYMBOLS_MAX) {
        macho_fail(error, E2BIG, image->origin + summary->symbols_at + 12, table->count, "nsyms",
                   "more than 16777216 symbols");
        return NULL;
    }
    if (!macho_range_inside(table->symbols, table->count * sizeof(struct macho_symbol), image->size) ||
        !macho_range_inside(table->names, table->names_size, image->size)) {
        macho_fail(error, ENOEXEC, image->origin + summary->symbols_at, table->symbols, "LC_SYMTAB",
                   "the symbols reach beyond the end of the file");
        return NULL;
    }
    struct symbols *symbols = malloc(sizeof *symbols);
    struct rift_symbols *result = NULL;
    if (symbols != NULL) {
        symbols->table = image->bytes + table->symbols;
        symbols->names = image->bytes + table->names;
        symbols->names_size = table->names_size;
        symbols->slide = slide;
        symbols->sections = summary->sections;
        memcpy(symbols->section, summary->section, sizeof symbols->section);
        result = rift_symbols_make(symbols, table->count, read_symbol, &reason);
    }
    if (result == NULL)
        macho_fail(error, ENOMEM, image->origin + summary->symbols_at, 0, "malloc", "no memory for the symbols");
    return result;
}
