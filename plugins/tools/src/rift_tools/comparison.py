"""One guest on two backends, in lock step; the first difference.

Each machine runs on its own host thread and hands over what can be observed: every exit, and, if asked, the registers
behind every instruction. Whoever is ahead waits. Threads are compared one by one: how they interleave is not. Native
exit handlers are left out, so that every exit is seen.
"""

from __future__ import annotations

import io
import queue
import threading
import time
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
    from rift_tools.instructions import Instruction

_AHEAD = 16
_SECONDS = 60.0
"""How long one side may take for what the other has done already."""

_NOT_COMPARED = frozenset({ExitKind.INTERRUPTED, ExitKind.DEBUG})
_RESUME_FLAG = 1 << 16  # a debugger's, and not the program's
_WITH_REGISTERS = frozenset({"start", "step", "registers"})


@dataclass(frozen=True, slots=True)
class Observation:
    """``what`` is compared; ``place`` says where the guest was."""

    kind: str  # "exit", "step", "end"
    what: tuple[Any, ...]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """``sides`` are both observations in words, by backend; ``place`` where the last common one was."""

    number: int
    place: str
    sides: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """``observations`` were the same; ``difference`` is None if all were. ``limited``: it was not run to its end."""

    backends: tuple[str, str]
    observations: int
    difference: Difference | None
    limited: bool = False


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
            self._thread.join(_SECONDS)
        self.machine.close()

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


def _words(side: Side, seen: Observation | None, other: Observation | None) -> str:
    """An observation, of registers only those that differ."""
    if seen is None:
        return "has ended"
    if other is not None and seen.kind == other.kind and seen.kind in _WITH_REGISTERS:
        pairs = [(a, b) for a, b in zip(seen.what, other.what, strict=False) if a != b]
        values = ", ".join(f"{name}={value:#x}" for (name, value), _ in pairs)
        place = describe_address(side.machine.engine.symbols, int(seen.place, 16))
        return f"{seen.kind} at {place}: {values}"
    return f"{seen.kind} {seen.what}"


def _private(side: Side) -> list[range]:
    """Guest-physical memory that is Rift's own: page tables, descriptors, exception stacks. CPUs mark pages at
    different times, and hypervisors leave different frames behind."""
    plan = side.machine.engine.plan
    own = [area for name, area in plan.areas.items() if not name.endswith("/stack")]
    return [range(area.physical, area.physical + area.size) for area in (plan.tables, *own)]


def _memory(side: Side) -> dict[int, bytes]:
    """Guest-physical memory by page, but for what is Rift's own."""
    private = _private(side)
    pages = {}
    for region in side.machine.memory.regions:
        data = bytes(region.host)
        for at in range(0, len(data), 0x1000):
            address = region.guest_address + at
            page = data[at : at + 0x1000]
            if page.strip(b"\0") and not any(address in part for part in private):
                pages[address] = page
    return pages


def _memory_difference(sides: tuple[Side, Side], number: int) -> Difference | None:
    first, second = (_memory(side) for side in sides)
    for address in sorted(first.keys() | second.keys()):
        pages = [memory.get(address, bytes(0x1000)) for memory in (first, second)]
        at = next((at for at, (a, b) in enumerate(zip(*pages, strict=False)) if a != b), None)
        if at is not None:
            words = tuple(
                (side.backend, f"memory at guest-physical {address + at:#x}: {page[at : at + 8].hex(' ')}")
                for side, page in zip(sides, pages, strict=True)
            )
            return Difference(number, "at the end", words)
    outputs = [side.console.getvalue() for side in sides]
    if outputs[0] != outputs[1]:
        words = tuple(
            (side.backend, f"console: {output[-200:]!r}") for side, output in zip(sides, outputs, strict=True)
        )
        return Difference(number, "at the end", words)
    return None


def compare(
    first: MachineConfig, second: MachineConfig, *, instructions: bool = False, limit: int | None = None
) -> Report:
    """Run two configurations that differ in the backend.

    :param instructions: compare registers behind every instruction as well; both must be able to step.
    :param limit: observations at most.
    :raises RiftError: one of them cannot run it.
    """
    catalog = python_only(Catalog.installed())
    sides: list[Side] = []
    try:
        for config in (first, second):
            sides.append(Side(config, catalog, instructions))  # noqa: PERF401 - what was made is closed
        for side in sides:
            side.start()
        return _follow((sides[0], sides[1]), limit)
    finally:
        for side in sides:
            side.close()


def _follow(sides: tuple[Side, Side], limit: int | None) -> Report:
    """Compare thread by thread, whichever has something; never wait for one while another could go on."""
    backends = (sides[0].backend, sides[1].backend)
    lanes = [Lane(name, sides) for name in sides[0].queues]
    number = 0
    idle_since = time.monotonic()
    while limit is None or number < limit:
        running = [side.running for side in sides]
        found = False
        for lane in lanes:
            if not lane.ready():
                continue
            found = True
            difference = lane.compare(number)
            if difference is not None:
                return Report(backends, number, difference)
            number += 1
        if found:
            idle_since = time.monotonic()
            continue
        for side in sides:
            if side.failure is not None:
                raise side.failure
        if not any(running):
            left = next((lane.unmatched(number) for lane in lanes if lane.unmatched(number)), None)
            return Report(backends, number, left or _memory_difference(sides, number))
        if time.monotonic() - idle_since > _SECONDS:
            raise TimeoutError(f"one of {backends[0]} and {backends[1]} does nothing for {_SECONDS:.0f} s")
        time.sleep(0.0005)
    return Report(backends, number, None, limited=True)


class Lane:
    """One guest thread on both sides."""

    def __init__(self, name: str, sides: tuple[Side, Side]) -> None:
        self._name = name
        self._sides = sides
        self._queues = [side.queues[name] for side in sides]
        self._place = "the start"
        self._flags = UndefinedFlags()

    def ready(self) -> bool:
        """Both sides have done something."""
        return not any(queue.empty() for queue in self._queues)

    def compare(self, number: int) -> Difference | None:
        """The next observation of each."""
        first, second = (queue.get() for queue in self._queues)
        if not self._same(first, second):
            agreed = self._skip_step(first, second)
            if agreed is None:
                return self._difference(number, (first, second))
            first = agreed
        if first.place:
            pc = int(first.place, 16)
            instruction = self._sides[0].decoder.at(pc, {})
            place = describe_address(self._sides[0].machine.engine.symbols, pc)
            self._place = f"thread {self._name}, {place}: {instruction.text}"
            if first.kind != "registers":
                self._flags.executed(instruction)
        return None

    def _same(self, first: Observation, second: Observation) -> bool:
        return first.kind == second.kind and self._flags.masked(first.what) == self._flags.masked(second.what)

    def _skip_step(self, first: Observation, second: Observation) -> Observation | None:
        """Not every CPU reports a step behind an instruction that made an exit, or at the start of an exception
        handler: one side's step is passed over if the next one then is the other's."""
        if first.kind != "step" or second.kind != "step":
            return None
        for place, (mine, theirs) in enumerate(((first, second), (second, first))):
            if mine.place == theirs.place:
                continue
            self._flags.executed(self._sides[0].decoder.at(int(mine.place, 16), {}))
            try:
                following = self._queues[place].get(timeout=1.0)
            except queue.Empty:
                continue
            if self._same(following, theirs):
                return following
            with self._queues[place].mutex:
                self._queues[place].queue.appendleft(following)
        return None

    def unmatched(self, number: int) -> Difference | None:
        """What one side did and the other, which has ended, did not."""
        seen = [None if queue.empty() else queue.queue[0] for queue in self._queues]
        return self._difference(number, (seen[0], seen[1])) if any(seen) else None

    def _difference(self, number: int, seen: tuple[Observation | None, Observation | None]) -> Difference:
        words = tuple(
            (side.backend, _words(side, mine, theirs))
            for side, mine, theirs in zip(self._sides, seen, reversed(seen), strict=True)
        )
        return Difference(number, self._place, words)


class UndefinedFlags:
    """Bits of RFLAGS that the last instruction to touch them left undefined: CPUs may differ in them."""

    def __init__(self) -> None:
        self._undefined = _RESUME_FLAG

    def executed(self, instruction: Instruction) -> None:
        """An instruction is about to be executed."""
        undefined = self._undefined & ~instruction.flags_written | instruction.flags_undefined
        self._undefined = undefined | _RESUME_FLAG

    def masked(self, what: tuple[Any, ...]) -> tuple[Any, ...]:
        """An observation without them."""
        return tuple(
            (item[0], item[1] & ~self._undefined) if isinstance(item, tuple) and item[:1] == ("rflags",) else item
            for item in what
        )
