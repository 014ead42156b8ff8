#include "handlers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct rift_handlers_console {
    pthread_mutex_t lock;
    uint32_t used, room;
    int lines;
    unsigned char bytes[RIFT_HANDLERS_CONSOLE_SIZE];
};

struct rift_handlers_console *rift_handlers_console_create(void) {
    struct rift_handlers_console *console = calloc(1, sizeof(*console));
    if (!console)
        return NULL;
    if (pthread_mutex_init(&console->lock, NULL)) {
        free(console);
        return NULL;
    }
    return console;
}

void rift_handlers_console_destroy(struct rift_handlers_console *console) {
    if (!console)
        return;
    pthread_mutex_destroy(&console->lock);
    free(console);
}

void rift_handlers_console_open(struct rift_handlers_console *console, uint32_t room, int lines) {
    pthread_mutex_lock(&console->lock);
    console->room = room < RIFT_HANDLERS_CONSOLE_SIZE ? room : RIFT_HANDLERS_CONSOLE_SIZE;
    console->lines = lines;
    pthread_mutex_unlock(&console->lock);
}

uint32_t rift_handlers_console_take(struct rift_handlers_console *console, unsigned char *bytes) {
    pthread_mutex_lock(&console->lock);
    const uint32_t used = console->used;
    memcpy(bytes, console->bytes, used);
    console->used = 0;
    console->room = 0;
    pthread_mutex_unlock(&console->lock);
    return used;
}

int rift_handlers_console_push(struct rift_handlers_console *console, unsigned char byte) {
    pthread_mutex_lock(&console->lock);
    const int taken = console->used < console->room && !(console->lines && byte == '\n');
    if (taken)
        console->bytes[console->used++] = byte;
    pthread_mutex_unlock(&console->lock);
    return taken;
}

int rift_handlers_console_store(void *context, const struct rift_host *host, struct rift_exit *exit) {
    (void)host;
    if (!exit->is_write)
        return RIFT_PASS;
    return rift_handlers_console_push(context, (unsigned char)exit->value) ? RIFT_RESUME : RIFT_PASS;
}
