#include "rift_dispatch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct range {
    uint64_t first, last;
    rift_exit_fn *handle;
    void *context;
};

/* Sorted by `first`; ranges that are not fallbacks do not overlap. */
struct list {
    struct range *ranges;
    size_t count;
};

struct rift_dispatch {
    struct list owners[RIFT_EXIT_KINDS];
    struct list fallbacks[RIFT_EXIT_KINDS];
};

struct rift_dispatch *rift_dispatch_create(void) {
    return calloc(1, sizeof(struct rift_dispatch));
}

void rift_dispatch_destroy(struct rift_dispatch *dispatch) {
    if (!dispatch)
        return;
    for (size_t kind = 0; kind < RIFT_EXIT_KINDS; ++kind) {
        free(dispatch->owners[kind].ranges);
        free(dispatch->fallbacks[kind].ranges);
    }
    free(dispatch);
}

int rift_dispatch_add(struct rift_dispatch *dispatch, uint32_t kind, uint64_t first, uint64_t last,
                      rift_exit_fn *handle, void *context, int fallback) {
    if (kind == 0 || kind >= RIFT_EXIT_KINDS || first > last || !handle)
        return -EINVAL;
    struct list *list = fallback ? &dispatch->fallbacks[kind] : &dispatch->owners[kind];
    size_t at = 0;
    while (at < list->count && list->ranges[at].first <= first)
        ++at;
    if (!fallback) {
        if (at > 0 && list->ranges[at - 1].last >= first)
            return -EEXIST;
        if (at < list->count && list->ranges[at].first <= last)
            return -EEXIST;
    }
    struct range *ranges = realloc(list->ranges, (list->count + 1) * sizeof(*ranges));
    if (!ranges)
        return -ENOMEM;
    memmove(&ranges[at + 1], &ranges[at], (list->count - at) * sizeof(*ranges));
    ranges[at] = (struct range){.first = first, .last = last, .handle = handle, .context = context};
    list->ranges = ranges;
    list->count += 1;
    return 0;
}

/* The last range that starts at or below the address: one look-up however many handlers there are. */
static const struct range *owner_of(const struct list *list, uint64_t address) {
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (list->ranges[middle].first <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || list->ranges[low - 1].last < address)
        return NULL;
    return &list->ranges[low - 1];
}

int rift_dispatch_exit(const struct rift_dispatch *dispatch, const struct rift_host *host, struct rift_exit *exit) {
    if (exit->kind >= RIFT_EXIT_KINDS)
        return RIFT_PASS;
    const uint64_t address = exit->address;
    const struct range *owner = owner_of(&dispatch->owners[exit->kind], address);
    if (owner) {
        int verdict = owner->handle(owner->context, host, exit);
        if (verdict != RIFT_PASS)
            return verdict;
    }
    const struct list *fallbacks = &dispatch->fallbacks[exit->kind];
    for (size_t at = 0; at < fallbacks->count; ++at) {
        const struct range *range = &fallbacks->ranges[at];
        if (address < range->first || address > range->last)
            continue;
        int verdict = range->handle(range->context, host, exit);
        if (verdict != RIFT_PASS)
            return verdict;
    }
    return RIFT_PASS;
}
