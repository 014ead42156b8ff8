#include "handlers.h"

int rift_handlers_exit_store(void *context, const struct rift_host *host, struct rift_exit *exit) {
    (void)context;
    (void)host;
    return exit->is_write ? RIFT_STOP : RIFT_PASS; /* the status stands in exit->value already */
}

int rift_handlers_debug_exit_access(void *context, const struct rift_host *host, struct rift_exit *exit) {
    (void)context;
    (void)host;
    if (!exit->is_write) {
        exit->value = 0;
        return RIFT_RESUME;
    }
    exit->value = exit->value << 1 | 1;
    return RIFT_STOP;
}
