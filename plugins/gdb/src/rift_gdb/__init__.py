"""GDB, LLDB and VS Code on guest threads: a server of the GDB remote serial protocol.

The machine's ``[debug]``, ``machine.debug()`` and ``rift debug`` start it; see docs/debugging.md.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from rift_core.plugin import PluginInfo, hookimpl
from rift_gdb.config import GdbConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.errors import RiftError
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault
    from rift_core.machine import Machine
    from rift_core.thread import Thread
    from rift_gdb.server import Server

_servers: weakref.WeakKeyDictionary[Engine, Server] = weakref.WeakKeyDictionary()


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo("extension", "gdb", "Debugging with GDB, LLDB and VS Code", GdbConfig, table="debug")


@hookimpl
def rift_machine_opened(machine: Machine, config: GdbConfig) -> object:
    from rift_gdb.server import Server

    server = _servers[machine.engine] = Server(machine.engine, config)
    return server


@hookimpl
def rift_run_started(context: Context) -> None:
    server = _servers.get(context.engine)
    if server is not None:
        server.target.run_started(context)


@hookimpl
def rift_run_ended(context: Context) -> None:
    server = _servers.get(context.engine)
    if server is not None:
        server.target.run_ended(context)


@hookimpl
def rift_thread_stopped(thread: Thread, outcome: Stop | BaseException) -> None:
    server = _servers.get(thread.engine)
    if server is not None:
        server.target.run_outcome(thread.context, outcome)


@hookimpl(tryfirst=True)
def rift_exit_unanswered(
    context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
) -> ExitResult | None:
    server = _servers.get(context.engine)
    return server.target.answer(context, exit, fault, describe) if server is not None else None


@hookimpl
def rift_machine_closing(machine: Engine) -> None:
    server = _servers.pop(machine, None)
    if server is not None:
        server.close()


def _leave_to_parent() -> None:
    for server in list(_servers.values()):
        server.abandon()
    _servers.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
