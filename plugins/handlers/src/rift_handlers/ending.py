"""Handlers that end the thread: ``exit`` and ``debug-exit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core import doorbell
from rift_core.exits import ExitHandler, ExitKind, Resume, Stop
from rift_handlers.native import native_handler

if TYPE_CHECKING:
    from rift_core.backend import VCpu
    from rift_core.exits import Exit, ExitResult
    from rift_handlers.host import HostMachine

EXIT_CALL = 0
"""User call that ends the thread: ``RIFT_CALL_EXIT`` of the guest's header."""


def to_status(value: int) -> int:
    """A C ``int`` out of a register: what core makes of a native RIFT_STOP too."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _store(vcpu: VCpu, exit: Exit) -> ExitResult | None:
    return Stop(to_status(exit.value)) if exit.is_write else None


def _call(vcpu: VCpu, exit: Exit) -> ExitResult | None:
    return Stop(to_status(exit.info[0] if exit.info else 0))


def exit_handlers(port: int | None, machine: HostMachine) -> list[ExitHandler]:
    """The doorbell's EXIT register, user call 0 and, if wanted, a port."""
    register = machine.doorbell + doorbell.EXIT
    native = native_handler("exit_store")
    handlers = [
        ExitHandler("exit", frozenset({ExitKind.MMIO}), range(register, register + 1), _store, native),
        ExitHandler("exit-call", frozenset({ExitKind.USER_CALL}), range(EXIT_CALL, EXIT_CALL + 1), _call),
    ]
    if port is not None:
        handlers.append(ExitHandler("exit-port", frozenset({ExitKind.PORT_IO}), range(port, port + 1), _store, native))
    return handlers


def _debug_exit(vcpu: VCpu, exit: Exit) -> ExitResult | None:
    return Stop(to_status(exit.value << 1 | 1)) if exit.is_write else Resume(0)


def debug_exit_handlers(port: int, size: int) -> list[ExitHandler]:
    """QEMU's isa-debug-exit (hw/misc/debugexit.c): status ``(value << 1) | 1``; a read gives 0."""
    where = range(port, min(port + size, 0x1_0000))
    native = native_handler("debug_exit_access")
    return [ExitHandler("debug-exit", frozenset({ExitKind.PORT_IO}), where, _debug_exit, native)]
