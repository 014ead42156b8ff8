#include <stdlib.h>

#include "elf_format.h"
#include "symbols.h"

/* An entry of the index by address. */
struct place {
    uint64_t address, end; /* end: first address behind it, saturated */
    uint64_t reach;        /* the largest end of this and all entries before it */
    uint32_t index, rank;
};

struct rift_elf_symbols {
    const uint8_t *table, *names;
    uint64_t count, names_size, bias;
    uint32_t machine;
    uint32_t bucket_mask;
    uint32_t *buckets, *next; /* by name: index + 1 of the first, and of the next, in a bucket; 0 ends it */
    struct place *places;     /* by address, ascending */
    uint64_t place_count;
};

struct rift_elf_symbols *rift_elf_symbols_open(const uint8_t *bytes, uint64_t size, uint32_t machine, uint64_t bias,
                                               const struct rift_elf_section *symbols,
                                               const struct rift_elf_section *names, struct rift_elf_error *error) {
    struct rift_elf_symbols *result;
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
    if (symbols->size / sizeof(struct elf_symbol) > RIFT_ELF_SYMBOLS_MAX) {
        elf_fail(error, E2BIG, symbols->offset, symbols->size, "sh_size", "more than 16777216 symbols");
        return NULL;
    }
    result = calloc(1, sizeof *result);
    if (result == NULL) {
        elf_fail(error, ENOMEM, symbols->offset, 0, "malloc", "no memory for the symbols");
        return NULL;
    }
    result->table = bytes + symbols->offset;
    result->count = symbols->size / sizeof(struct elf_symbol);
    result->names = bytes + names->offset;
    result->names_size = names->size;
    result->machine = machine;
    result->bias = bias;
    return result;
}

void rift_elf_symbols_close(struct rift_elf_symbols *symbols) {
    if (symbols == NULL)
        return;
    free(symbols->buckets);
    free(symbols->next);
    free(symbols->places);
    free(symbols);
}

/* Reads symbol `index` and says whether it is listed: then its name starts inside the names. */
static int read_listed(const struct rift_elf_symbols *symbols, uint64_t index, struct elf_symbol *symbol) {
    uint8_t type;
    memcpy(symbol, symbols->table + index * sizeof *symbol, sizeof *symbol);
    type = elf_symbol_type(symbol);
    if (symbol->section == ELF_SHN_UNDEF || symbol->name == 0 || symbol->name >= symbols->names_size)
        return 0;
    if (symbol->section >= ELF_SHN_RESERVED && symbol->section != ELF_SHN_ABS && symbol->section != ELF_SHN_XINDEX)
        return 0;
    if (type == ELF_STT_SECTION || type == ELF_STT_FILE || type == ELF_STT_TLS)
        return 0;
    uint8_t first = symbols->names[symbol->name];
    if (first == 0)
        return 0;
    /* AAELF64 "Mapping symbols": $x and $d mark code and data, they name nothing. */
    return !(first == '$' && symbols->machine == RIFT_ELF_AARCH64 && type == ELF_STT_NOTYPE &&
             elf_symbol_binding(symbol) == ELF_STB_LOCAL);
}

static uint64_t address_of(const struct rift_elf_symbols *symbols, const struct elf_symbol *symbol) {
    return symbol->value + (symbol->section == ELF_SHN_ABS ? 0 : symbols->bias);
}

/* An overlong name is cut; so is one whose end was overwritten since the table was opened. */
static void fill(const struct rift_elf_symbols *symbols, uint64_t index, const struct elf_symbol *symbol,
                struct rift_elf_found *found) {
    int64_t length = rift_elf_string_length(symbols->names, symbols->names_size, symbol->name);
    uint64_t rest = symbols->names_size - symbol->name;
    if (length < 0)
        length = rest < RIFT_ELF_NAME_MAX ? (int64_t)rest : RIFT_ELF_NAME_MAX;
    found->name = symbols->names + symbol->name;
    found->name_size = (uint64_t)length;
    found->address = address_of(symbols, symbol);
    found->size = symbol->size;
    found->index = index;
}

uint64_t rift_elf_symbols_count(const struct rift_elf_symbols *symbols) {
    struct elf_symbol symbol;
    uint64_t count = 0;
    for (uint64_t index = 0; index < symbols->count; index++)
        count += (uint64_t)read_listed(symbols, index, &symbol);
    return count;
}

int rift_elf_symbols_next(const struct rift_elf_symbols *symbols, uint64_t first, struct rift_elf_found *found) {
    struct elf_symbol symbol;
    for (uint64_t index = first; index < symbols->count; index++) {
        if (!read_listed(symbols, index, &symbol))
            continue;
        fill(symbols, index, &symbol, found);
        return 1;
    }
    return 0;
}

/* Names are hashed up to 256 bytes, so that a million symbols that share one endless name stay cheap. */
static uint32_t hash_of(const uint8_t *name, uint64_t limit) {
    const uint8_t *end;
    uint64_t hash = 0x9e3779b97f4a7c15, word, size;
    if (limit > 256)
        limit = 256;
    end = limit == 0 ? NULL : memchr(name, 0, limit);
    size = end == NULL ? limit : (uint64_t)(end - name);
    while (size > 0) {
        uint64_t part = size < 8 ? size : 8;
        word = 0;
        memcpy(&word, name, part);
        hash = (hash ^ word) * 0xff51afd7ed558ccd;
        hash ^= hash >> 32;
        name += part;
        size -= part;
    }
    return (uint32_t)hash;
}

static int build_names(struct rift_elf_symbols *symbols, struct rift_elf_error *error) {
    uint64_t size = 16;
    while (size < symbols->count)
        size *= 2;
    symbols->next = calloc(symbols->count + 1, sizeof *symbols->next);
    symbols->buckets = calloc(size, sizeof *symbols->buckets);
    if (symbols->buckets == NULL || symbols->next == NULL) {
        free(symbols->buckets);
        free(symbols->next);
        symbols->buckets = symbols->next = NULL;
        return elf_fail(error, ENOMEM, 0, symbols->count, "malloc", "no memory for the index of symbols");
    }
    symbols->bucket_mask = (uint32_t)(size - 1);
    for (uint64_t index = symbols->count; index-- > 0;) { /* backwards: chains then ascend */
        struct elf_symbol symbol;
        if (!read_listed(symbols, index, &symbol))
            continue;
        uint32_t hash = hash_of(symbols->names + symbol.name, symbols->names_size - symbol.name);
        symbols->next[index] = symbols->buckets[hash & symbols->bucket_mask];
        symbols->buckets[hash & symbols->bucket_mask] = (uint32_t)(index + 1);
    }
    return 0;
}

static uint32_t binding_rank(const struct elf_symbol *symbol) {
    switch (elf_symbol_binding(symbol)) {
    case ELF_STB_LOCAL: return 0;
    case ELF_STB_WEAK: return 1;
    default: return 2;
    }
}

int rift_elf_symbols_find(struct rift_elf_symbols *symbols, const uint8_t *name, uint64_t name_size,
                          struct rift_elf_found *found, struct rift_elf_error *error) {
    uint32_t best = 0;
    int status = 0;
    if (name_size == 0 || memchr(name, 0, name_size) != NULL)
        return 0;
    if (symbols->buckets == NULL && build_names(symbols, error) != 0)
        return -1;
    uint32_t link = symbols->buckets[hash_of(name, name_size) & symbols->bucket_mask];
    for (; link != 0; link = symbols->next[link - 1]) {
        struct elf_symbol symbol;
        if (!read_listed(symbols, link - 1, &symbol) || symbols->names_size - symbol.name <= name_size)
            continue;
        const uint8_t *candidate = symbols->names + symbol.name;
        if (candidate[name_size] != 0 || memcmp(candidate, name, name_size) != 0)
            continue;
        uint32_t rank = binding_rank(&symbol) + 1;
        if (rank > best) {
            best = rank;
            status = 1;
            found->name = candidate;
            found->name_size = name_size;
            found->address = address_of(symbols, &symbol);
            found->size = symbol.size;
            found->index = link - 1;
        }
    }
    return status;
}

/* Ascending by address; at one address the preferred ones last, because look-up walks downwards. */
static int compare_places(const void *left, const void *right) {
    const struct place *a = left, *b = right;
    if (a->address != b->address)
        return a->address < b->address ? -1 : 1;
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    return a->index > b->index ? -1 : a->index < b->index;
}

enum { RANK_TYPED = 4 }; /* functions and objects, above every binding_rank */

static int build_places(struct rift_elf_symbols *symbols, struct rift_elf_error *error) {
    uint64_t count = 0;
    struct place *places = malloc((symbols->count + 1) * sizeof *places);
    if (places == NULL)
        return elf_fail(error, ENOMEM, 0, symbols->count, "malloc", "no memory for the index of addresses");
    for (uint64_t index = 0; index < symbols->count; index++) {
        struct elf_symbol symbol;
        struct place *place = &places[count];
        if (!read_listed(symbols, index, &symbol) || symbol.section == ELF_SHN_ABS)
            continue;
        uint8_t type = elf_symbol_type(&symbol);
        int typed = type == ELF_STT_FUNC || type == ELF_STT_OBJECT || type == ELF_STT_GNU_IFUNC;
        place->address = address_of(symbols, &symbol);
        place->end = symbol.size > UINT64_MAX - place->address ? UINT64_MAX : place->address + symbol.size;
        place->index = (uint32_t)index;
        place->rank = binding_rank(&symbol) + (typed ? RANK_TYPED : 0);
        count++;
    }
    qsort(places, count, sizeof *places, compare_places);
    for (uint64_t index = 0; index < count; index++)
        places[index].reach = index > 0 && places[index - 1].reach > places[index].end ? places[index - 1].reach
                                                                                       : places[index].end;
    symbols->places = places;
    symbols->place_count = count;
    return 0;
}

int rift_elf_symbols_nearest(struct rift_elf_symbols *symbols, uint64_t address, uint64_t low,
                             struct rift_elf_found *found, struct rift_elf_error *error) {
    uint64_t first = 0, last, below, around;
    const struct place *places;
    struct elf_symbol symbol;
    if (symbols->places == NULL && build_places(symbols, error) != 0)
        return -1;
    places = symbols->places;
    last = symbols->place_count;
    while (first < last) { /* first: number of entries at or below address */
        uint64_t middle = first + (last - first) / 2;
        if (places[middle].address <= address)
            first = middle + 1;
        else
            last = middle;
    }
    if (first == 0 || (places[first - 1].address < low && places[first - 1].reach <= address))
        return 0;
    below = places[first - 1].address >= low ? first : 0; /* these two: position + 1, or 0 */
    around = 0;
    for (uint64_t at = first; at > 0 && places[at - 1].reach > address; at--) {
        if (places[at - 1].end <= address)
            continue;
        if (around == 0)
            around = at;
        if (places[at - 1].rank >= RANK_TYPED) {
            around = at;
            break;
        }
    }
    if (around == 0)
        around = below;
    if (around == 0)
        return 0;
    uint64_t index = places[around - 1].index;
    memcpy(&symbol, symbols->table + index * sizeof symbol, sizeof symbol);
    if (symbol.name >= symbols->names_size)
        return 0;
    fill(symbols, index, &symbol, found);
    return 1;
}
