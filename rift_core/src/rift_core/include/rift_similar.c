/* Names that look like a given one: for "no such symbol, did you mean". See rift_symbols.h. */
#include "rift_symbols.h"

#include <string.h>

enum {
    LENGTH_MAX = 64,       /* longer names are compared by their first 64 bytes */
    STEPS_MAX = 1 << 27    /* cells of distance tables: about 0.2 s */
};

struct word {
    uint8_t text[LENGTH_MAX]; /* in lower case, as far as ASCII goes */
    uint32_t size;
    uint8_t letters[32];      /* how often each byte modulo 32 occurs */
};

static void take(struct word *word, const uint8_t *name, uint64_t size) {
    memset(word->letters, 0, sizeof word->letters);
    word->size = (uint32_t)(size < LENGTH_MAX ? size : LENGTH_MAX);
    for (uint32_t at = 0; at < word->size; at++) {
        uint8_t byte = name[at];
        word->text[at] = byte >= 'A' && byte <= 'Z' ? (uint8_t)(byte + 32) : byte;
        word->letters[word->text[at] & 31]++;
    }
}

/* A lower bound of the distance: one edit changes the counts by two at most. */
static uint32_t least_distance(const struct word *a, const struct word *b) {
    uint32_t sum = 0;
    for (uint32_t at = 0; at < 32; at++)
        sum += (uint32_t)(a->letters[at] > b->letters[at] ? a->letters[at] - b->letters[at]
                                                          : b->letters[at] - a->letters[at]);
    return (sum + 1) / 2;
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Edits (insert, delete, replace, swap of neighbours) that turn one word into the other: optimal string
 * alignment by dynamic programming, three rows. */
static uint32_t distance(const struct word *a, const struct word *b) {
    uint32_t rows[3][LENGTH_MAX + 1];
    for (uint32_t column = 0; column <= b->size; column++)
        rows[0][column] = column;
    for (uint32_t row = 1; row <= a->size; row++) {
        uint32_t *now = rows[row % 3];
        const uint32_t *before = rows[(row - 1) % 3], *older = rows[(row + 1) % 3];
        now[0] = row;
        for (uint32_t column = 1; column <= b->size; column++) {
            uint32_t change = before[column - 1] + (a->text[row - 1] != b->text[column - 1]);
            now[column] = least(change, least(before[column], now[column - 1]) + 1);
            if (row > 1 && column > 1 && a->text[row - 1] == b->text[column - 2] &&
                a->text[row - 2] == b->text[column - 1])
                now[column] = least(now[column], older[column - 2] + 1);
        }
    }
    return rows[a->size % 3][b->size];
}

static int contains(const struct word *outer, const struct word *inner) {
    if (inner->size < 3)
        return 0;
    for (uint32_t at = 0; at + inner->size <= outer->size; at++)
        if (memcmp(outer->text + at, inner->text, inner->size) == 0)
            return 1;
    return 0;
}

/* 0 is the same but for case; UINT32_MAX is not similar. *steps counts the work. */
static uint32_t score(const struct word *wanted, const struct word *name, uint64_t name_size, uint64_t *steps) {
    uint32_t gap = wanted->size > name->size ? wanted->size - name->size : name->size - wanted->size;
    uint32_t allowed = 1 + least(wanted->size, name->size) / 3;
    uint32_t result = UINT32_MAX;
    if (gap <= allowed && least_distance(wanted, name) <= allowed) {
        uint32_t edits = distance(wanted, name);
        *steps += (uint64_t)wanted->size * name->size;
        if (edits <= allowed)
            result = edits * 4;
    }
    *steps += wanted->size + name->size + name_size / 16;
    if (contains(name, wanted) || contains(wanted, name))
        result = least(result, 4 + gap);
    return result;
}

int rift_symbols_similar(const struct rift_symbols *symbols, const uint8_t *name, uint64_t name_size,
                         struct rift_found *found, uint32_t limit) {
    uint32_t scores[RIFT_SYMBOL_SIMILAR_MAX];
    uint32_t count = 0;
    uint64_t steps = 0;
    struct rift_found candidate;
    struct word wanted, word;
    take(&wanted, name, name_size);
    if (limit > RIFT_SYMBOL_SIMILAR_MAX)
        limit = RIFT_SYMBOL_SIMILAR_MAX;
    if (limit == 0 || wanted.size == 0)
        return 0;
    for (uint64_t next = 0; steps < STEPS_MAX && rift_symbols_peek(symbols, next, &candidate); next = candidate.index + 1) {
        uint32_t place = count, same = 0;
        take(&word, candidate.name, candidate.name_size);
        uint32_t value = score(&wanted, &word, candidate.name_size, &steps);
        if (value == UINT32_MAX || (count == limit && value >= scores[count - 1]))
            continue;
        for (uint32_t at = 0; at < count && !same; at++)
            same = found[at].name_size == candidate.name_size &&
                   memcmp(found[at].name, candidate.name, candidate.name_size) == 0;
        if (same)
            continue;
        if (count < limit)
            count++;
        else
            place = count - 1;
        for (; place > 0 && scores[place - 1] > value; place--) {
            scores[place] = scores[place - 1];
            found[place] = found[place - 1];
        }
        scores[place] = value;
        found[place] = candidate;
    }
    return (int)count;
}
