"""One of the two machines that are compared: runs on a host thread of its own, and hands over what can be observed.

Native exit handlers are left out, so that every exit is seen.
"""

from __future__ import annotations

import io
import queue
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rift_core.catalog import Catalog, CatalogEntry
from rift_core.errors import RiftError
from rift_core.exits import ExitKind, Stop
from rift_core.machine import open_machine
from rift_core.plugin import hookimpl
from rift_core.report import describe_address
from rift_tools.instructions import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rift_core.config import MachineConfig
    from rift_core.context import Context
    from rift_core.exits import Exit, ExitHandler
    from rift_core.isa import GuestFault
    from rift_core.machine import Machine
    from rift_core.plugin import Section

_AHEAD = 16
"""Observations that one side may be ahead of the other."""

_CLOSING = 60.0
"""Seconds that its end may take."""

_PAUSE = 1.0
"""Seconds to wait for the guest's threads to stand still."""

_NOT_COMPARED = frozenset({ExitKind.INTERRUPTED, ExitKind.DEBUG})


@dataclass(frozen=True, slots=True)
class Observation:
    """``what`` is compared; ``place`` says where the guest was."""

    kind: str  # "exit", "step", "end"
    what: tuple[Any, ...]
    place: str = ""


class _Hooks:
    """A plugin like another one."""

    def __init__(self, hooks: dict[str, Any]) -> None:
        self.__dict__.update(hooks)


def python_only(catalog: Catalog) -> Catalog:
    """The same plugins, their exit handlers without native halves."""

    def wrapped(entry: CatalogEntry) -> CatalogEntry:
        if entry.info.kind != "exit_handler":
            return entry
        module = entry.module

        @hookimpl
        def rift_exit_handlers(config: Section, machine: Machine) -> Iterable[ExitHandler]:
            return [replace(handler, native=None) for handler in module.rift_exit_handlers(config, machine)]

        hooks = {name: getattr(module, name) for name in dir(module) if name.startswith("rift_")}
        hooks["rift_exit_handlers"] = rift_exit_handlers
        return CatalogEntry(entry.info, _Hooks(hooks), entry.distribution, entry.version)

    return Catalog([wrapped(entry) for entry in catalog], catalog.broken, catalog.disabled)


class Side:
    """One machine: runs on a thread of its own, and queues what each of its threads does, by name."""

    def __init__(self, config: MachineConfig, catalog: Catalog, single: bool) -> None:
        self.console = io.BytesIO()
        self.machine = open_machine(config, console=self.console, catalog=catalog)
        self.backend = self.machine.backend
        self.queues: dict[str, queue.Queue[Observation]] = {t.name: queue.Queue(_AHEAD) for t in self.machine.threads}
        self.failure: BaseException | None = None
        self._last_pc: dict[int, int] = {}
        self._given_up = threading.Event()
        isa = self.machine.engine.isa
        self._names = (isa.program_counter, *isa.general_registers)
        self.decoder = Decoder(isa, self.machine.engine)
        try:
            self.machine.extend("steps", single=single).follow(self)
        except BaseException:
            self.machine.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"compare-{self.backend}", daemon=True)

    def start(self) -> None:
        """Let it run."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether anything may still be queued."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it."""
        self._given_up.set()
        self.machine.kill()
        if self._thread.ident is not None:
            self._thread.join(_CLOSING)
        self.machine.close()

    def whereabouts(self) -> list[str]:
        """Where each thread that has not ended is, in words."""
        running = [thread for thread in self.machine.threads if thread.state == "running"]
        program_counter = self._names[0]
        try:
            with self.machine.pause(_PAUSE):
                places = [thread.registers[program_counter] for thread in running]
        except (TimeoutError, RiftError):  # one waits here for the other side, or has just ended
            return [f"thread {thread.name} has not ended" for thread in running]
        symbols = self.machine.engine.symbols
        return [
            f"thread {thread.name} is at {describe_address(symbols, pc)}: {self.decoder.at(pc, {}).text}"
            for thread, pc in zip(running, places, strict=True)
        ]

    # -- Follower, on the guest's thread ----------------------------------------------------------

    def started(self, context: Context) -> None:
        """The registers that it starts with."""
        self._last_pc.pop(context.index, None)
        self._put(context, self._registers(context, "start"))

    def stepped(self, context: Context, pc: int) -> Stop | None:
        """The registers behind an instruction; of a repeated one, when it is over."""
        repeated = pc == self._last_pc.get(context.index) and self.decoder.at(pc, {}).text.startswith("rep")
        self._last_pc[context.index] = pc
        if not repeated:
            self._put(context, self._registers(context, "step"))
        return Stop(0, "killed") if self._given_up.is_set() else None

    def exited(self, context: Context, exit: Exit) -> None:
        """What a handler is told."""
        if exit.kind in _NOT_COMPARED:
            return
        address = 0 if exit.kind is ExitKind.HALT else exit.address  # known to some backends only
        what = (exit.kind.name, address, exit.size, exit.value, exit.is_write, exit.info)
        self._put(context, Observation("exit", what))

    def faulted(self, context: Context, fault: GuestFault) -> None:
        """The exception that ends it."""
        self._put(context, Observation("fault", (fault.vector, fault.code, fault.address, fault.pc, fault.user)))

    def ended(self, context: Context, outcome: Stop | BaseException) -> None:
        """How it ended, and the registers then."""
        what = (outcome.status, outcome.reason) if isinstance(outcome, Stop) else (type(outcome).__name__,)
        self._put(context, Observation("end", what))
        orderly = isinstance(outcome, Stop) and outcome.reason in ("return", "exit", "halt")
        if orderly and context.privilege == "supervisor":  # user mode leaves by Rift's own code, in a backend's way
            self._put(context, self._registers(context, "registers"))

    # -- the rest ---------------------------------------------------------------------------------

    def _registers(self, context: Context, kind: str) -> Observation:
        vcpu = context.vcpu
        values = vcpu.read_registers(self._names) if vcpu is not None else {}
        pc = values.get(self._names[0], 0)
        return Observation(kind, tuple(values.items()), f"{pc:#x}")

    def _put(self, context: Context, item: Observation) -> None:
        while not self._given_up.is_set():
            try:
                self.queues[context.name].put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            self.machine.run()
        except RiftError:
            pass  # the follower has told how it ended
        except BaseException as error:
            self.failure = error
