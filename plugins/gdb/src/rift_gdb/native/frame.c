/* Frames: $content#checksum, with '}' before bytes that would be taken for something else. And hexadecimal. */
#include "gdb_internal.h"

#include <stdlib.h>
#include <string.h>

static const char digits[] = "0123456789abcdef";

void rift_gdb_to_hex(const uint8_t *data, size_t size, uint8_t *out) {
    for (size_t at = 0; at < size; ++at) {
        *out++ = (uint8_t)digits[data[at] >> 4];
        *out++ = (uint8_t)digits[data[at] & 15];
    }
}

static int value_of(uint8_t digit) {
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    uint8_t letter = digit | 0x20;
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

int rift_gdb_from_hex(const uint8_t *text, size_t count, uint8_t *out) {
    for (size_t at = 0; at + 1 < count; at += 2) {
        int high = value_of(text[at]), low = value_of(text[at + 1]);
        if (high < 0 || low < 0)
            return -1;
        *out++ = (uint8_t)(high << 4 | low);
    }
    return 0;
}

/* '*' would begin a run-length code in a reply. */
static int is_special(uint8_t byte) {
    return byte == '#' || byte == '$' || byte == '}' || byte == '*';
}

uint8_t *rift_gdb_escape(const uint8_t *data, size_t size, uint8_t *out) {
    for (size_t at = 0; at < size; ++at) {
        if (is_special(data[at])) {
            *out++ = '}';
            *out++ = data[at] ^ 0x20;
        } else {
            *out++ = data[at];
        }
    }
    return out;
}

static uint8_t *finish(uint8_t *frame, uint8_t *end) {
    uint8_t sum = 0;
    for (const uint8_t *at = frame + 1; at < end; ++at)
        sum = (uint8_t)(sum + *at);
    *end++ = '#';
    *end++ = (uint8_t)digits[sum >> 4];
    *end++ = (uint8_t)digits[sum & 15];
    return end;
}

size_t rift_gdb_frame(const uint8_t *data, size_t size, uint8_t *out) {
    *out = '$';
    return (size_t)(finish(out, rift_gdb_escape(data, size, out + 1)) - out);
}

void rift_gdb_finish(struct rift_gdb_connection *connection, size_t size) {
    uint8_t *end = finish(connection->output, connection->output + 1 + size);
    connection->output_size = (size_t)(end - connection->output);
}

int rift_gdb_reserve(struct rift_gdb_connection *connection, size_t size) {
    size_t wanted = 2 * size + 4;
    if (wanted <= connection->output_capacity)
        return 0;
    uint8_t *larger = realloc(connection->output, wanted);
    if (!larger)
        return -1;
    connection->output = larger;
    connection->output_capacity = wanted;
    return 0;
}

uint32_t rift_gdb_crc(uint32_t crc, const uint8_t *data, size_t size) {
    for (size_t at = 0; at < size; ++at) {
        crc ^= (uint32_t)data[at] << 24;
        for (int bit = 0; bit < 8; ++bit)
            crc = crc << 1 ^ (crc >> 31 ? 0x04C11DB7u : 0);
    }
    return crc;
}
