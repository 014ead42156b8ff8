"""``uart16550``: what a payload needs of a PC's serial port to print.

Nothing is received and no interrupt is raised, but in loop-back mode, with which payloads find out whether
there is a UART at all, the byte sent is the byte received. Registers: National Semiconductor PC16550D data
sheet, section 8. An access of any size reaches one register, with its low byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.exits import ExitHandler, ExitKind, Resume
from rift_handlers._native import ffi, lib
from rift_handlers.native import native_handler

if TYPE_CHECKING:
    from rift_core.backend import VCpu
    from rift_core.exits import Exit, ExitResult
    from rift_handlers.console import Console

PORTS = 8

DLAB = 0x80
"""LCR: the first two ports are the divisor latch."""

LOOP = 0x10
"""MCR: loop-back mode."""

TRANSMITTER_EMPTY = 0x60
"""LSR: THRE and TEMT."""

NO_INTERRUPT = 0x01
"""IIR: none pending."""

FIFO_ENABLED = 0xC0
"""IIR, when FCR has its bit 0."""

MODEM_READY = 0xB0
"""MSR: DCD, DSR, CTS."""

_RECEIVED: int = lib.RIFT_HANDLERS_UART_RECEIVED
_IER: int = lib.RIFT_HANDLERS_UART_IER
_FCR: int = lib.RIFT_HANDLERS_UART_FCR
_LCR: int = lib.RIFT_HANDLERS_UART_LCR
_MCR: int = lib.RIFT_HANDLERS_UART_MCR
_READY: int = lib.RIFT_HANDLERS_UART_READY
_DLL: int = lib.RIFT_HANDLERS_UART_DLL
_DLM: int = lib.RIFT_HANDLERS_UART_DLM

_DONE = Resume()


class Uart16550:
    """The Python half. It works on the registers of ``native``, the C half's context."""

    def __init__(self, base: int, console: Console) -> None:
        self._base = base
        self._console = console
        self.native: Any = ffi.new("struct rift_handlers_uart16550 *", {"base": base, "console": console.native})
        self._registers: Any = self.native.registers

    def access(self, vcpu: VCpu, exit: Exit) -> ExitResult | None:
        """Answer a port access. Raises as :meth:`~rift_handlers.console.Console.put`."""
        offset = (exit.address - self._base) % PORTS
        if not exit.is_write:
            return Resume(self._read(offset))
        self._write(offset, exit.value & 0xFF)
        return _DONE

    def _read(self, offset: int) -> int:
        registers = self._registers
        divisor = registers[_LCR] & DLAB
        match offset:
            case 0 if divisor:
                value = registers[_DLL]
            case 0:
                registers[_READY] = 0
                value = registers[_RECEIVED]
            case 1:
                value = registers[_DLM if divisor else _IER]
            case 2:
                value = NO_INTERRUPT | (FIFO_ENABLED if registers[_FCR] & 1 else 0)
            case 5:
                value = TRANSMITTER_EMPTY | registers[_READY]
            case 6:
                value = _modem_status(registers[_MCR])
            case _:  # LCR, MCR, SCR
                value = registers[offset]
        return int(value)

    def _write(self, offset: int, value: int) -> None:
        registers = self._registers
        divisor = registers[_LCR] & DLAB
        match offset:
            case 0 if divisor:
                registers[_DLL] = value
            case 0 if registers[_MCR] & LOOP:
                registers[_RECEIVED] = value
                registers[_READY] = 1
            case 0:
                self._console.put(value)
            case 1 if divisor:
                registers[_DLM] = value
            case 1:
                registers[_IER] = value & 0x0F
            case 4:
                registers[_MCR] = value & 0x1F
            case 5 | 6:
                pass  # LSR and MSR are read-only
            case _:  # FCR, LCR, SCR
                registers[offset] = value


def _modem_status(mcr: int) -> int:
    """In loop-back mode the modem's inputs are its outputs: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD."""
    if not mcr & LOOP:
        return MODEM_READY
    return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4


def uart16550_handlers(port: int, console: Console) -> list[ExitHandler]:
    """The eight ports from ``port`` on."""
    uart = Uart16550(port, console)
    native = native_handler("uart16550_access", uart.native, (uart, console))
    ports = range(port, port + PORTS)
    return [ExitHandler("uart16550", frozenset({ExitKind.PORT_IO}), ports, uart.access, native, finish=console.finish)]
