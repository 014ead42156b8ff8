/* Native halves of the standard exit handlers: each a rift_exit_fn that answers what it can without waking
 * Python, and passes the rest (RIFT_PASS) to the Python half, which decides everything again.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_HANDLERS_H
#define RIFT_HANDLERS_H

#include "rift_abi.h"

/* ---- ending a thread (exit.c) -------------------------------------------------------------------------- */

/* A write ends the thread with the written value as its status. No context. */
int rift_handlers_exit_store(void *context, const struct rift_host *host, struct rift_exit *exit);

/* A write ends the thread with status (value << 1) | 1; a read gives 0. No context. */
int rift_handlers_debug_exit_access(void *context, const struct rift_host *host, struct rift_exit *exit);

/* ---- console (console.c) ------------------------------------------------------------------------------- */

/* Bytes of guests on their way to Python, which alone writes to streams. Several vCPUs may append at once;
 * one Python thread at a time takes. */
struct rift_handlers_console;

enum { RIFT_HANDLERS_CONSOLE_SIZE = 65536 };

/* A closed console, or NULL without memory. Destroy accepts NULL. */
struct rift_handlers_console *rift_handlers_console_create(void);
void rift_handlers_console_destroy(struct rift_handlers_console *console);

/* Lets the console hold up to `room` bytes, at most RIFT_HANDLERS_CONSOLE_SIZE. `lines`: a newline is not
 * appended but passed to Python, so that a person sees each line at once. */
void rift_handlers_console_open(struct rift_handlers_console *console, uint32_t room, int lines);

/* Moves what it holds to `bytes` (RIFT_HANDLERS_CONSOLE_SIZE of them), returns how many, and closes it:
 * until it is opened again every byte is passed to Python. */
uint32_t rift_handlers_console_take(struct rift_handlers_console *console, unsigned char *bytes);

/* 1: appended. 0: closed, full, or a newline that Python wants to see. */
int rift_handlers_console_push(struct rift_handlers_console *console, unsigned char byte);

/* A write appends its low byte. The context is a struct rift_handlers_console. */
int rift_handlers_console_store(void *context, const struct rift_host *host, struct rift_exit *exit);

/* ---- 16550 (uart16550.c) ------------------------------------------------------------------------------- */

/* Places in the register file: the offsets of the UART's own registers, and behind them what stands at the
 * same offsets at other times. The Python half works on the same bytes. */
enum {
    RIFT_HANDLERS_UART_RECEIVED = 0, /* loop-back mode: the byte that was sent */
    RIFT_HANDLERS_UART_IER = 1,
    RIFT_HANDLERS_UART_FCR = 2,
    RIFT_HANDLERS_UART_LCR = 3,
    RIFT_HANDLERS_UART_MCR = 4,
    RIFT_HANDLERS_UART_READY = 5, /* 1: RECEIVED has not been read */
    RIFT_HANDLERS_UART_SCR = 7,
    RIFT_HANDLERS_UART_DLL = 8,
    RIFT_HANDLERS_UART_DLM = 9,
    RIFT_HANDLERS_UART_FILE = 16 /* bytes */
};

struct rift_handlers_uart16550 {
    uint64_t base;
    struct rift_handlers_console *console;
    uint8_t registers[16];
};

/* One access to the eight registers from `base` on: a byte, whatever its size. The context is a
 * struct rift_handlers_uart16550. */
int rift_handlers_uart16550_access(void *context, const struct rift_host *host, struct rift_exit *exit);

#endif
