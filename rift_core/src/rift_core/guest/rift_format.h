/* Formatted text without a C library. Knows nothing of the guest, so that the host can test it. */
#ifndef RIFT_FORMAT_H
#define RIFT_FORMAT_H

#include <stdarg.h>
#include <stddef.h>

/* Called with each stretch of output; `bytes` is at least 1. */
typedef void rift_sink_fn(void *context, const char *text, size_t bytes);

/* Formats into a sink and returns the number of characters.
 *
 * Conversions: %d %i %u %x %X %o %p %s %c %%, with the length modifiers hh h l ll z t j, the flags
 * - 0 + space #, a width and a precision (both also as *). Integers only: there is no %f, since ring 0
 * payloads are compiled without floating point. %n is not there on purpose. An unknown conversion is
 * printed as it stands. %s of NULL prints (null). */
size_t rift_format(rift_sink_fn *sink, void *context, const char *format, va_list arguments);

/* As the C library's: writes at most `bytes` with the final zero, returns the length it would have had. */
int rift_vsnprintf(char *buffer, size_t bytes, const char *format, va_list arguments);
int rift_snprintf(char *buffer, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
