/* Bytes to the console. In supervisor mode each is one store; in user mode a chunk is one system call. */
#include "rift_internal.h"

RIFT_RUNTIME(write) void rift_write(const void *bytes, size_t count) {
    if (!rift_is_supervisor()) {
        rift_user_call(RIFT_CALL_CONSOLE, (uintptr_t)bytes, count, 0, 0, 0, 0);
        return;
    }
    const uint8_t *next = bytes;
    for (const uint8_t *end = next + count; next != end; ++next)
        rift_doorbell_store_8(RIFT_DOORBELL_CONSOLE, *next);
}

RIFT_RUNTIME(putchar) void rift_putchar(char character) {
    rift_write(&character, 1);
}

RIFT_RUNTIME(puts) void rift_puts(const char *text) {
    rift_write(text, strlen(text));
}

RIFT_RUNTIME(printf) static void to_console(void *context, const char *text, size_t bytes) {
    (void)context;
    rift_write(text, bytes);
}

RIFT_RUNTIME(printf) int rift_vprintf(const char *format, va_list arguments) {
    return (int)rift_format(to_console, NULL, format, arguments);
}

RIFT_RUNTIME(printf) int rift_printf(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int count = rift_vprintf(format, arguments);
    va_end(arguments);
    return count;
}
