/* Both ends of the remote serial protocol, as bare as they can be: a client that times round trips, and a server that
 * gives one answer to whatever it is asked. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_SIZE (1 << 20)

struct debugger_server {
    int descriptor;
    char *answer;
    size_t size;
    pthread_t thread;
};

/* Reads up to the end of one packet, whose content is escaped, so that '#' ends it; its size, or 0. */
static size_t read_packet(int descriptor, char *buffer) {
    size_t have = 0;
    while (have < BUFFER_SIZE) {
        ssize_t got = read(descriptor, buffer + have, BUFFER_SIZE - have);
        if (got <= 0)
            return 0;
        have += (size_t)got;
        if (have >= 4 && buffer[have - 3] == '#')
            return have;
    }
    return 0;
}

static int write_all(int descriptor, const char *data, size_t size) {
    while (size) {
        ssize_t done = send(descriptor, data, size, MSG_NOSIGNAL);
        if (done <= 0)
            return -1;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

static void *serve(void *argument) {
    struct debugger_server *server = argument;
    char *buffer = malloc(BUFFER_SIZE);
    while (buffer && read_packet(server->descriptor, buffer)) {
        if (write_all(server->descriptor, server->answer, server->size))
            break;
    }
    free(buffer);
    return NULL;
}

/* Starts a server of the descriptor; it ends when the other end is closed. */
struct debugger_server *debugger_serve(int descriptor, const char *answer, size_t size) {
    struct debugger_server *server = calloc(1, sizeof *server);
    if (!server)
        return NULL;
    server->descriptor = descriptor;
    server->size = size;
    server->answer = malloc(size);
    if (!server->answer) {
        free(server);
        return NULL;
    }
    memcpy(server->answer, answer, size);
    if (pthread_create(&server->thread, NULL, serve, server)) {
        free(server->answer);
        free(server);
        return NULL;
    }
    return server;
}

void debugger_join(struct debugger_server *server) {
    pthread_join(server->thread, NULL);
    free(server->answer);
    free(server);
}

/* The size of the answer to a framed packet, which is put into `answer` as far as there is room; 0: no connection. */
size_t debugger_ask(int descriptor, const char *packet, size_t size, char *answer, size_t room) {
    char *buffer = malloc(BUFFER_SIZE);
    size_t got = 0;
    if (buffer && !write_all(descriptor, packet, size))
        got = read_packet(descriptor, buffer);
    if (got)
        memcpy(answer, buffer, got < room ? got : room);
    free(buffer);
    return got;
}

/* Nanoseconds that `count` round trips take, each with an answer of `expected` bytes; 0: another answer came. */
uint64_t debugger_packets(int descriptor, const char *packet, size_t size, int count, size_t expected) {
    char *buffer = malloc(BUFFER_SIZE);
    struct timespec begin, end;
    int done = 0;
    if (!buffer)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (done < count && !write_all(descriptor, packet, size) && read_packet(descriptor, buffer) == expected)
        ++done;
    clock_gettime(CLOCK_MONOTONIC, &end);
    free(buffer);
    if (done < count)
        return 0;
    return (uint64_t)(end.tv_sec - begin.tv_sec) * 1000000000u + (uint64_t)end.tv_nsec - (uint64_t)begin.tv_nsec;
}
