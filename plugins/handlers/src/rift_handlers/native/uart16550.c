/* The part of a 16550 that a payload needs to print: no interrupts, nothing is ever received but in
 * loop-back mode, which payloads use to find out whether there is a UART at all.
 * Registers: National Semiconductor PC16550D data sheet, section 8; the Python half states the bits. */
#include "handlers.h"

enum { DLAB = 0x80, LOOP = 0x10 };
enum { TRANSMITTER_EMPTY = 0x60, NO_INTERRUPT = 0x01, FIFO_ENABLED = 0xc0, MODEM_READY = 0xb0 };

/* Single bytes, read and written whole: vCPUs that share a UART see some order of their accesses. */
static uint8_t get(const struct rift_handlers_uart16550 *uart, unsigned at) {
    return __atomic_load_n(&uart->registers[at], __ATOMIC_RELAXED);
}

static void set(struct rift_handlers_uart16550 *uart, unsigned at, unsigned value) {
    __atomic_store_n(&uart->registers[at], (uint8_t)value, __ATOMIC_RELAXED);
}

/* In loop-back mode the modem's inputs are its outputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD. */
static unsigned modem_status(unsigned mcr) {
    if (!(mcr & LOOP))
        return MODEM_READY;
    return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4;
}

static unsigned read_register(struct rift_handlers_uart16550 *uart, unsigned offset) {
    const int divisor = get(uart, RIFT_HANDLERS_UART_LCR) & DLAB;
    switch (offset) {
    case 0:
        if (divisor)
            return get(uart, RIFT_HANDLERS_UART_DLL);
        set(uart, RIFT_HANDLERS_UART_READY, 0);
        return get(uart, RIFT_HANDLERS_UART_RECEIVED);
    case 1:
        return get(uart, divisor ? RIFT_HANDLERS_UART_DLM : RIFT_HANDLERS_UART_IER);
    case 2:
        return NO_INTERRUPT | (get(uart, RIFT_HANDLERS_UART_FCR) & 1 ? FIFO_ENABLED : 0u);
    case 5:
        return TRANSMITTER_EMPTY | get(uart, RIFT_HANDLERS_UART_READY);
    case 6:
        return modem_status(get(uart, RIFT_HANDLERS_UART_MCR));
    default: /* LCR, MCR, SCR */
        return get(uart, offset);
    }
}

/* 0: the byte is for the console, which does not take it now. */
static int write_register(struct rift_handlers_uart16550 *uart, unsigned offset, unsigned char value) {
    const int divisor = get(uart, RIFT_HANDLERS_UART_LCR) & DLAB;
    switch (offset) {
    case 0:
        if (divisor) {
            set(uart, RIFT_HANDLERS_UART_DLL, value);
        } else if (get(uart, RIFT_HANDLERS_UART_MCR) & LOOP) {
            set(uart, RIFT_HANDLERS_UART_RECEIVED, value);
            set(uart, RIFT_HANDLERS_UART_READY, 1);
        } else {
            return rift_handlers_console_push(uart->console, value);
        }
        return 1;
    case 1:
        if (divisor)
            set(uart, RIFT_HANDLERS_UART_DLM, value);
        else
            set(uart, RIFT_HANDLERS_UART_IER, value & 0x0f);
        return 1;
    case 4:
        set(uart, RIFT_HANDLERS_UART_MCR, value & 0x1f);
        return 1;
    case 5: /* LSR and MSR are read-only */
    case 6:
        return 1;
    default: /* FCR, LCR, SCR */
        set(uart, offset, value);
        return 1;
    }
}

int rift_handlers_uart16550_access(void *context, const struct rift_host *host, struct rift_exit *exit) {
    (void)host;
    struct rift_handlers_uart16550 *uart = context;
    const unsigned offset = (unsigned)(exit->address - uart->base) & 7;
    if (exit->is_write)
        return write_register(uart, offset, (unsigned char)exit->value) ? RIFT_RESUME : RIFT_PASS;
    exit->value = read_register(uart, offset);
    return RIFT_RESUME;
}
