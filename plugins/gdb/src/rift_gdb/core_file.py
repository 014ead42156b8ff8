"""The extension ``core-file``: writes an ELF core of the guest when it faults, else when the last thread has ended.

``rift run --core FILE`` switches it on; ``gdb PAYLOAD FILE`` shows threads, registers and memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.errors import AddressError, HypervisorError, RiftError, StateError
from rift_core.exits import ExitKind
from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault
    from rift_core.machine import Machine
    from rift_core.thread import Thread

_PAUSE_SECONDS = 2.0
_LINUX_SIGNALS = {"SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8, "SIGSEGV": 11}

_writers: weakref.WeakKeyDictionary[Engine, Writer] = weakref.WeakKeyDictionary()


class CoreFileConfig(Section):
    """``[[extensions]] name = "core-file"``."""

    path: Path = Field(description="Where the core file goes; relative to the current directory.")


class Writer:
    """Writes one machine's core file, once."""

    def __init__(self, engine: Engine, path: Path) -> None:
        if engine.isa.debug is None:
            raise RiftError(f"ISA {engine.isa.name} has no core files: it describes no registers for debuggers")
        if not path.absolute().parent.is_dir():
            raise RiftError(f"{path}: the folder of the core file does not exist")
        if path.is_dir():
            raise RiftError(f"{path} is a folder: name the core file that is to be made in it")
        self._path = path
        self._lock = threading.Lock()
        self._written = False
        self._ended: dict[int, dict[str, int]] = {}  # registers of threads that have ended, by vCPU

    def remember(self, context: Context) -> None:
        """A thread has ended: its registers are read now or never. On its owner."""
        self._ended[context.index] = _read(context)

    def write(self, engine: Engine, faulted: Context | None, fault: GuestFault | None, exit: Exit | None) -> None:
        """Write the file, unless that has been done; the calling thread owns ``faulted``.

        :raises RiftError: it cannot be written.
        """
        from rift_core.gate import Gate
        from rift_gdb.address_map import AddressMap
        from rift_gdb.elf_core import CoreThread, write_core

        with self._lock:
            if self._written:
                return
            self._written = True
        threads = []
        if faulted is not None:
            registers = {**_read(faulted), **(fault.registers if fault is not None else {})}
            threads.append(CoreThread(faulted.index + 1, registers, _signal(engine, fault, exit)))
        gate = Gate(engine)
        gate.close()
        try:
            gate.wait(_PAUSE_SECONDS)
            for context in list(engine.active):
                if context is not faulted and context.held:
                    with contextlib.suppress(RiftError, TimeoutError):
                        found = context.post(lambda context=context: _read(context))  # type: ignore[misc]
                        try:
                            threads.append(CoreThread(context.index + 1, found.result(_PAUSE_SECONDS)))
                        finally:
                            found.cancel()
            known = {thread.number for thread in threads}
            threads += [CoreThread(at + 1, r) for at, r in sorted(self._ended.items()) if at + 1 not in known]
            runs = [run for run in AddressMap(engine).runs() if engine.memory.find(run.physical) is not None]
            self._store(lambda file: write_core(file, engine, threads, runs))
        finally:
            gate.open()

    def _store(self, write: Callable[..., None]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
            )  # it holds the guest's secrets
            with os.fdopen(descriptor, "wb") as file:
                write(file)
            os.replace(temporary, self._path)
        except OSError as error:
            raise RiftError(f"{self._path} cannot be written: {error.strerror or error}") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _read(context: Context) -> dict[str, int]:
    """Every register that the backend knows."""
    vcpu = context.vcpu
    values: dict[str, int] = {}
    if vcpu is not None:
        for register in context.engine.isa.registers:
            with contextlib.suppress(HypervisorError):
                values.update(vcpu.read_registers((register.name,)))
    return values


def _signal(engine: Engine, fault: GuestFault | None, exit: Exit | None) -> int:
    if fault is not None and engine.isa.debug is not None:
        return _LINUX_SIGNALS.get(engine.isa.debug.signal(fault), _LINUX_SIGNALS["SIGSEGV"])
    return _LINUX_SIGNALS["SIGILL" if exit is not None and exit.kind is ExitKind.FAIL_ENTRY else "SIGABRT"]


def _write(
    writer: Writer,
    engine: Engine,
    context: Context | None = None,
    fault: GuestFault | None = None,
    exit: Exit | None = None,
) -> None:
    """A failure is told, and changes nothing of how the guest ends."""
    try:
        writer.write(engine, context, fault, exit)
    except RiftError as error:
        print(f"rift: no core file: {error}", file=sys.stderr)


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo("extension", "core-file", "Writes an ELF core file for debuggers", CoreFileConfig)


@hookimpl
def rift_machine_opened(machine: Machine, config: CoreFileConfig) -> object:
    writer = _writers[machine.engine] = Writer(machine.engine, config.path)
    return writer


@hookimpl
def rift_exit_unanswered(context: Context, exit: Exit, fault: GuestFault | None) -> ExitResult | None:
    writer = _writers.get(context.engine)
    if writer is not None:
        _write(writer, context.engine, context, fault, exit)
    return None


@hookimpl
def rift_thread_stopped(thread: Thread, outcome: Stop | BaseException) -> None:
    writer = _writers.get(thread.engine)
    if writer is not None:
        with contextlib.suppress(StateError, AddressError):
            writer.remember(thread.context)


@hookimpl
def rift_machine_closing(machine: Engine) -> None:
    writer = _writers.pop(machine, None)
    if writer is not None:
        _write(writer, machine)
