/* Answers without Python: m and x from pages whose place is known, p and g from the images of stopped threads. */
#include "gdb_internal.h"

#include <string.h>

void rift_gdb_connection_set_images(struct rift_gdb_connection *connection,
                                    const struct rift_gdb_image *const *images, uint32_t count, uint64_t selected) {
    connection->image_count = count < MOST_IMAGES ? count : MOST_IMAGES;
    memcpy(connection->images, images, connection->image_count * sizeof(*images));
    connection->selected = selected;
}

void rift_gdb_connection_set_binary(struct rift_gdb_connection *connection, int mode) {
    connection->binary = mode;
}

uint64_t rift_gdb_connection_served(const struct rift_gdb_connection *connection) {
    return connection->served;
}

void rift_gdb_connection_add_pages(struct rift_gdb_connection *connection, uint64_t address, uint64_t host,
                                   uint64_t count) {
    uint64_t page = address >> PAGE_BITS;
    if (count > CACHE_SLOTS)
        count = CACHE_SLOTS;
    for (uint64_t at = 0; at < count; ++at, ++page, host += PAGE_BYTES)
        connection->pages[page % CACHE_SLOTS] = (struct page_slot){.page = page, .host = host};
    connection->pages_used = 1;
}

void rift_gdb_connection_forget_pages(struct rift_gdb_connection *connection) {
    if (connection->pages_used)
        memset(connection->pages, 0, CACHE_SLOTS * sizeof(*connection->pages));
    connection->pages_used = 0;
}

static const uint8_t *find_page(const struct rift_gdb_connection *connection, uint64_t address) {
    const struct page_slot *slot = &connection->pages[(address >> PAGE_BITS) % CACHE_SLOTS];
    if (!slot->host || slot->page != address >> PAGE_BITS)
        return NULL;
    return (const uint8_t *)(uintptr_t)slot->host + address % PAGE_BYTES;
}

/* Reads a hexadecimal number of at most 16 digits: the place behind it, or NULL. */
static const uint8_t *number(const uint8_t *at, const uint8_t *end, uint64_t *value) {
    const uint8_t *first = at;
    *value = 0;
    for (; at < end && at - first < 16; ++at) {
        uint8_t pair[2] = {'0', *at}, digit;
        if (rift_gdb_from_hex(pair, 2, &digit))
            break;
        *value = *value << 4 | digit;
    }
    return at == first ? NULL : at;
}

static int read_memory(struct rift_gdb_connection *connection, const uint8_t *data, size_t size, int binary) {
    const uint8_t *end = data + size;
    uint64_t address, count;
    const uint8_t *at = number(data, end, &address);
    if (!at || at == end || *at != ',')
        return 0;
    at = number(at + 1, end, &count);
    if (at != end || count == 0 || count > connection->limit / 2 || address + count < address)
        return 0;
    for (uint64_t page = address; page < address + count; page = (page | (PAGE_BYTES - 1)) + 1)
        if (!find_page(connection, page))
            return 0;
    if (rift_gdb_reserve(connection, 2 * count + 1))
        return -1;
    uint8_t *out = connection->output;
    *out++ = '$';
    if (binary && connection->binary == 1)
        *out++ = 'b';
    while (count) {
        uint64_t piece = PAGE_BYTES - address % PAGE_BYTES;
        if (piece > count)
            piece = count;
        const uint8_t *bytes = find_page(connection, address);
        if (binary) {
            out = rift_gdb_escape(bytes, piece, out);
        } else {
            rift_gdb_to_hex(bytes, piece, out);
            out += 2 * piece;
        }
        address += piece;
        count -= piece;
    }
    rift_gdb_finish(connection, (size_t)(out - connection->output) - 1);
    return 1;
}

static const struct rift_gdb_image *find_image(const struct rift_gdb_connection *connection, uint64_t thread) {
    for (uint32_t at = 0; thread && at < connection->image_count; ++at)
        if (connection->images[at]->thread == thread)
            return connection->images[at];
    return NULL;
}

/* LLDB puts the thread behind the packet: ";thread:1f;". Without it the selected one is meant. */
static const struct rift_gdb_image *image_for(const struct rift_gdb_connection *connection, const uint8_t *at,
                                              const uint8_t *end) {
    static const char prefix[] = ";thread:";
    const size_t length = sizeof(prefix) - 1;
    if (at == end)
        return find_image(connection, connection->selected);
    uint64_t thread;
    if ((size_t)(end - at) <= length || memcmp(at, prefix, length))
        return NULL;
    at = number(at + length, end, &thread);
    return at && at + 1 == end && *at == ';' ? find_image(connection, thread) : NULL;
}

static int reply(struct rift_gdb_connection *connection, const uint8_t *bytes, size_t size) {
    if (rift_gdb_reserve(connection, 2 * size))
        return -1;
    connection->output[0] = '$';
    rift_gdb_to_hex(bytes, size, connection->output + 1);
    rift_gdb_finish(connection, 2 * size);
    return 1;
}

static int read_register(struct rift_gdb_connection *connection, const uint8_t *data, size_t size) {
    const uint8_t *end = data + size;
    uint64_t which;
    const uint8_t *at = number(data, end, &which);
    if (!at)
        return 0;
    const struct rift_gdb_image *image = image_for(connection, at, end);
    if (!image || which >= image->count || !image->valid[which])
        return 0;
    return reply(connection, image->bytes + image->places[which], image->sizes[which]);
}

static int read_registers(struct rift_gdb_connection *connection, const uint8_t *data, size_t size) {
    const struct rift_gdb_image *image = image_for(connection, data, data + size);
    if (!image || memchr(image->valid, 0, image->count))
        return 0; /* some are to be shown as unavailable */
    return reply(connection, image->bytes, image->size);
}

int rift_gdb_answer(struct rift_gdb_connection *connection, const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    switch (data[0]) {
    case 'm':
        return read_memory(connection, data + 1, size - 1, 0);
    case 'x':
        return connection->binary ? read_memory(connection, data + 1, size - 1, 1) : 0;
    case 'p':
        return read_register(connection, data + 1, size - 1);
    case 'g':
        return read_registers(connection, data + 1, size - 1);
    default:
        return 0;
    }
}
