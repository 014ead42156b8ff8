"""exit, debug-exit and uart16550, as payloads use them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

import rift_handlers
from rift_core import doorbell
from rift_core.exits import Exit, ExitKind
from rift_core.plugin import PluginInfo
from rift_core.testing.exit_handler import Answer, Halves, StandInMachine, StandInVCpu

if TYPE_CHECKING:
    from rift_core.plugin import Section

BASE = 0x3F8


def halves(config: Section, *, native: bool = True, stream: Any = None) -> Halves:
    machine = StandInMachine()
    if stream is not None:
        machine.console_stream = stream
    handlers = list(rift_handlers.rift_exit_handlers(config, machine))
    return Halves(machine, handlers, StandInVCpu(()), native=native)


def write(half: Halves, port: int, value: int) -> Answer:
    return half.ask(Exit(ExitKind.PORT_IO, port, 1, value, True))


def read(half: Halves, port: int) -> object:
    return half.ask(Exit(ExitKind.PORT_IO, port, 1)).value


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("value", "status"), [(0, 0), (7, 7), (0xFFFF_FFFF, -1), (0x1_0000_0002, 2), ((1 << 64) - 5, -5)]
)
def test_exit_ends_the_thread_with_a_c_int(native: bool, value: int, status: int) -> None:
    half = halves(rift_handlers.ExitConfig(), native=native)
    register = half.machine.doorbell + doorbell.EXIT
    assert half.ask(Exit(ExitKind.MMIO, register, 8, value, True)) == Answer("stop", (status, "exit"))
    assert half.ask(Exit(ExitKind.USER_CALL, 0, info=(value,))) == Answer("stop", (status, "exit"))
    assert half.ask(Exit(ExitKind.MMIO, register + 4, 4, 0, True)) == Answer("pass")


def test_exit_has_no_port_unless_it_is_given_one() -> None:
    assert write(halves(rift_handlers.ExitConfig()), 0xF4, 1) == Answer("pass")
    assert write(halves(rift_handlers.ExitConfig(port=0x600)), 0x600, 3) == Answer("stop", (3, "exit"))


@pytest.mark.parametrize("native", [False, True])
def test_debug_exit_is_that_of_qemu(native: bool) -> None:
    half = halves(rift_handlers.DebugExitConfig(), native=native)
    assert write(half, 0xF4, 0) == Answer("stop", (1, "exit"))
    assert write(half, 0xF4, 0x10) == Answer("stop", (33, "exit"))
    assert write(half, 0xF7, 0x31) == Answer("stop", (99, "exit"))
    assert write(half, 0xF8, 0) == Answer("pass")
    assert read(half, 0xF4) == 0
    moved = halves(rift_handlers.DebugExitConfig(port=0x501, size=2), native=native)
    assert write(moved, 0x502, 1) == Answer("stop", (3, "exit"))
    assert write(moved, 0x503, 1) == Answer("pass")


def test_the_last_ports_are_not_exceeded() -> None:
    half = halves(rift_handlers.DebugExitConfig(port=0xFFFE))
    assert write(half, 0xFFFF, 1) == Answer("stop", (3, "exit"))


@pytest.mark.parametrize("native", [False, True])
def test_a_payload_finds_the_uart_sets_it_up_and_prints(native: bool) -> None:
    stream = io.BytesIO()
    half = halves(rift_handlers.Uart16550Config(), native=native, stream=stream)
    for offset, value in ((1, 0x00), (3, 0x80), (0, 0x03), (1, 0x00), (3, 0x03), (2, 0xC7), (4, 0x0B), (4, 0x1E)):
        write(half, BASE + offset, value)
    write(half, BASE, 0xAE)
    assert read(half, BASE + 5) == 0x61, "loop-back: the byte that was sent has been received"
    assert read(half, BASE) == 0xAE
    assert read(half, BASE + 5) == 0x60
    write(half, BASE + 4, 0x0F)
    for byte in b"Hello, serial port\r\n":
        assert read(half, BASE + 5) == 0x60, "the transmitter is always empty"
        write(half, BASE, byte)
    half.finish()
    assert stream.getvalue() == b"Hello, serial port\r\n"


@pytest.mark.parametrize("native", [False, True])
def test_a_payload_tells_the_uarts_apart(native: bool) -> None:
    half = halves(rift_handlers.Uart16550Config(), native=native)
    write(half, BASE + 7, 0x5A)
    assert read(half, BASE + 7) == 0x5A, "an 8250 has no scratch register"
    assert read(half, BASE + 2) == 0x01, "no interrupt is pending"
    write(half, BASE + 2, 0x01)
    assert read(half, BASE + 2) == 0xC1, "a 16550A has a FIFO"
    write(half, BASE + 3, 0x80)
    write(half, BASE, 0x0C)
    write(half, BASE + 1, 0x01)
    assert (read(half, BASE), read(half, BASE + 1)) == (0x0C, 0x01), "the divisor latch"
    write(half, BASE + 3, 0x03)
    assert (read(half, BASE), read(half, BASE + 1)) == (0, 0)
    assert read(half, BASE + 6) == 0xB0
    write(half, BASE + 4, 0x1A)
    assert read(half, BASE + 6) == 0x90, "loop-back: RTS is CTS, OUT2 is DCD"


def test_the_divisor_is_not_printed() -> None:
    stream = io.BytesIO()
    half = halves(rift_handlers.Uart16550Config(), stream=stream)
    write(half, BASE + 3, 0x83)
    write(half, BASE, 0x41)
    write(half, BASE + 3, 0x03)
    write(half, BASE, 0x42)
    half.finish()
    assert stream.getvalue() == b"B"


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (rift_handlers.ExitConfig, {"port": -1}),
        (rift_handlers.ExitConfig, {"port": 0x1_0000}),
        (rift_handlers.ExitConfig, {"prot": 1}),
        (rift_handlers.ConsoleConfig, {"stream": ""}),
        (rift_handlers.ConsoleConfig, {"escape": "never"}),
        (rift_handlers.DebugExitConfig, {"size": 0}),
        (rift_handlers.Uart16550Config, {"port": 0xFFF9}),
    ],
)
def test_settings_out_of_range_are_refused(model: type[Section], settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model(**settings)


def test_the_four_handlers_are_declared() -> None:
    cards = rift_handlers.rift_plugin()
    assert [card.name for card in cards] == ["exit", "console", "debug-exit", "uart16550"]
    assert all(isinstance(card, PluginInfo) and card.kind == "exit_handler" and card.summary for card in cards)
