/* One client's connection: packets of the GDB remote serial protocol out of a byte stream and into it, and the
 * answers to those that come by the thousand (m, x, p, g) without waking Python.
 * GDB manual, appendix "GDB Remote Serial Protocol", "Overview" (framing) and "Packets".
 *
 * What arrives is hostile: buffers have a limit that is given at creation, a packet beyond it is skipped.
 * One thread at a time uses a connection. The file is also the cdef: declarations only, a preprocessor line stands
 * alone on its line. */
#ifndef RIFT_GDB_H
#define RIFT_GDB_H

#include "rift_abi.h"

enum rift_gdb_event_kind {
    RIFT_GDB_TIMEOUT = 0,
    RIFT_GDB_PACKET = 1,    /* data, size: its content, escapes undone */
    RIFT_GDB_INTERRUPT = 2, /* the byte 0x03 between packets */
    RIFT_GDB_DAMAGED = 3,   /* a packet with a wrong checksum or escape */
    RIFT_GDB_OVERSIZED = 4, /* a packet beyond the limit, skipped */
    RIFT_GDB_CLOSED = 5,    /* the client has gone */
    RIFT_GDB_READABLE = 6   /* source: index of another descriptor that can be read */
};

/* `data` is valid until the next call on the connection. */
struct rift_gdb_event {
    uint32_t kind, source;
    const uint8_t *data;
    size_t size;
};

/* Registers of one stopped thread: the content of a `g` packet, and where each register stands in it. */
struct rift_gdb_image {
    uint64_t thread;      /* its id in the protocol */
    uint32_t count, size; /* registers; bytes of the image */
    const uint32_t *places, *sizes;
    const uint8_t *valid; /* a byte a register: 0 where the value is not known */
    const uint8_t *bytes;
};

struct rift_gdb_connection;

/* `limit`: bytes of a packet's content at most, either way. NULL without memory. The descriptor stays the caller's. */
struct rift_gdb_connection *rift_gdb_connection_create(int descriptor, size_t limit);
void rift_gdb_connection_destroy(struct rift_gdb_connection *connection);

/* Waits at most `milliseconds` (-1: for ever) for something that Python must know of; what is answered here does not
 * return. `others` are watched too. 0, or -1 with *error. */
int rift_gdb_connection_next(struct rift_gdb_connection *connection, const int *others, uint32_t other_count,
                             int milliseconds, struct rift_gdb_event *event, struct rift_error *error);

/* Frames and sends a packet. -1 with *error when the client has gone, or has not read for `milliseconds`. */
int rift_gdb_connection_send(struct rift_gdb_connection *connection, const uint8_t *data, size_t size,
                             int milliseconds, struct rift_error *error);

/* Whether packets are acknowledged, as they are until the client asks not to. */
void rift_gdb_connection_acknowledge(struct rift_gdb_connection *connection, int on);

/* What may be answered here. Registers: of the threads in `images`, which stay the caller's, as long as they are set;
 * `selected` is the thread that packets without a thread mean (0: none). Memory: pages added since the last
 * forget. */
void rift_gdb_connection_set_images(struct rift_gdb_connection *connection,
                                    const struct rift_gdb_image *const *images, uint32_t count, uint64_t selected);
/* How `x` is answered: 0 not here, 1 with 'b' before the data, 2 with the data alone. */
void rift_gdb_connection_set_binary(struct rift_gdb_connection *connection, int mode);

/* Remembers that `count` pages of 4 KiB from `address` on stand at `host`, which must stay there until forgotten. */
void rift_gdb_connection_add_pages(struct rift_gdb_connection *connection, uint64_t address, uint64_t host,
                                   uint64_t count);
void rift_gdb_connection_forget_pages(struct rift_gdb_connection *connection);

/* Packets that were answered here. */
uint64_t rift_gdb_connection_served(const struct rift_gdb_connection *connection);

/* The parts, for tests and for what has no connection. */
/* Writes the frame of a packet: at most 2 * size + 4 bytes. Returns how many. */
size_t rift_gdb_frame(const uint8_t *data, size_t size, uint8_t *out);
void rift_gdb_to_hex(const uint8_t *data, size_t size, uint8_t *out);
/* 0, or -1 if something is no hexadecimal digit. `digits` is even. */
int rift_gdb_from_hex(const uint8_t *text, size_t digits, uint8_t *out);
/* The CRC of qCRC (polynomial 0x04C11DB7, most significant bit first), continued from `crc`; begins with
 * 0xFFFFFFFF. */
uint32_t rift_gdb_crc(uint32_t crc, const uint8_t *data, size_t size);

#endif
