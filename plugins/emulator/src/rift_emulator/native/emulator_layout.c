/* What the bindings share that have to find out where the engine keeps the state without a name. */
#include "emulator_internal.h"

#include <errno.h>
#include <string.h>

size_t rift_emulator_find(const uint8_t *context, size_t size, const void *bytes, size_t count) {
    size_t found = 0;
    for (size_t at = 8; at + count <= size; at += 4)
        if (memcmp(context + at, bytes, count) == 0) {
            if (found)
                return 0;
            found = at;
        }
    return found;
}

int rift_emulator_recognise(const struct rift_emulator_binding *binding, int *known,
                            int (*learn)(struct unicorn *engine, struct unicorn_context *context),
                            struct rift_error *error) {
    if (*known)
        return 0;
    struct unicorn *engine = NULL;
    struct unicorn_context *context = NULL;
    int status = rift_emulator_engine_open(binding, 1u << 20, &engine, &context, error);
    if (!status) {
        *known = learn(engine, context);
        if (!*known)
            status = rift_emulator_fail(error, ENOTSUP, "the engine's CPU state is not laid out as that of 2.1.x");
    }
    rift_emulator_engine_close(engine, context);
    return status;
}
