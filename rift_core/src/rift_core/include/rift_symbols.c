/* See rift_symbols.h. */
#include "rift_symbols.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An entry of the index by address. */
struct place {
    uint64_t address, end; /* end: first address behind it, saturated */
    uint64_t reach;        /* the largest end of this and all entries before it */
    uint32_t index, rank;
};

struct rift_symbols {
    void *table;
    uint64_t count;
    rift_symbol_read_fn *read;
    uint32_t bucket_mask;
    uint32_t *buckets, *next; /* by name: index + 1 of the first, and of the next, in a bucket; 0 ends it */
    struct place *places;     /* by address, ascending */
    uint64_t place_count;
    uint64_t *starts;         /* addresses of all places, ascending: for sizes that the file does not tell */
    uint64_t start_count;
};

static int fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

struct rift_symbols *rift_symbols_make(void *table, uint64_t count, rift_symbol_read_fn *read,
                                       struct rift_error *error) {
    struct rift_symbols *result = count > RIFT_SYMBOLS_MAX ? NULL : calloc(1, sizeof *result);
    if (result == NULL) {
        free(table);
        fail(error, count > RIFT_SYMBOLS_MAX ? E2BIG : ENOMEM, "calloc");
        return NULL;
    }
    result->table = table;
    result->count = count;
    result->read = read;
    return result;
}

void rift_symbols_close(struct rift_symbols *symbols) {
    if (symbols == NULL)
        return;
    free(symbols->buckets);
    free(symbols->next);
    free(symbols->places);
    free(symbols->starts);
    free(symbols->table);
    free(symbols);
}

static int compare_addresses(const void *left, const void *right) {
    const uint64_t *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

static int build_starts(struct rift_symbols *symbols, struct rift_error *error) {
    uint64_t *starts = malloc((symbols->count + 1) * sizeof *starts);
    uint64_t count = 0;
    int in_order = 1;
    if (starts == NULL)
        return fail(error, ENOMEM, "malloc");
    for (uint64_t index = 0; index < symbols->count; index++) {
        struct rift_symbol symbol;
        if (!symbols->read(symbols->table, index, &symbol) || symbol.is_absolute)
            continue;
        starts[count] = symbol.address;
        in_order &= count == 0 || starts[count - 1] <= symbol.address;
        count++;
    }
    if (!in_order)
        qsort(starts, count, sizeof *starts, compare_addresses);
    symbols->starts = starts;
    symbols->start_count = count;
    return 0;
}

/* Number of the `count` ascending numbers at or below `limit`. */
static uint64_t count_until(const uint64_t *numbers, uint64_t count, uint64_t limit) {
    uint64_t first = 0, last = count;
    while (first < last) {
        uint64_t middle = first + (last - first) / 2;
        if (numbers[middle] <= limit)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

/* What the file says, or else the distance to the next symbol and not beyond `limit`. */
static int size_of(struct rift_symbols *symbols, const struct rift_symbol *symbol, uint64_t *size,
                   struct rift_error *error) {
    *size = symbol->size;
    if (symbol->size != 0 || symbol->limit <= symbol->address || symbol->is_absolute)
        return 0;
    if (symbols->starts == NULL && build_starts(symbols, error) != 0)
        return -1;
    uint64_t end = symbol->limit;
    uint64_t next = count_until(symbols->starts, symbols->start_count, symbol->address);
    if (next < symbols->start_count && symbols->starts[next] < end)
        end = symbols->starts[next];
    *size = end - symbol->address;
    return 0;
}

/* Bytes of the shown name; an overlong one is cut. */
static uint64_t shown_size(const struct rift_symbol *symbol) {
    uint64_t room = symbol->name_room - symbol->prefix;
    if (room > RIFT_SYMBOL_NAME_MAX)
        room = RIFT_SYMBOL_NAME_MAX;
    const uint8_t *start = symbol->name + symbol->prefix, *end = memchr(start, 0, room);
    return end == NULL ? room : (uint64_t)(end - start);
}

static void show(uint64_t index, const struct rift_symbol *symbol, struct rift_found *found) {
    found->name = symbol->name + symbol->prefix;
    found->name_size = shown_size(symbol);
    found->address = symbol->address;
    found->size = symbol->size;
    found->index = index;
}

static int fill(struct rift_symbols *symbols, uint64_t index, const struct rift_symbol *symbol,
                struct rift_found *found, struct rift_error *error) {
    show(index, symbol, found);
    return size_of(symbols, symbol, &found->size, error) != 0 ? -1 : 1;
}

uint64_t rift_symbols_count(const struct rift_symbols *symbols) {
    struct rift_symbol symbol;
    uint64_t count = 0;
    for (uint64_t index = 0; index < symbols->count; index++)
        count += (uint64_t)symbols->read(symbols->table, index, &symbol);
    return count;
}

int rift_symbols_peek(const struct rift_symbols *symbols, uint64_t first, struct rift_found *found) {
    struct rift_symbol symbol;
    for (uint64_t index = first; index < symbols->count; index++) {
        if (!symbols->read(symbols->table, index, &symbol))
            continue;
        show(index, &symbol, found);
        return 1;
    }
    return 0;
}

int rift_symbols_next(struct rift_symbols *symbols, uint64_t first, struct rift_found *found,
                      struct rift_error *error) {
    struct rift_symbol symbol;
    for (uint64_t index = first; index < symbols->count; index++)
        if (symbols->read(symbols->table, index, &symbol))
            return fill(symbols, index, &symbol, found, error);
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

static int build_names(struct rift_symbols *symbols, struct rift_error *error) {
    uint64_t size = 16;
    while (size < symbols->count)
        size *= 2;
    symbols->next = calloc(symbols->count + 1, sizeof *symbols->next);
    symbols->buckets = calloc(size, sizeof *symbols->buckets);
    if (symbols->buckets == NULL || symbols->next == NULL) {
        free(symbols->buckets);
        free(symbols->next);
        symbols->buckets = symbols->next = NULL;
        return fail(error, ENOMEM, "calloc");
    }
    symbols->bucket_mask = (uint32_t)(size - 1);
    for (uint64_t index = symbols->count; index-- > 0;) { /* backwards: chains then ascend */
        struct rift_symbol symbol;
        if (!symbols->read(symbols->table, index, &symbol))
            continue;
        uint32_t hash = hash_of(symbol.name, symbol.name_room);
        symbols->next[index] = symbols->buckets[hash & symbols->bucket_mask];
        symbols->buckets[hash & symbols->bucket_mask] = (uint32_t)(index + 1);
    }
    return 0;
}

int rift_symbols_find(struct rift_symbols *symbols, const uint8_t *name, uint64_t name_size,
                      struct rift_found *found, struct rift_error *error) {
    struct rift_symbol best = {.binding = RIFT_SYMBOL_LOCAL};
    uint64_t index = 0;
    int is_found = 0;
    if (name_size == 0 || memchr(name, 0, name_size) != NULL)
        return 0;
    if (symbols->buckets == NULL && build_names(symbols, error) != 0)
        return -1;
    uint32_t link = symbols->buckets[hash_of(name, name_size) & symbols->bucket_mask];
    for (; link != 0; link = symbols->next[link - 1]) {
        struct rift_symbol symbol;
        if (!symbols->read(symbols->table, link - 1, &symbol) || symbol.name_room <= name_size)
            continue;
        if (symbol.name[name_size] != 0 || memcmp(symbol.name, name, name_size) != 0)
            continue;
        if (!is_found || symbol.binding > best.binding) {
            best = symbol;
            index = link - 1;
            is_found = 1;
        }
    }
    if (!is_found || best.prefix >= name_size)
        return 0;
    if (fill(symbols, index, &best, found, error) < 0)
        return -1;
    found->name_size = name_size - best.prefix; /* an overlong name has been compared in full */
    return 1;
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

enum { RANK_TYPED = RIFT_SYMBOL_GLOBAL + 1 }; /* functions and objects, above every binding */

static int build_places(struct rift_symbols *symbols, struct rift_error *error) {
    uint64_t count = 0;
    struct place *places = malloc((symbols->count + 1) * sizeof *places);
    if (places == NULL)
        return fail(error, ENOMEM, "malloc");
    for (uint64_t index = 0; index < symbols->count; index++) {
        struct rift_symbol symbol;
        struct place *place = &places[count];
        uint64_t size;
        if (!symbols->read(symbols->table, index, &symbol) || symbol.is_absolute)
            continue;
        if (size_of(symbols, &symbol, &size, error) != 0) {
            free(places);
            return -1;
        }
        place->address = symbol.address;
        place->end = size > UINT64_MAX - place->address ? UINT64_MAX : place->address + size;
        place->index = (uint32_t)index;
        place->rank = symbol.binding + (symbol.is_typed ? RANK_TYPED : 0);
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

int rift_symbols_nearest(struct rift_symbols *symbols, uint64_t address, uint64_t low, struct rift_found *found,
                         struct rift_error *error) {
    uint64_t first = 0, last, below, around;
    const struct place *places;
    struct rift_symbol symbol;
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
    if (!symbols->read(symbols->table, index, &symbol)) /* overwritten since the index was built */
        return 0;
    return fill(symbols, index, &symbol, found, error);
}
