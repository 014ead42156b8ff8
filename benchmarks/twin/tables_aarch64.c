/* AArch64's page tables by the plainest code: stage 1, 4 levels, 48 bits, lower half only. */
#include <stddef.h>
#include <stdint.h>

struct twin_mapping {
    uint64_t virtual_address, physical, size, flags, page;
};

static uint64_t *table_below(uint8_t *ram, uint64_t *next, uint64_t page, uint64_t *entry) {
    if (!(*entry & 1)) {
        *entry = *next | 3;
        *next += page;
    }
    return (uint64_t *)(ram + (*entry & 0xfffffffff000));
}

/* Pages only. `ram` stands at guest-physical 0 and starts with the top-level tables of both halves; the others follow. */
void twin_tables_aarch64(uint8_t *ram, unsigned page_bits, const struct twin_mapping *mapping) {
    const unsigned index_bits = page_bits - 3;
    const uint64_t page = 1ull << page_bits, entries = 1ull << index_bits;
    uint64_t next = 2 * page;
    uint64_t va = mapping->virtual_address, pa = mapping->physical, end = va + mapping->size;
    while (va != end) {
        uint64_t *table = (uint64_t *)ram;
        for (unsigned level = 0; level < 3; ++level) {
            const unsigned shift = page_bits + index_bits * (3 - level);
            table = table_below(ram, &next, page, &table[va >> shift & (entries - 1)]);
        }
        do {
            table[va >> page_bits & (entries - 1)] = pa | mapping->flags;
            va += page;
            pa += page;
        } while (va != end && (va >> page_bits & (entries - 1)));
    }
}
