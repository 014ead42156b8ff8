"""Standard exit handlers: ``exit``, ``console``, ``debug-exit`` and ``uart16550``.

Importing this module loads no native code; the hook does.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rift_core.exits import ExitHandler
    from rift_handlers.console import Console
    from rift_handlers.host import HostMachine

__all__ = [
    "ConsoleConfig",
    "DebugExitConfig",
    "ExitConfig",
    "Uart16550Config",
    "rift_exit_handlers",
    "rift_plugin",
]

Port = Annotated[int, Field(ge=0, le=0xFFFF)]


class ExitConfig(Section):
    """Settings of ``exit``: a store to the doorbell's EXIT register, or user call 0, ends the thread."""

    port: Port | None = Field(
        default=None,
        description="A port whose write ends the thread too, with the written value as its status. Default: none.",
    )


class _StreamConfig(Section):
    stream: str = Field(
        default="stdout",
        min_length=1,
        description='Where the bytes go: "stdout", "stderr" (what sys.stdout and sys.stderr are at that moment), or '
        "a path; that file is made empty first. open_machine(console=...) stands above it.",
    )
    escape: Literal["auto"] | bool = Field(
        default="auto",
        description="Show control characters and invalid UTF-8 as \\x1b and the like, so that a guest cannot drive "
        'the terminal; newline, tab and carriage return pass. "auto": exactly when the stream is a terminal.',
    )


class ConsoleConfig(_StreamConfig):
    """Settings of ``console``: a store to the doorbell's CONSOLE register is one byte, user call 1 many."""

    port: Port | None = Field(
        default=None,
        description="A port whose write is a byte too (0xe9 is the customary one of emulators). Default: none.",
    )


class DebugExitConfig(Section):
    """Settings of ``debug-exit``: a write of ``value`` ends the thread with status ``value * 2 + 1``."""

    port: Port = Field(default=0xF4, description="First port; QEMU's isa-debug-exit calls it iobase.")
    size: int = Field(default=4, ge=1, le=8, description="How many ports; QEMU's isa-debug-exit calls it iosize.")


class Uart16550Config(_StreamConfig):
    """Settings of ``uart16550``: eight ports that print, as the first serial port of a PC does."""

    port: Annotated[int, Field(ge=0, le=0xFFF8)] = Field(default=0x3F8, description="First of the eight ports.")


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    """The visiting cards."""
    return (
        PluginInfo("exit_handler", "exit", "Ends the thread: doorbell, user call 0, a port", ExitConfig),
        PluginInfo("exit_handler", "console", "The guest's bytes to a stream: doorbell, user call 1", ConsoleConfig),
        PluginInfo("exit_handler", "debug-exit", "Ends the thread as QEMU's isa-debug-exit does", DebugExitConfig),
        PluginInfo("exit_handler", "uart16550", "A serial port that prints", Uart16550Config),
    )


@cache
def _makers() -> dict[type[Section], Callable[[Any, HostMachine], Iterable[ExitHandler]]]:
    """By the model of the table."""
    from rift_handlers.console import shared_console
    from rift_handlers.console_handlers import console_handlers
    from rift_handlers.ending import debug_exit_handlers, exit_handlers
    from rift_handlers.uart16550 import uart16550_handlers

    def console(config: _StreamConfig, machine: HostMachine) -> Console:
        return shared_console(machine, config.stream, config.escape)

    return {
        ExitConfig: lambda config, machine: exit_handlers(config.port, machine),
        DebugExitConfig: lambda config, machine: debug_exit_handlers(config.port, config.size),
        Uart16550Config: lambda config, machine: uart16550_handlers(config.port, console(config, machine)),
        ConsoleConfig: lambda config, machine: console_handlers(config.port, console(config, machine), machine),
    }


@hookimpl
def rift_exit_handlers(config: Section, machine: HostMachine) -> Iterable[ExitHandler]:
    """The handlers of one table."""
    for model, make in _makers().items():
        if isinstance(config, model):  # core's model of the table derives from it
            return make(config, machine)
    return ()
