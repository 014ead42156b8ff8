"""What can be seen of a machine while it is stopped: threads, registers, memory; and what debug registers hold."""

from __future__ import annotations

import threading
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, TypeVar

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError, RiftError, StateError, UnsupportedError
from rift_core.memory import Permission
from rift_gdb.address_map import AddressMap
from rift_gdb.allocations import Allocations
from rift_gdb.errors import INVALID, NOT_THERE, PacketError
from rift_gdb.guest_thread import GuestThread
from rift_gdb.means import Means
from rift_gdb.memory import View
from rift_gdb.registers import Image, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.isa import Privilege
    from rift_core.isa_debug import Place

T = TypeVar("T")

STOP_SECONDS = 0.05
"""How long a thread may take to leave an exit handler before it is shown as one that cannot be looked at."""

_REQUEST_SECONDS = 5.0
_MOST_WATCHPOINTS = 16
_MOST_VECTORS = 0x1_0000  # bytes of code that vectors may have
_BY_STEPPING = 32
"""Watchpoints that are told to be possible where the CPU has none: threads are stepped, and memory is compared."""


class Inspection:
    """The part of a :class:`~rift_gdb.target.Target` that only looks.

    :raises UnsupportedError: the ISA says nothing of debugging.
    """

    def __init__(self, engine: Engine) -> None:
        debug = engine.isa.debug
        if debug is None:
            raise UnsupportedError(f"ISA {engine.isa.name} cannot be debugged: it describes no registers for debuggers")
        self.engine = engine
        self.debug = debug
        self.means = Means.of(engine.vm.capabilities)
        self.allocations = Allocations(engine)
        self._lock = threading.Lock()
        self._threads: dict[Context, GuestThread] = {}
        self._layout: Layout | None = None
        self._fitting: dict[tuple[int, tuple[tuple[int, str], ...]], bool] = {}
        self.map = AddressMap(engine)
        self.vectors = _vectors(engine)  # code of the payload's own exception vectors

    # -- threads ---------------------------------------------------------------------------------

    @property
    def threads(self) -> list[GuestThread]:
        """Those in a run, by number."""
        with self._lock:
            for context in list(self.engine.active):
                if context.running and context.vcpu is not None and context not in self._threads:
                    self._threads[context] = GuestThread(context, self.debug, self.means)
            return sorted((t for t in self._threads.values() if t.running), key=lambda t: t.number)

    def find(self, number: int) -> GuestThread:
        """By its id.

        :raises PacketError: there is none.
        """
        for thread in self.threads:
            if thread.number == number:
                return thread
        raise PacketError(f"there is no thread {number:x}", NOT_THERE)

    def ask(self, thread: GuestThread, function: Callable[[], T]) -> T:
        """Have a stopped thread's owner call ``function``.

        :raises PacketError: it cannot be reached, or the backend refuses.
        """
        deadline = time.monotonic() + STOP_SECONDS
        while not thread.held:  # it may be on its way to where it waits
            if time.monotonic() > deadline or not thread.running:
                name = thread.context.name
                raise PacketError(f"thread {name} is inside an exit handler and cannot be looked at", NOT_THERE)
            time.sleep(0.0005)
        try:
            future = thread.context.post(function)
            try:
                return future.result(_REQUEST_SECONDS)
            finally:
                future.cancel()  # unless it is over: who was told that it has failed does not find it done later
        except FutureTimeoutError:
            raise PacketError(f"thread {thread.context.name} does not answer", NOT_THERE) from None
        except StateError as error:
            raise PacketError(str(error), NOT_THERE) from None
        except RiftError as error:
            raise PacketError(str(error), INVALID) from None

    # -- registers and memory of stopped threads -------------------------------------------------

    @property
    def layout(self) -> Layout:
        """The register layout; made at the first stop, by asking the backend what it has.

        :raises PacketError: no thread can be asked.
        """
        if self._layout is None:
            threads = self.threads
            thread = next((t for t in threads if t.held), None)
            if thread is None:
                why = "all threads are inside exit handlers" if threads else "no thread is running"
                raise PacketError(f"no registers can be looked at: {why}", NOT_THERE)
            self._layout = Layout(self.engine.isa, self.ask(thread, lambda: self._available(thread)))
        return self._layout

    def _available(self, thread: GuestThread) -> list[str]:
        vcpu = thread.context.vcpu
        names = [register.name for register in self.engine.isa.registers if register.debug is not None]
        have = []
        for name in names:
            try:
                if vcpu is not None:
                    vcpu.read_registers((name,))
                    have.append(name)
            except HypervisorError:
                continue
        return have

    def image(self, thread: GuestThread) -> Image:
        """Its registers, read once a stop.

        :raises PacketError: it cannot be reached.
        """
        if thread.image is None:
            layout = self.layout
            vcpu = thread.context.vcpu
            if vcpu is None:
                raise PacketError(f"thread {thread.context.name} has not started", NOT_THERE)
            values = self.ask(thread, lambda: vcpu.read_registers(layout.available))
            thread.image = Image(layout, thread.number, values)
            thread.clocks.extend((name, values[name]) for name in layout.moving if name in values)
        return thread.image

    def write_registers(self, thread: GuestThread, values: Mapping[str, int]) -> None:
        """Change some.

        :raises PacketError: it cannot be reached, or the backend refuses.
        """
        vcpu = thread.context.vcpu
        if vcpu is not None:
            self.ask(thread, lambda: vcpu.write_registers(values))
        thread.forget()

    def place(self, thread: GuestThread) -> Place:
        """Where it stands.

        :raises PacketError: it cannot be reached.
        """
        if thread.place is None:
            vcpu = thread.context.vcpu
            if vcpu is None:
                raise PacketError(f"thread {thread.context.name} has not started", NOT_THERE)
            thread.place = self.ask(thread, lambda: self.debug.place(vcpu))
        return thread.place

    def view(self, thread: GuestThread | None, *, physical: bool = False) -> View:
        """Memory as this thread's page tables show it; the machine's where it cannot be asked."""
        if physical or thread is None:
            return View(self.engine, physical=physical)
        known = _Known(self.image(thread))
        return View(self.engine, lambda address: self.debug.table_root(known, address))

    # -- debug registers -------------------------------------------------------------------------

    def _levels(self) -> set[Privilege]:
        return {context.privilege for context in self.engine.contexts} or {"supervisor"}

    def _fits(self, breakpoints: tuple[int, ...], watchpoints: tuple[Watchpoint, ...]) -> bool:
        """Whether the debug registers take these: tried out on a stopped vCPU, once for so many breakpoints and such
        watchpoints."""
        key = (len(breakpoints), tuple((watch.size, watch.access) for watch in watchpoints))
        if key not in self._fitting:
            thread = next((t for t in self.threads if t.held), None)
            if thread is None:
                return False
            self._fitting[key] = self.ask(thread, lambda: thread.takes(breakpoints, watchpoints))
        return self._fitting[key]

    def watchpoint_count(self) -> int:
        """How many watchpoints of 8 bytes are possible."""
        if not self.means.watch_works(self._levels()):
            return _BY_STEPPING
        for count in range(_MOST_WATCHPOINTS, 0, -1):
            if self._fits((), tuple(Watchpoint(0x1000 + 8 * n, 8, "write") for n in range(count))):
                return count
        return 0


def _vectors(engine: Engine) -> range:
    vectors = engine.vectors
    symbol = engine.symbols.find(vectors.symbol) if vectors is not None else None
    if vectors is None or symbol is None:
        return range(0)
    if not engine.translate(vectors.address).permissions & Permission.EXECUTE:
        return range(0)  # a table of addresses
    end = engine.symbols.find(f"{vectors.symbol}_end")
    size = end.address - symbol.address if end is not None else 0
    return range(symbol.address, symbol.address + (size if 0 < size < _MOST_VECTORS else symbol.size))


class _Known:
    """Registers of an image, for what reads a vCPU's."""

    def __init__(self, image: Image) -> None:
        self._values = image.values

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        return {name: self._values[name] for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        raise StateError("an image is read only")
