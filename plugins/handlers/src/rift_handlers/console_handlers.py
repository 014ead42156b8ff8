"""``console``: the doorbell's CONSOLE register, user call 1, and a port."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from rift_core import doorbell
from rift_core.errors import AddressError
from rift_core.exits import ExitHandler, ExitKind, Resume
from rift_core.memory import Permission
from rift_handlers.native import native_handler

if TYPE_CHECKING:
    from rift_core.backend import VCpu
    from rift_core.exits import Exit, ExitResult
    from rift_handlers.console import Console
    from rift_handlers.host import HostMachine

WRITE_CALL = 1
"""User call ``(pointer, length)``: ``RIFT_CALL_CONSOLE`` of the guest's header."""

WRITE_LIMIT = 1 << 20
"""Bytes that one call writes at most, so that a thread in it can soon be ended; like ``write`` of POSIX the call
returns how many it has written."""

_ADDRESSES = 1 << 64
_FAULT = _ADDRESSES - errno.EFAULT


def read_user(machine: HostMachine, address: int, size: int) -> bytes:
    """At most ``size`` bytes from ``address`` on that user mode may read: fewer, or none, where its pages end."""
    parts = []
    end = min(address + size, _ADDRESSES)
    while address < end:
        walk = machine.translate(address)
        if walk.physical is None or not walk.permissions & Permission.USER:
            break
        count = min(end - address, walk.page_size - address % walk.page_size)
        try:
            parts.append(bytes(machine.memory.view(walk.physical, count)))
        except AddressError:
            break  # mapped to where no memory is, such as the doorbell
        address += count
    return b"".join(parts)


def console_handlers(port: int | None, console: Console, machine: HostMachine) -> list[ExitHandler]:
    """The handlers of one table."""

    def store(vcpu: VCpu, exit: Exit) -> ExitResult | None:
        if not exit.is_write:
            return None
        console.put(exit.value & 0xFF)
        return _DONE

    def call(vcpu: VCpu, exit: Exit) -> ExitResult | None:
        pointer, length, *_ = (*exit.info, 0, 0)
        pointer %= _ADDRESSES
        length %= _ADDRESSES
        if length == 0:
            return Resume(0)
        data = read_user(machine, pointer, min(length, WRITE_LIMIT))
        if not data:
            return Resume(_FAULT)
        console.write(data)
        return Resume(len(data))

    register = machine.doorbell + doorbell.CONSOLE
    native = native_handler("console_store", console.native, console)
    finish = console.finish
    handlers = [
        ExitHandler("console", frozenset({ExitKind.MMIO}), range(register, register + 1), store, native, False, finish),
        ExitHandler("console-call", frozenset({ExitKind.USER_CALL}), range(WRITE_CALL, WRITE_CALL + 1), call),
    ]
    if port is not None:
        ports = range(port, port + 1)
        handlers.append(ExitHandler("console-port", frozenset({ExitKind.PORT_IO}), ports, store, native))
    return handlers


_DONE = Resume()
