/* The byte stream: waiting, reading, finding packets in it, sending. */
#include "gdb_internal.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: Python ignores SIGPIPE anyway */
#endif

#define MOST_OTHERS 16
#define LINGER_NANOSECONDS 50000
#define NANOSECONDS 1000000 /* of a millisecond */
#define MOST_LINGERS 32 /* in a row: others want to be heard as well */
#define MOST_READS 16 /* without an event, when the time is over */
#define PATIENCE_MILLISECONDS 10000 /* how long a client may leave an answer unread */

static int fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

struct rift_gdb_connection *rift_gdb_connection_create(int descriptor, size_t limit) {
    struct rift_gdb_connection *connection = calloc(1, sizeof(*connection));
    if (!connection)
        return NULL;
    connection->descriptor = descriptor;
    connection->acknowledged = 1;
    connection->limit = limit;
    connection->capacity = 2 * limit + 4; /* every byte of the content may be escaped; '$', '#' and two digits */
    connection->input = malloc(connection->capacity);
    connection->pages = calloc(CACHE_SLOTS, sizeof(*connection->pages));
    if (!connection->input || !connection->pages) {
        rift_gdb_connection_destroy(connection);
        return NULL;
    }
    return connection;
}

void rift_gdb_connection_destroy(struct rift_gdb_connection *connection) {
    if (!connection)
        return;
    free(connection->input);
    free(connection->output);
    free(connection->pages);
    free(connection);
}

void rift_gdb_connection_acknowledge(struct rift_gdb_connection *connection, int on) {
    connection->acknowledged = on;
}

static int send_all(int descriptor, const uint8_t *data, size_t size, int milliseconds, struct rift_error *error) {
    while (size) {
        ssize_t sent = send(descriptor, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
            return fail(error, errno, "send");
        struct pollfd wait = {.fd = descriptor, .events = POLLOUT};
        int ready = poll(&wait, 1, milliseconds);
        if (ready == 0)
            return fail(error, ETIMEDOUT, "send");
        if (ready < 0 && errno != EINTR)
            return fail(error, errno, "poll");
    }
    return 0;
}

int rift_gdb_flush(struct rift_gdb_connection *connection, int milliseconds, struct rift_error *error) {
    return send_all(connection->descriptor, connection->output, connection->output_size, milliseconds, error);
}

int rift_gdb_connection_send(struct rift_gdb_connection *connection, const uint8_t *data, size_t size,
                             int milliseconds, struct rift_error *error) {
    if (rift_gdb_reserve(connection, size))
        return fail(error, ENOMEM, "realloc");
    connection->output_size = rift_gdb_frame(data, size, connection->output);
    return rift_gdb_flush(connection, milliseconds, error);
}

static int hex(uint8_t digit) {
    uint8_t pair[2] = {'0', digit}, value = 0;
    return rift_gdb_from_hex(pair, 2, &value) ? -1 : value;
}

/* Undoes the escapes in place. The length, or -1 if the last byte begins an escape. */
static long unescape(uint8_t *data, size_t size) {
    uint8_t *out = data;
    for (size_t at = 0; at < size; ++at) {
        if (data[at] != '}') {
            *out++ = data[at];
            continue;
        }
        if (++at == size)
            return -1;
        *out++ = data[at] ^ 0x20;
    }
    return out - data;
}

/* The packet between `first`, behind its '$', and `last`, its '#', both digits there. */
static void take_packet(struct rift_gdb_connection *connection, uint8_t *first, uint8_t *last,
                        struct rift_gdb_event *event) {
    uint8_t sum = 0;
    for (const uint8_t *at = first; at < last; ++at)
        sum = (uint8_t)(sum + *at);
    int high = hex(last[1]), low = hex(last[2]);
    long size = high >= 0 && low >= 0 && (high << 4 | low) == sum ? unescape(first, (size_t)(last - first)) : -1;
    if (size < 0) {
        event->kind = RIFT_GDB_DAMAGED;
    } else if (connection->skipping || (size_t)size > connection->limit) {
        event->kind = RIFT_GDB_OVERSIZED;
    } else {
        event->kind = RIFT_GDB_PACKET;
        event->data = first;
        event->size = (size_t)size;
    }
    connection->skipping = 0;
}

/* A packet that fills the buffer without an end: what has come of it is dropped, but for its '$' and, where only the
 * digits of the checksum are missing, its end. */
static void skip_content(struct rift_gdb_connection *connection) {
    uint8_t *content = connection->input + connection->start + 1;
    size_t tail = connection->end - (connection->start + 1 + connection->scanned);
    memmove(content, content + connection->scanned, tail);
    connection->end = connection->start + 1 + tail;
    connection->scanned = 0;
    connection->skipping = 1;
}

/* The next thing in the buffer: 1 with *event, 0 if more must come first. */
static int parse(struct rift_gdb_connection *connection, struct rift_gdb_event *event, int *again) {
    while (connection->start < connection->end) {
        uint8_t *at = connection->input + connection->start;
        if (*at == 0x03) {
            connection->start += 1;
            event->kind = RIFT_GDB_INTERRUPT;
            return 1;
        }
        if (*at == '-' && connection->acknowledged)
            *again = 1;
        if (*at != '$') { /* acknowledgements and what nobody understands */
            connection->start += 1;
            continue;
        }
        uint8_t *end = connection->input + connection->end;
        uint8_t *from = at + 1 + connection->scanned;
        uint8_t *mark = from < end ? memchr(from, '#', (size_t)(end - from)) : NULL;
        if (!mark || end - mark < 3) {
            connection->scanned = mark ? (size_t)(mark - at - 1) : (size_t)(end - at - 1);
            return 0;
        }
        connection->start = (size_t)(mark + 3 - connection->input);
        connection->scanned = 0;
        int skipped = connection->skipping;
        take_packet(connection, at + 1, mark, event);
        if (skipped)
            event->kind = RIFT_GDB_OVERSIZED;
        return 1;
    }
    connection->scanned = 0;
    return 0;
}

static void make_room(struct rift_gdb_connection *connection) {
    size_t kept = connection->end - connection->start;
    if (connection->start) {
        memmove(connection->input, connection->input + connection->start, kept);
        connection->start = 0;
        connection->end = kept;
    }
    if (connection->end == connection->capacity)
        skip_content(connection);
}

/* Reads what has come. 1; 0 when the client has gone; -1. */
static int fill(struct rift_gdb_connection *connection, struct rift_error *error) {
    make_room(connection);
    ssize_t got = recv(connection->descriptor, connection->input + connection->end,
                       connection->capacity - connection->end, MSG_DONTWAIT);
    if (got > 0) {
        connection->end += (size_t)got;
        return 1;
    }
    if (got == 0 || errno == ECONNRESET)
        return 0;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return 1;
    return fail(error, errno, "recv");
}

static int64_t nanoseconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Looks for the next packet before going to sleep: a client that reads many registers asks again at once, and being
 * woken on another CPU costs more than all else. 1: there are bytes, or the client has gone; 0. */
static int linger(struct rift_gdb_connection *connection) {
    int64_t end = nanoseconds_now() + LINGER_NANOSECONDS;
    uint8_t byte;
    do {
        if (recv(connection->descriptor, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0)
            return 1;
        sched_yield(); /* the client may want this very CPU */
    } while (nanoseconds_now() < end);
    return 0;
}

/* Waits for bytes or for one of the others: 1 bytes, 0 something else, which *event says, -1. */
static int wait_for(struct rift_gdb_connection *connection, const int *others, uint32_t count, int milliseconds,
                    struct rift_gdb_event *event, struct rift_error *error) {
    struct pollfd waits[MOST_OTHERS + 1] = {{.fd = connection->descriptor, .events = POLLIN}};
    for (uint32_t at = 0; at < count; ++at)
        waits[at + 1] = (struct pollfd){.fd = others[at], .events = POLLIN};
    int ready = poll(waits, count + 1, milliseconds);
    if (ready < 0 && errno != EINTR)
        return fail(error, errno, "poll");
    if (ready <= 0) { /* a signal counts as time over: the caller looks around and comes back */
        event->kind = RIFT_GDB_TIMEOUT;
        return 0;
    }
    for (uint32_t at = 0; at < count; ++at)
        if (waits[at + 1].revents) {
            event->kind = RIFT_GDB_READABLE;
            event->source = at;
            return 0;
        }
    return 1;
}

static int acknowledge(struct rift_gdb_connection *connection, int good, struct rift_error *error) {
    if (!connection->acknowledged)
        return 0;
    return send_all(connection->descriptor, (const uint8_t *)(good ? "+" : "-"), 1, PATIENCE_MILLISECONDS, error);
}

/* A packet was found: 1 if Python must know of it, 0 if it is dealt with, -1. */
static int deal_with(struct rift_gdb_connection *connection, struct rift_gdb_event *event, struct rift_error *error) {
    if (event->kind == RIFT_GDB_INTERRUPT)
        return 1;
    if (acknowledge(connection, event->kind != RIFT_GDB_DAMAGED, error))
        return -1;
    if (event->kind == RIFT_GDB_DAMAGED)
        return connection->acknowledged ? 0 : 1; /* the client sends it again */
    if (event->kind != RIFT_GDB_PACKET)
        return 1;
    int answered = rift_gdb_answer(connection, event->data, event->size);
    if (answered < 0)
        return fail(error, ENOMEM, "realloc");
    if (answered == 0)
        return 1;
    connection->served += 1;
    return rift_gdb_flush(connection, PATIENCE_MILLISECONDS, error);
}

int rift_gdb_connection_next(struct rift_gdb_connection *connection, const int *others, uint32_t other_count,
                             int milliseconds, struct rift_gdb_event *event, struct rift_error *error) {
    *event = (struct rift_gdb_event){.kind = RIFT_GDB_TIMEOUT};
    if (other_count > MOST_OTHERS)
        return fail(error, EINVAL, "poll");
    int64_t deadline = milliseconds > 0 ? nanoseconds_now() + (int64_t)milliseconds * NANOSECONDS : 0;
    for (uint32_t turn = 0;; ++turn) {
        int again = 0;
        uint64_t served = connection->served;
        while (parse(connection, event, &again)) {
            int wanted = deal_with(connection, event, error);
            if (wanted)
                return wanted < 0 ? -1 : 0;
        }
        if (again && connection->output_size && rift_gdb_flush(connection, PATIENCE_MILLISECONDS, error))
            return -1;
        if (turn && milliseconds >= 0) { /* what keeps coming and is nothing for Python takes no longer either */
            int64_t left = deadline ? (deadline - nanoseconds_now()) / NANOSECONDS : 0;
            if (left <= 0 && turn >= MOST_READS) {
                event->kind = RIFT_GDB_TIMEOUT;
                return 0;
            }
            milliseconds = left > 0 ? (int)left : 0;
        }
        int bytes = connection->served != served && turn % MOST_LINGERS && linger(connection)
                        ? 1
                        : wait_for(connection, others, other_count, milliseconds, event, error);
        if (bytes <= 0)
            return bytes;
        int alive = fill(connection, error);
        if (alive < 0)
            return -1;
        if (alive == 0) {
            event->kind = RIFT_GDB_CLOSED;
            return 0;
        }
    }
}
