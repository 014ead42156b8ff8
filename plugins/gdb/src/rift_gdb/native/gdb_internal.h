/* What the C files of the connection share. */
#ifndef RIFT_GDB_INTERNAL_H
#define RIFT_GDB_INTERNAL_H

#include "gdb.h"

#define PAGE_BITS 12
#define PAGE_BYTES ((uint64_t)1 << PAGE_BITS)
#define CACHE_SLOTS 8192
#define MOST_IMAGES 1024

/* Where a guest page stands in this process; host 0: the slot is empty. */
struct page_slot {
    uint64_t page, host;
};

struct rift_gdb_connection {
    int descriptor;
    int acknowledged;
    size_t limit;

    uint8_t *input; /* bytes [start, end) have arrived and are not used up */
    size_t start, end, capacity;
    size_t scanned; /* of an unfinished packet: bytes from start on that hold no '#' */
    int skipping;   /* inside a packet beyond the limit */

    uint8_t *output; /* the last frame, in case the client wants it again */
    size_t output_size, output_capacity;

    const struct rift_gdb_image *images[MOST_IMAGES];
    uint32_t image_count;
    uint64_t selected;
    int binary;
    struct page_slot *pages;
    int pages_used;
    uint64_t served;
};

/* Answers a packet if that can be done here: 1, with the frame in output; 0 if not; -1 without memory. */
int rift_gdb_answer(struct rift_gdb_connection *connection, const uint8_t *data, size_t size);

/* Room for a frame of `size` bytes of content. 0, or -1 without memory. */
int rift_gdb_reserve(struct rift_gdb_connection *connection, size_t size);

/* The frame's end: '#' and the checksum of what stands behind the '$' at output[0]. */
void rift_gdb_finish(struct rift_gdb_connection *connection, size_t size);

/* Sends what stands in output. 0, or -1. */
int rift_gdb_flush(struct rift_gdb_connection *connection, int milliseconds, struct rift_error *error);

/* Appends escaped bytes at `out`; returns the place behind. */
uint8_t *rift_gdb_escape(const uint8_t *data, size_t size, uint8_t *out);

#endif
