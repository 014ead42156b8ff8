#include "rift_section.h" /* before all declarations */

#include "rift_format.h"

#include <stdbool.h>
#include <stdint.h>

enum { CHUNK = 120, DIGITS = 24 }; /* DIGITS: 2^64 has 22 in octal */

/* Collects characters, so that a sink that costs a system call is asked once a chunk. */
struct output {
    rift_sink_fn *sink;
    void *context;
    size_t total, used;
    char chunk[CHUNK];
};

struct conversion {
    bool left, zero, plus, space, alternate;
    int width, precision; /* precision: -1 where none is given */
    char length;          /* 'H' for hh, 'h', 'l', 'q' for ll, 'z', 't', 'j', or 0 */
};

RIFT_RUNTIME(format) static void flush(struct output *output) {
    if (output->used)
        output->sink(output->context, output->chunk, output->used);
    output->total += output->used;
    output->used = 0;
}

RIFT_RUNTIME(format) static void put(struct output *output, char character) {
    if (output->used == CHUNK)
        flush(output);
    output->chunk[output->used++] = character;
}

RIFT_RUNTIME(format) static void put_bytes(struct output *output, const char *text, size_t bytes) {
    while (bytes--)
        put(output, *text++);
}

RIFT_RUNTIME(format) static void pad(struct output *output, char character, int count) {
    while (count-- > 0)
        put(output, character);
}

/* Writes the digits of `value` that end before `end` and returns the first. */
RIFT_RUNTIME(format) static char *digits(char *end, uint64_t value, unsigned base, bool capital) {
    const char letters = (char)((capital ? 'A' : 'a') - 10);
    if (base == 10) {
        /* 32-bit division is several times cheaper than 64-bit on older CPUs. */
        for (; value > UINT32_MAX; value /= 10)
            *--end = (char)('0' + value % 10);
        for (uint32_t rest = (uint32_t)value; rest; rest /= 10)
            *--end = (char)('0' + rest % 10);
        return end;
    }
    const unsigned shift = base == 16 ? 4 : 3;
    for (; value; value >>= shift) {
        unsigned digit = (unsigned)value & (base - 1);
        *--end = (char)(digit < 10 ? '0' + (char)digit : letters + (char)digit);
    }
    return end;
}

RIFT_RUNTIME(format) static void put_number(struct output *output, const struct conversion *conversion, uint64_t value,
                                       const char *prefix, unsigned base, bool capital) {
    char text[DIGITS];
    char *const end = text + DIGITS;
    const char *first = digits(end, value, base, capital);
    const int count = (int)(end - first);
    int prefix_bytes = 0;
    while (prefix[prefix_bytes])
        ++prefix_bytes;
    int zeros = 0;
    const int least = conversion->precision < 0 ? 1 : conversion->precision;
    if (count < least)
        zeros = least - count;
    if (base == 8 && conversion->alternate && zeros == 0)
        zeros = 1;
    int room = conversion->width - prefix_bytes - zeros - count;
    if (conversion->zero && !conversion->left && conversion->precision < 0 && room > 0) {
        zeros += room;
        room = 0;
    }
    if (!conversion->left)
        pad(output, ' ', room);
    put_bytes(output, prefix, (size_t)prefix_bytes);
    pad(output, '0', zeros);
    put_bytes(output, first, (size_t)count);
    if (conversion->left)
        pad(output, ' ', room);
}

RIFT_RUNTIME(format) static void put_text(struct output *output, const struct conversion *conversion, const char *text) {
    if (!text)
        text = "(null)";
    int bytes = 0;
    while ((conversion->precision < 0 || bytes < conversion->precision) && text[bytes])
        ++bytes;
    if (!conversion->left)
        pad(output, ' ', conversion->width - bytes);
    put_bytes(output, text, (size_t)bytes);
    if (conversion->left)
        pad(output, ' ', conversion->width - bytes);
}

/* va_list by pointer: as a parameter it is an array on some ISAs and a struct on others. */
struct arguments {
    va_list list;
};

RIFT_RUNTIME(format) static int64_t signed_argument(struct arguments *arguments, char length) {
    switch (length) {
    case 'H':
        return (signed char)va_arg(arguments->list, int);
    case 'h':
        return (short)va_arg(arguments->list, int);
    case 0:
        return va_arg(arguments->list, int);
    default: /* l, ll, z, t, j: 64 bits on every ISA that is served */
        return va_arg(arguments->list, int64_t);
    }
}

RIFT_RUNTIME(format) static uint64_t unsigned_argument(struct arguments *arguments, char length) {
    switch (length) {
    case 'H':
        return (unsigned char)va_arg(arguments->list, unsigned);
    case 'h':
        return (unsigned short)va_arg(arguments->list, unsigned);
    case 0:
        return va_arg(arguments->list, unsigned);
    default:
        return va_arg(arguments->list, uint64_t);
    }
}

/* A decimal number or '*', bounded: a width of a billion would only be a way to hang. */
RIFT_RUNTIME(format) static int read_count(const char **format, struct arguments *arguments) {
    if (**format == '*') {
        ++*format;
        return va_arg(arguments->list, int);
    }
    int count = 0;
    for (; **format >= '0' && **format <= '9'; ++*format)
        if (count < 100000)
            count = count * 10 + (**format - '0');
    return count;
}

RIFT_RUNTIME(format) static struct conversion read_conversion(const char **format, struct arguments *arguments) {
    struct conversion conversion = {.precision = -1};
    for (bool flags = true; flags;) {
        switch (**format) {
        case '-':
            conversion.left = true;
            break;
        case '0':
            conversion.zero = true;
            break;
        case '+':
            conversion.plus = true;
            break;
        case ' ':
            conversion.space = true;
            break;
        case '#':
            conversion.alternate = true;
            break;
        default:
            flags = false;
            continue;
        }
        ++*format;
    }
    conversion.width = read_count(format, arguments);
    if (conversion.width < 0) {
        conversion.left = true;
        conversion.width = -conversion.width;
    }
    if (**format == '.') {
        ++*format;
        conversion.precision = read_count(format, arguments);
    }
    const char length = **format;
    if (length == 'h' || length == 'l') {
        conversion.length = length;
        if (*++*format == length) {
            conversion.length = length == 'h' ? 'H' : 'q';
            ++*format;
        }
    } else if (length == 'z' || length == 't' || length == 'j') {
        conversion.length = length;
        ++*format;
    }
    return conversion;
}

/* Returns false where the conversion is unknown. */
RIFT_RUNTIME(format) static bool convert(struct output *output, struct conversion *conversion, char kind,
                                    struct arguments *arguments) {
    switch (kind) {
    case 'd':
    case 'i': {
        int64_t value = signed_argument(arguments, conversion->length);
        uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
        const char *sign = value < 0 ? "-" : conversion->plus ? "+" : conversion->space ? " " : "";
        put_number(output, conversion, magnitude, sign, 10, false);
        return true;
    }
    case 'u':
        put_number(output, conversion, unsigned_argument(arguments, conversion->length), "", 10, false);
        return true;
    case 'o':
        put_number(output, conversion, unsigned_argument(arguments, conversion->length), "", 8, false);
        return true;
    case 'x':
    case 'X': {
        uint64_t value = unsigned_argument(arguments, conversion->length);
        const char *prefix = conversion->alternate && value ? (kind == 'x' ? "0x" : "0X") : "";
        put_number(output, conversion, value, prefix, 16, kind == 'X');
        return true;
    }
    case 'p':
        put_number(output, conversion, (uint64_t)(uintptr_t)va_arg(arguments->list, void *), "0x", 16, false);
        return true;
    case 's':
        put_text(output, conversion, va_arg(arguments->list, const char *));
        return true;
    case 'c': {
        const char character = (char)va_arg(arguments->list, int);
        if (!conversion->left)
            pad(output, ' ', conversion->width - 1);
        put(output, character);
        if (conversion->left)
            pad(output, ' ', conversion->width - 1);
        return true;
    }
    case '%':
        put(output, '%');
        return true;
    default:
        return false;
    }
}

RIFT_RUNTIME(format) size_t rift_format(rift_sink_fn *sink, void *context, const char *format, va_list list) {
    struct output output;
    output.sink = sink;
    output.context = context;
    output.total = output.used = 0;
    struct arguments arguments;
    va_copy(arguments.list, list);
    while (*format) {
        if (*format != '%') {
            put(&output, *format++);
            continue;
        }
        const char *start = format++;
        struct conversion conversion = read_conversion(&format, &arguments);
        if (*format && convert(&output, &conversion, *format, &arguments)) {
            ++format;
            continue;
        }
        put(&output, *start); /* the rest follows as plain text */
        format = start + 1;
    }
    va_end(arguments.list);
    flush(&output);
    return output.total;
}

struct buffer {
    char *text;
    size_t bytes, used;
};

RIFT_RUNTIME(snprintf) static void to_buffer(void *context, const char *text, size_t bytes) {
    struct buffer *buffer = context;
    for (; bytes; --bytes, ++buffer->used) {
        if (buffer->used + 1 < buffer->bytes)
            buffer->text[buffer->used] = *text++;
    }
}

RIFT_RUNTIME(snprintf) int rift_vsnprintf(char *text, size_t bytes, const char *format, va_list arguments) {
    struct buffer buffer = {.text = text, .bytes = bytes, .used = 0};
    const size_t total = rift_format(to_buffer, &buffer, format, arguments);
    if (bytes)
        text[total < bytes ? total : bytes - 1] = 0;
    return (int)total;
}

RIFT_RUNTIME(snprintf) int rift_snprintf(char *text, size_t bytes, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int total = rift_vsnprintf(text, bytes, format, arguments);
    va_end(arguments);
    return total;
}
