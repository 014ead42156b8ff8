"""Both halves of each standard handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import rift_handlers
from rift_core import doorbell
from rift_core.exits import Exit, ExitKind
from rift_core.testing.exit_handler import SUPERVISOR_MEMORY, USER_MEMORY, ExitHandlerConformance, StandInMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.plugin import Section

VALUES = (0, 1, 7, 0xFF, 0x1234, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFE)
TEXT = "plain, tab\t, newline\r\n, \u00e4\u2192\U0001f600, escape \x1b[2J, C1 \x9b, broken ".encode() + b"\xff\xc3\n"


class _Handlers(ExitHandlerConformance):
    @pytest.fixture
    def plugin(self) -> Any:
        return rift_handlers


class TestExit(_Handlers):
    @pytest.fixture
    def config(self) -> Section:
        return rift_handlers.ExitConfig(port=0x501)

    @pytest.fixture
    def samples(self, machine: StandInMachine) -> list[Exit]:
        register = machine.doorbell + doorbell.EXIT
        stores = [Exit(ExitKind.MMIO, register, 8, value, True) for value in VALUES]
        ports = [Exit(ExitKind.PORT_IO, 0x501, 4, value & 0xFFFF_FFFF, True) for value in VALUES]
        calls = [Exit(ExitKind.USER_CALL, 0, info=(value, 0, 0, 0, 0, 0)) for value in VALUES]
        return stores + ports + calls

    @pytest.fixture
    def foreign(self, machine: StandInMachine) -> list[Exit]:
        return [Exit(ExitKind.MMIO, machine.doorbell + doorbell.EXIT, 4), Exit(ExitKind.PORT_IO, 0x501, 1)]


class TestConsole(_Handlers):
    @pytest.fixture
    def config(self) -> Section:
        return rift_handlers.ConsoleConfig(port=0xE9)

    @pytest.fixture
    def samples(self, machine: StandInMachine) -> list[Exit]:
        register = machine.doorbell + doorbell.CONSOLE
        stores = [Exit(ExitKind.MMIO, register, 1, byte, True) for byte in TEXT]
        wide = [Exit(ExitKind.MMIO, register, 8, 0x6261_6364_6566_6700 | byte, True) for byte in b"wide\n"]
        ports = [Exit(ExitKind.PORT_IO, 0xE9, 1, byte, True) for byte in TEXT]
        places = (USER_MEMORY.start, USER_MEMORY.stop - 3, SUPERVISOR_MEMORY.start, 0, 1 << 47, (1 << 64) - 1)
        calls = [Exit(ExitKind.USER_CALL, 1, info=(at, size, 0, 0, 0, 0)) for at in places for size in (0, 1, 10, 9000)]
        return stores + wide + ports + calls

    @pytest.fixture
    def foreign(self, machine: StandInMachine) -> list[Exit]:
        return [Exit(ExitKind.MMIO, machine.doorbell + doorbell.CONSOLE, 1), Exit(ExitKind.PORT_IO, 0xE9, 1)]


class TestConsoleOnATerminal(TestConsole):
    @pytest.fixture
    def config(self) -> Section:
        return rift_handlers.ConsoleConfig(port=0xE9, escape=True)


class TestConsoleWithALimit(TestConsole):
    @pytest.fixture
    def new_machine(self) -> Callable[[], StandInMachine]:
        return lambda: StandInMachine(console_bytes=20)


class TestDebugExit(_Handlers):
    @pytest.fixture
    def config(self) -> Section:
        return rift_handlers.DebugExitConfig()

    @pytest.fixture
    def samples(self) -> list[Exit]:
        writes = [
            Exit(ExitKind.PORT_IO, 0xF4 + at, 4, value & 0xFFFF_FFFF, True) for at in range(4) for value in VALUES
        ]
        return [*writes, Exit(ExitKind.PORT_IO, 0xF4, 1), Exit(ExitKind.PORT_IO, 0xF7, 4)]


class TestUart16550(_Handlers):
    @pytest.fixture
    def config(self) -> Section:
        return rift_handlers.Uart16550Config()

    @pytest.fixture
    def samples(self) -> list[Exit]:
        exits = []
        # Every register: read, write, read again; with the divisor latch, with the FIFO, in loop-back mode.
        for offset, value in ((3, 0), (3, 0x80), (3, 3), (2, 1), (4, 0x1E), (4, 0xFF), (4, 0x0F), (2, 0)):
            exits.append(Exit(ExitKind.PORT_IO, 0x3F8 + offset, 1, value, True))
            for register in (0, 1, 2, 5, 6, 7):
                exits.append(Exit(ExitKind.PORT_IO, 0x3F8 + register, 1, 0x41 + register, True))
                exits.append(Exit(ExitKind.PORT_IO, 0x3F8 + register, 1))
            exits += [Exit(ExitKind.PORT_IO, 0x3F8 + register, 1) for register in range(8)]
        return exits
