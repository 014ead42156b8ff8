"""What every exit handler must do. A plugin's tests subclass :class:`ExitHandlerConformance`::

    class TestDice(ExitHandlerConformance):
        @pytest.fixture
        def plugin(self):
            return rift_dice               # the module, or object, with the hook implementations

        @pytest.fixture
        def samples(self, machine):        # exits that the handlers answer, in this order
            return [Exit(ExitKind.MMIO, machine.doorbell + 0x100, 8)]

The handlers are made for a :class:`StandInMachine`, so no hypervisor is needed. Where a handler has a native
half, the same exits are put to both and must give the same answers and leave the same traces.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

from rift_core import doorbell, hookspecs
from rift_core.dispatch import Dispatcher
from rift_core.errors import AddressError, HypervisorError, LimitError, RiftError, UnhandledExitError
from rift_core.exits import Exit, ExitHandler, ExitKind, Fault, Resume, Stop
from rift_core.guest_memory import GuestMemory
from rift_core.host_memory import HostMemory
from rift_core.memory import Caching, Gpa, Gva, MemoryRegion, Permission, Walk
from rift_core.plugin import PROJECT, PluginInfo, Section
from rift_core.testing.fake_memory import PhysicalMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rift_core.backend import VCpu
    from rift_core.exits import ExitResult

    MakeHandlers = Callable[["StandInMachine"], Sequence[ExitHandler]]

USER_MEMORY = range(0x10_0000, 0x11_0000)
"""Guest memory that user mode can read: guest-virtual and guest-physical addresses are the same."""

SUPERVISOR_MEMORY = range(0x11_0000, 0x12_0000)
"""Guest memory that it cannot; directly behind, so that a buffer can lie across the border."""

_PAGE = 0x1000
_SIZES = (0, 1, 2, 3, 8, 16, 0xFFFF_FFFF)
_VALUES = (0, 1, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)
_ARGUMENTS = (
    (),
    (0, 0, 0, 0, 0, 0),
    (USER_MEMORY.stop - 1, 2, 3, 4, 5, 6),
    (USER_MEMORY.start, 0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0),
    (0xFFFF_FFFF_FFFF_FFFF,) * 6,
)
_WITH_DATA = frozenset({ExitKind.PORT_IO, ExitKind.MMIO, ExitKind.SYSTEM_REGISTER})


@dataclass(slots=True)
class StandInLimits:
    """``[limits]``: none, unless a test sets one."""

    wall_time: float | None = None
    exits_per_second: int | None = None
    console_bytes: int | None = None


class StandInMachine:
    """What exit handlers get of their machine: memory, doorbell, limits and a console that keeps its bytes."""

    def __init__(self, *, console_bytes: int | None = None) -> None:
        self.doorbell = Gpa(doorbell.DEFAULT_ADDRESS)
        self.limits = StandInLimits(console_bytes=console_bytes)
        self.console_stream = BytesIO()
        self.shared: dict[object, Any] = {}
        self.memory = GuestMemory()
        self.physical = PhysicalMemory(46, 16)
        """The same memory, as native handlers reach it."""
        for place in (USER_MEMORY, SUPERVISOR_MEMORY):
            host = HostMemory(len(place), "stand-in").view
            region = MemoryRegion(Gpa(place.start), host, Permission.READ | Permission.WRITE)
            self.memory.add(region)
            self.physical.add(region)
            host[:] = bytes(range(256)) * (len(place) // 256)

    def translate(self, address: int) -> Walk:
        """Page tables that map both memories one to one."""
        permissions = Permission.NONE
        if address in USER_MEMORY:
            permissions = Permission.READ | Permission.WRITE | Permission.USER
        elif address in SUPERVISOR_MEMORY:
            permissions = Permission.READ | Permission.WRITE
        physical = Gpa(address) if permissions else None
        reason = "" if permissions else "nothing is mapped there"
        return Walk(Gva(address), physical, permissions, _PAGE, Caching.WRITE_BACK, False, False, (), reason)

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes. :raises AddressError: not mapped."""
        return bytes(self._view(address, size))

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes. :raises AddressError: not mapped."""
        self._view(address, len(data))[:] = data

    def _view(self, address: int, size: int) -> memoryview:
        if self.translate(address).physical is None:
            raise AddressError(f"guest-virtual {address:#x} is not mapped")
        return self.memory.view(address, size)


class StandInVCpu:
    """A vCPU that has registers, all 64 bits wide, and runs nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        self.index = 0
        self.widths: Mapping[str, int] = dict.fromkeys(names, 64)
        self.kicked = threading.Event()
        self.values = dict.fromkeys(names, 0)

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        """As ``VCpu.read_registers``."""
        for name in names:
            if name not in self.values:
                raise HypervisorError("read_registers", 22, f"no register {name!r}")
        return {name: self.values[name] for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        """As ``VCpu.write_registers``."""
        self.read_registers(tuple(values))
        self.values.update(values)

    peek, poke = read_registers, write_registers


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as the guest would see it: ``value`` is what a read or call gets, a status, or a vector."""

    verdict: str
    value: object = None


def _answer(exit: Exit, result: ExitResult | None) -> Answer:
    match result:
        case None:
            return Answer("pass")
        case Resume(value):
            return _reply(exit, value)
        case Stop(status, reason):
            return Answer("stop", (_status(status), reason))
        case Fault(vector, code):
            return Answer("fault", (vector, code))


def _reply(exit: Exit, value: int) -> Answer:
    if exit.kind in _WITH_DATA:
        if exit.is_write:
            return Answer("resume")
        value &= (1 << 8 * min(exit.size, 8)) - 1
    elif exit.kind not in (ExitKind.HYPERCALL, ExitKind.USER_CALL):
        return Answer("resume")
    return Answer("resume", value & (1 << 64) - 1)


def _status(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


class Halves:
    """One set of handlers with its machine, asked through the Python halves only, or the native ones first."""

    def __init__(self, machine: StandInMachine, handlers: Sequence[ExitHandler], vcpu: Any, *, native: bool) -> None:
        self.machine = machine
        self.handlers = tuple(handlers)
        self._vcpu = vcpu
        self._dispatcher = Dispatcher(self.handlers)
        self._table: Any = None
        if native and any(handler.native is not None for handler in self.handlers):
            from rift_core.testing.fake_native import NativeTable

            self._table = NativeTable()
            for handler in self.handlers:
                self._table.add(handler)

    def ask(self, exit: Exit) -> Answer:
        """The answer to one exit. Only what Rift raises on purpose counts as one; the rest comes through."""
        try:
            if self._table is not None:
                served = self._table.serve(self._vcpu, self.machine.physical, exit)
                if served is not None:
                    if served.stopped:
                        return Answer("stop", (_status(served.value), "exit"))
                    return _reply(exit, served.value)
            return _answer(exit, self._dispatcher.dispatch(self._vcpu, exit))
        except UnhandledExitError:
            return Answer("pass")
        except LimitError as error:
            return Answer("limit", error.limit)
        except RiftError as error:
            return Answer("error", type(error).__name__)

    def finish(self) -> None:
        """The end of a run."""
        failure = self._dispatcher.finish()
        if failure is not None:
            raise failure


def _hostile_exits(handlers: Iterable[ExitHandler]) -> list[Exit]:
    """Absurd numbers in every place that a guest controls, for kinds and addresses that the handlers serve."""
    exits = []
    for handler in handlers:
        where = handler.where if handler.where is not None else range(0, 1 << 64)
        addresses = dict.fromkeys((where.start, where[len(where) // 2] if len(where) < 1 << 32 else 1, where.stop - 1))
        for kind, address in product(sorted(handler.kinds), addresses):
            if kind in _WITH_DATA:
                exits += [Exit(kind, address, s, v, w) for s, v, w in product(_SIZES, _VALUES, (False, True))]
            else:
                exits += [Exit(kind, address, info=info) for info in _ARGUMENTS]
    return exits


class ExitHandlerConformance:
    """The contract of ``rift_exit_handlers``: see the module's text."""

    @pytest.fixture
    def config(self, plugin: Any) -> Section:
        """The handlers' settings: the defaults of the first exit handler that ``plugin`` declares."""
        declared = plugin.rift_plugin()
        infos = (declared,) if isinstance(declared, PluginInfo) else declared
        return next(info for info in infos if info.kind == "exit_handler").config()

    @pytest.fixture
    def new_machine(self) -> Callable[[], StandInMachine]:
        """Makes machines that are all alike."""
        return StandInMachine

    @pytest.fixture
    def machine(self, new_machine: Callable[[], StandInMachine]) -> StandInMachine:
        """A machine to take addresses from: all of them have the same."""
        return new_machine()

    @pytest.fixture
    def registers(self) -> Sequence[str]:
        """Names of the registers that the handlers touch."""
        return ()

    @pytest.fixture
    def make_handlers(self, plugin: Any, config: Section) -> MakeHandlers:
        """Makes the handlers for a machine, by the hook, as core does."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin)

        def make(machine: StandInMachine) -> list[ExitHandler]:
            answers = manager.hook.rift_exit_handlers(config=config, machine=machine)
            return [handler for answer in answers for handler in answer]

        return make

    @pytest.fixture
    def foreign(self) -> Sequence[Exit]:
        """Exits of the handlers' own kinds and addresses that they decline, such as reads of a write-only register."""
        return ()

    @pytest.fixture
    def halves(
        self, new_machine: Callable[[], StandInMachine], make_handlers: MakeHandlers, registers: Sequence[str]
    ) -> Callable[[bool], Halves]:
        """``halves(native)``: fresh handlers on a fresh machine."""

        def make(native: bool) -> Halves:
            machine = new_machine()
            return Halves(machine, make_handlers(machine), StandInVCpu(registers), native=native)

        return make

    def effects(self, machine: StandInMachine) -> object:
        """What the handlers have left behind, comparable: the console's bytes and guest memory."""
        return machine.console_stream.getvalue(), [bytes(region.host) for region in machine.memory.regions]

    def test_handlers_say_what_they_serve(self, make_handlers: MakeHandlers, machine: StandInMachine) -> None:
        handlers = make_handlers(machine)
        assert handlers
        names = [handler.name for handler in handlers]
        assert len(set(names)) == len(names), "names are unique in a machine"
        for handler in handlers:
            assert handler.name
            assert handler.kinds <= set(ExitKind)
            assert handler.kinds
            assert ExitKind.INTERRUPTED not in handler.kinds, "core answers it and dispatches it to nobody"
            if handler.where is not None:
                assert handler.where.step == 1
                assert 0 <= handler.where.start < handler.where.stop <= 1 << 64
        Dispatcher(handlers)  # raises where two of them claim the same exits

    def test_two_machines_have_handlers_of_their_own(self, halves: Callable[[bool], Halves]) -> None:
        first, second = halves(True), halves(True)
        for one, other in zip(first.handlers, second.handlers, strict=True):
            assert one is not other

    def test_each_sample_is_answered(self, halves: Callable[[bool], Halves], samples: Sequence[Exit]) -> None:
        half = halves(False)
        for exit in samples:
            assert half.ask(exit).verdict != "pass", f"nobody answers {exit}"
        half.finish()

    def test_both_halves_give_the_same_answers(
        self, halves: Callable[[bool], Halves], samples: Sequence[Exit], foreign: Sequence[Exit]
    ) -> None:
        python, native = halves(False), halves(True)
        for exit in [*samples, *foreign, *reversed(samples)]:
            assert native.ask(exit) == python.ask(exit), str(exit)
        python.finish()
        native.finish()
        assert self.effects(native.machine) == self.effects(python.machine)

    @pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
    def test_an_exit_that_is_not_its_own_is_declined_and_changes_nothing(
        self, halves: Callable[[bool], Halves], foreign: Sequence[Exit], native: bool
    ) -> None:
        half = halves(native)
        before = self.effects(half.machine)
        for exit in foreign:
            assert half.ask(exit) == Answer("pass"), str(exit)
        half.finish()
        assert self.effects(half.machine) == before

    def test_hostile_numbers_do_no_harm(self, halves: Callable[[bool], Halves]) -> None:
        python, native = halves(False), halves(True)
        for exit in _hostile_exits(python.handlers):
            assert native.ask(exit) == python.ask(exit), str(exit)
        for handler in python.handlers:
            where = handler.where if handler.where is not None else range(1)
            for kind in handler.kinds:
                for info in ((), (-1,) * 6):
                    python.ask(Exit(kind, where.start, -1, -1, True, info=info))

    def test_native_halves_stay_alive_without_their_handlers(
        self, new_machine: Callable[[], StandInMachine], make_handlers: MakeHandlers, samples: Sequence[Exit]
    ) -> None:
        machine = new_machine()
        bare = [
            ExitHandler(h.name, h.kinds, h.where, _decline, h.native, h.fallback)
            for h in make_handlers(machine)
            if h.native is not None
        ]
        gc.collect()
        half = Halves(machine, bare, StandInVCpu(()), native=True)
        for handler in bare:
            assert handler.native is not None
            assert handler.native.address
        for exit in samples:
            half.ask(exit)

    @pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
    def test_several_threads_at_once(
        self, halves: Callable[[bool], Halves], samples: Sequence[Exit], native: bool
    ) -> None:
        half = halves(native)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(20):
                    for exit in samples:
                        half.ask(exit)
                half.finish()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "the handlers have deadlocked"
        assert not failures


def _decline(vcpu: VCpu, exit: Exit) -> ExitResult | None:
    return None
