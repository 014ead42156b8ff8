"""What a machine is made of: the part that guest threads hold on to.

A :class:`~rift_core.machine.Machine` is the handle that its user holds; dropping it must not need the
guest threads' consent, so these refer to the engine only, and a reaper closes the engine when the handle
is gone. Lifetimes end in one place: :meth:`Engine.close`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from rift_core.context import Context
from rift_core.dispatch import Dispatcher
from rift_core.errors import AddressError, ForkedMachineError, MappingError, StateError, UnsupportedError
from rift_core.exits import Stop
from rift_core.heap import PhysicalHeap
from rift_core.host_memory import HostMemory
from rift_core.interrupts import HELD
from rift_core.isa import Area, AreaRequest
from rift_core.layout import HEAP, align_up, stack_request
from rift_core.memory import Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rift_core.backend import Limits, Vm
    from rift_core.binary import SymbolTable
    from rift_core.guest_memory import GuestMemory
    from rift_core.hooks import Hooks
    from rift_core.isa import Isa, Privilege, SystemState, Vectors
    from rift_core.layout import MachinePlan
    from rift_core.memory import AddressSpace, Walk
    from rift_core.thread import Thread

_ZEROS = memoryview(bytes(1 << 20))
_SLICE_SECONDS = 0.05
_EDIT_SECONDS = 0.5
"""How long an edit of the page tables that no CPU may watch waits for vCPUs to leave the guest."""

_RELOAD_PIECE = 0x10_0000
_JOIN_SECONDS = 10.0
"""How long a close waits for a guest thread; longer only if an exit handler of its own does not return."""


class GuestLimits:
    """The ``[limits]`` of a machine; None: no limit."""

    __slots__ = ("console_bytes", "exits_per_second", "wall_time")

    def __init__(self, wall_time: float | None, exits_per_second: int | None, console_bytes: int | None) -> None:
        self.wall_time = wall_time
        self.exits_per_second = exits_per_second
        self.console_bytes = console_bytes


class Gate:
    """Keeps vCPUs outside the guest: closed, it lets none enter but those it is told to let through. Any thread.

    Closing kicks those inside; they come out with their accesses complete, and wait. Several gates may be closed
    at a time: a vCPU enters when all of them let it through.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.closed = False
        self._through: frozenset[Context] = frozenset()

    def stops(self, context: Context) -> bool:
        """Whether ``context`` has to wait here."""
        return self.closed and context not in self._through

    def close(self, through: Iterable[Context] = ()) -> None:
        """Let nobody enter but ``through``; on a closed gate, change who that is. Returns at once."""
        engine = self._engine
        with HELD, engine.changed:
            self._through = frozenset(through)
            if not self.closed:
                self.closed = True
                engine.gates = (*engine.gates, self)
                engine.waiting += 1
            engine.changed.notify_all()
        for context in list(engine.active):
            if self.stops(context) and not context.held:
                context.kick()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everybody that it stops is outside the guest, but for the calling thread's own vCPU.

        False when ``timeout`` seconds are over: an exit handler does not return.
        """
        engine, me = self._engine, threading.get_ident()

        def outside() -> bool:
            return all(c.held or not c.running or c.owner == me or not self.stops(c) for c in list(engine.active))

        return engine.wait(outside, timeout)

    def open(self) -> None:
        """Let everybody enter. Harmless when it is open."""
        engine = self._engine
        with HELD, engine.changed:
            if self.closed:
                self.closed = False
                engine.gates = tuple(gate for gate in engine.gates if gate is not self)
                engine.waiting -= 1
                engine.changed.notify_all()


class Engine:
    """VM, memory, page tables and vCPUs of one machine."""

    def __init__(
        self, hooks: Hooks, plan: MachinePlan, isa: Isa, vm: Vm, host_limits: Limits, limits: GuestLimits
    ) -> None:
        self.hooks = hooks
        self.plan = plan
        self.isa = isa
        self.vm = vm
        self.host_limits = host_limits
        self.limits = limits
        self.symbols: SymbolTable = plan.binary.symbols
        self.abi = plan.binary.abi
        self.doorbell = plan.doorbell
        self.page = max(isa.page_sizes[0], host_limits.page_size)
        self.isa_registers = (plan.doorbell + 0x800, plan.doorbell + 0x1000)
        self.console_stream: TextIO | BinaryIO | None = None
        self.memory: GuestMemory
        self.space: AddressSpace
        self.system: SystemState
        self.dispatcher: Dispatcher
        self.vectors: Vectors | None = None
        self.root = Gpa(0)  # of the page tables
        self.pristine = True  # no vCPU was made and no view of RAM given out: what is free is still zero
        self.heap = PhysicalHeap(self.page)
        self.heap.release(plan.heap.start, len(plan.heap))
        self.written_at_start: list[tuple[Gva, bytes]] = []  # by the host, into the image
        self.edits = Edits()  # memory regions, page tables, the heap, the virtual window
        self.changed = threading.Condition()
        self.gates: tuple[Gate, ...] = ()  # those that are closed
        self.waiting = 0  # who waits for a context to leave; a hint, see wait()
        self.contexts: list[Context] = []
        self.active: set[Context] = set()
        self.threads: list[Thread] = []
        self.closing = False  # nobody enters any more
        self.closed = False  # all is released
        self._close_lock = threading.RLock()
        self._close_step = 0  # 1: somebody closes, 2: extensions were told
        self.forked = False
        self._window_next = int(plan.window_next)
        self._calls_to_close: list[object] = []
        _engines.add(self)

    # -- state -----------------------------------------------------------------------------------

    def check_process(self) -> None:
        """:raises ForkedMachineError: this is a forked child of the machine's process."""
        if self.forked:
            raise ForkedMachineError(
                "this machine belongs to the parent process: after fork its memory here is empty and its vCPUs are "
                "out of reach; open a machine of the child's own"
            )

    def check_open(self) -> None:
        """:raises StateError: closed. :raises ForkedMachineError: this is a forked child of the machine's process."""
        self.check_process()
        if self.closing:
            raise StateError("the machine is closed")

    # -- memory ----------------------------------------------------------------------------------

    def view(self, address: int, size: int) -> memoryview:
        """Guest-virtual bytes as one memoryview.

        :raises AddressError: not mapped, or not contiguous inside one region.
        """
        if size <= 0:
            raise AddressError(f"a view of {size} bytes at {address:#x}: the size must be positive")
        first = None
        expected = None
        at = address
        end = address + size
        while at < end:
            walk = self.space.walk(Gva(at))
            if walk.physical is None:
                raise AddressError(f"guest-virtual {at:#x} is not mapped: {walk.reason}")
            if first is None:
                first = walk.physical
                self.memory.view(first, size)  # else a guest's own tables could make the loop long
            elif walk.physical != expected:
                raise AddressError(
                    f"guest-virtual {address:#x}-{end:#x} is not contiguous in guest-physical memory (it breaks "
                    f"at {at:#x}); take a view of each part"
                )
            step = walk.page_size - at % walk.page_size
            expected = walk.physical + step
            at += step
        return self.memory.view(first or 0, size)

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes, across pages.

        :raises AddressError: not mapped.
        """
        parts = [bytes(view) for view in self._pieces(address, size)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes, across pages, whatever the page permissions say.

        :raises AddressError: not mapped, or memory that the host shares read-only; nothing is written then.
        """
        self._write(address, data, Permission.NONE)

    def read_user(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes that user mode may read itself.

        :raises AddressError: some of them are not mapped for it.
        """
        return b"".join([bytes(view) for view in self._pieces(address, size, Permission.USER)])

    def write_user(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes that user mode may write itself: all of them, or none.

        :raises AddressError: some of them are not mapped for it, or read-only.
        """
        self._write(address, data, Permission.USER | Permission.WRITE)

    def _write(self, address: int, data: bytes, needed: Permission) -> None:
        pieces = list(self._pieces(address, len(data), needed))
        if any(piece.readonly for piece in pieces):
            raise AddressError(f"guest-virtual {address:#x}, {len(data)} bytes, is shared read-only")
        at = 0
        for piece in pieces:
            piece[:] = data[at : at + len(piece)]
            at += len(piece)

    def write_code(self, address: int, data: bytes) -> None:
        """As :meth:`write_virtual`; every vCPU then sees the new instructions.

        :raises AddressError: as there.
        """
        self.write_virtual(address, data)
        self.code_changed(address, len(data))

    def code_changed(self, address: int, size: int) -> None:
        """Instructions at a guest-virtual range have been written from the host; what is not mapped is passed over."""
        end = address + size
        while address < end:
            walk = self.space.walk(Gva(address))
            step = min((walk.page_size or self.page) - address % (walk.page_size or self.page), end - address)
            if walk.physical is not None:
                self.vm.code_changed(walk.physical, step)
            address += step

    def _pieces(self, address: int, size: int, needed: Permission = Permission.NONE) -> Iterator[memoryview]:
        end = address + size
        while address < end:
            walk = self.space.walk(Gva(address))
            if walk.physical is None:
                raise AddressError(f"guest-virtual {address:#x} is not mapped: {walk.reason}")
            if needed & ~walk.permissions:
                raise AddressError(f"guest-virtual {address:#x} is mapped {walk.permissions}, not {needed}")
            step = min(walk.page_size - address % walk.page_size, end - address)
            yield self.memory.view(walk.physical, step)
            address += step

    def translate(self, address: int) -> Walk:
        """A page walk; never raises for an address that is not mapped."""
        return self.space.walk(Gva(address))

    def take_physical(self, size: int, alignment: int = 0, congruent_to: int = 0, name: str = "memory") -> Gpa:
        """Free guest-physical RAM, zeroed; the machine grows by a region when its RAM is used up.

        :raises MappingError: no slot, address space or host memory is left.
        """
        with self.edits:
            start = self.heap.take(size, alignment, congruent_to)
            if start is None:
                self._grow(size + alignment, name)
                start = self.heap.take(size, alignment, congruent_to)
                if start is None:
                    raise MappingError(f"no room for {size:#x} bytes of guest-physical memory ({name})")
            if not self.pristine:
                view = self.memory.view(start, size)
                for at in range(0, size, len(_ZEROS)):  # in pieces: a gigabyte need not be there twice
                    piece = view[at : at + len(_ZEROS)]
                    piece[:] = _ZEROS[: len(piece)]
            return Gpa(start)

    def add_region(self, region: MemoryRegion) -> None:
        """Add guest-physical memory, for the host and for the guest.

        :raises MappingError: overlap.  :raises HypervisorError: the backend refused; nothing has changed then.
        """
        with self.edits:
            self.memory.add(region)
            try:
                self.vm.map_memory(region)
            except BaseException:
                self.memory.remove(region.guest_address)
                raise

    def remove_region(self, guest_address: Gpa) -> None:
        """Take a region from the guest; stale page-table entries then lead nowhere.

        :raises HypervisorError: the backend refused; nothing has changed then.
        """
        with self.edits:
            self.vm.unmap_memory(guest_address)
            self.memory.remove(guest_address)

    def _grow(self, size: int, name: str) -> None:
        size = align_up(max(size, HEAP), self.page)
        regions = self.memory.regions
        at = align_up(max(r.end for r in regions), HEAP)
        for window in sorted(
            [*self.host_limits.reserved, range(self.doorbell, self.doorbell + self.page)], key=lambda w: w.start
        ):
            if at < window.stop and window.start < at + size:
                at = align_up(window.stop, HEAP)
        if at + size > 1 << self.host_limits.gpa_bits:
            raise MappingError(f"no guest-physical addresses are left for {size:#x} bytes ({name})")
        if len(regions) >= self.host_limits.max_slots:
            raise MappingError(
                f"all {self.host_limits.max_slots} memory slots are in use; set memory.size higher at the start"
            )
        host = HostMemory(size, name)
        permissions = Permission.READ | Permission.WRITE | Permission.EXECUTE
        self.add_region(MemoryRegion(Gpa(at), host.view, permissions, "ram"))
        self.heap.release(at, size)

    def reload_image(self) -> None:
        """Put the image back as it was before the first thread ran; all vCPUs are outside the guest.

        :raises UnsupportedError: parts of it are mapped from the file, where the guest's changes are the only copy.
        """
        if any(region.segment is not None for region in self.plan.regions):
            raise UnsupportedError("the image is mapped from its file (map_file): it cannot be loaded again")
        with self.edits:
            for segment in self.plan.binary.segments:
                data = segment.data.cast("B")
                for at in range(0, segment.memory_size, _RELOAD_PIECE):
                    piece = bytes(data[at : at + _RELOAD_PIECE])
                    size = min(_RELOAD_PIECE, segment.memory_size - at)
                    self.write_code(segment.address + at, piece.ljust(size, b"\0"))
            for address, content in self.written_at_start:
                self.write_virtual(address, content)

    # -- page tables -----------------------------------------------------------------------------

    def map_pages(self, *mappings: Mapping) -> None:
        """Add mappings to the page tables, all or none; the tables grow when they must.

        :raises MappingError: see ``AddressSpace.map_all``.
        """
        with self.edits:
            needed = self.space.tables_needed(mappings)
            if needed > self.space.free_tables:
                self._add_tables(needed)
            self.space.map_all(mappings)

    def edit_pages(self, virtual: int, size: int, permissions: Permission | None) -> None:
        """Unmap (``permissions`` None) or protect a range, and make every vCPU see it."""
        gate = Gate(self)
        with self.edits:
            if self.space.free_tables < 8:  # a large page may be split at either end, twice
                self._add_tables(8)
            try:
                if self.active and self.space.wants_pause(Gva(virtual), size):
                    gate.close()
                    # Who has not come back by then is in an exit handler, perhaps one that waits for us: outside the
                    # guest, and the gate keeps it there.
                    gate.wait(_EDIT_SECONDS)
                if permissions is None:
                    self.space.unmap(Gva(virtual), size)
                else:
                    self.space.protect(Gva(virtual), size, permissions)
                self.vm.flush_translations()
            finally:
                gate.open()

    def _add_tables(self, pages: int) -> None:
        size = max(pages, 64) * self.page
        physical = self.take_physical(size, name="tables")
        region = MemoryRegion(physical, self.memory.view(physical, size), Permission.READ | Permission.WRITE, "tables")
        self.space.add_tables(region)

    def place_area(self, name: str, size: int, permissions: Permission) -> Area:
        """New memory in Rift's virtual window, with a guard page below and above."""
        return self.place_areas((AreaRequest(name, size, permissions),))[name]

    def place_areas(self, requests: Iterable[AreaRequest], owner: str = "") -> dict[str, Area]:
        """Several at once, by the names in the requests; ``owner`` stands before those in the mappings."""
        page = self.page
        sizes = [(request, align_up(request.size, page)) for request in requests]
        whole = sum(size for _, size in sizes)
        with self.edits:
            at = int(self.take_physical(whole, name=owner or sizes[0][0].name))
            virtual = self._window_next
            physical = at
            areas: dict[str, Area] = {}
            mappings = []
            for request, size in sizes:
                name = f"{owner}/{request.name}" if owner else request.name
                view = self.memory.view(physical, size)
                areas[request.name] = Area(name, Gva(virtual), Gpa(physical), view)
                mappings.append(
                    Mapping(Gva(virtual), Gpa(physical), size, request.permissions, name, largest_page=page)
                )
                physical += size
                virtual += size + page
            self._window_next = virtual
            try:
                self.map_pages(*mappings)
            except BaseException:
                self.heap.release(at, whole)
                raise
            return areas

    # -- vCPUs -----------------------------------------------------------------------------------

    def new_context(self, name: str, privilege: Privilege, stack: int, *, planned: bool = False) -> Context:
        """A context with its own stack and tables; ``planned``: the layout has placed them.

        :raises StateError: as many as the backend allows are in use.
        """
        with self.edits:
            self.check_open()
            index = len(self.contexts)
            if index >= self.host_limits.max_vcpus:
                raise StateError(
                    f"all {index} vCPUs of this machine are in use: fewer threads may call it at the same time"
                )
            if planned:
                areas = {
                    key.partition("/")[2]: Area(key, a.virtual, a.physical, self.memory.view(a.physical, a.size))
                    for key, a in self.plan.areas.items()
                    if key.partition("/")[0] == name
                }
            else:
                areas = self.place_areas([*self.isa.thread_areas(privilege), stack_request(stack, privilege)], name)
            context = Context(self, index, name, privilege, areas)
            self.contexts.append(context)
            return context

    @contextlib.contextmanager
    def pause(self, timeout: float | None = None) -> Iterator[None]:
        """All vCPUs outside the guest, their accesses complete, and none entering, for the ``with`` block.

        :raises TimeoutError: an exit handler did not return in ``timeout`` seconds.
        """
        self.check_open()
        gate = Gate(self)
        try:
            gate.close()
            if not gate.wait(timeout):
                raise TimeoutError(f"the machine did not pause within {timeout} s: an exit handler does not return")
            yield
        finally:
            gate.open()

    def holds(self, context: Context) -> bool:
        """Whether a closed gate keeps ``context`` outside the guest."""
        return any(gate.stops(context) for gate in self.gates)

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until ``condition`` holds. Contexts that leave tell us; an interrupt may keep one from doing so, hence
        the slices."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        with self.changed:
            self.waiting += 1
            try:
                while not condition():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self.changed.wait(min(left, _SLICE_SECONDS))
                return True
            finally:
                self.waiting -= 1

    # -- the end ---------------------------------------------------------------------------------

    def end_all(self, outcome: Stop | BaseException, but: Context | None = None) -> None:
        """End every guest thread and call in progress, ``but`` one."""
        for context in list(self.active):
            if context is not but:
                context.end(outcome)

    def close(self) -> None:
        """End all guests, take the memory from them, release the VM. Twice is harmless.

        One that was interrupted, or that gave up waiting, can be repeated: it goes on where it stopped.
        :raises StateError: called from inside one of the machine's own exit handlers, or one of them does not return.
        """
        if self.forked or self.closed:
            return
        me = threading.get_ident()
        if any(c.running and c.owner == me for c in list(self.active)):
            raise StateError("an exit handler cannot close its own machine; return Stop() from it instead")
        self.closing = True  # before anybody is ended: see Context.enter
        with self._close_lock:
            if self.closed or self._close_step == 1:  # 1: an extension, told of the end, closes once more
                return
            told, self._close_step = self._close_step, 1
            try:
                self._end_and_wait()
                if told != 2:
                    told = 2
                    self.hooks.machine_closing(self)
            finally:
                self._close_step = told
                if told == 2:
                    self.release()

    def _end_and_wait(self) -> None:
        self.end_all(Stop(0, "killed"))
        deadline = time.monotonic() + _JOIN_SECONDS
        self.wait(lambda: not any(c.running for c in list(self.active)), _JOIN_SECONDS)
        for thread in self.threads:
            thread.wait_ended(max(deadline - time.monotonic(), 0))
        left = [c.name for c in list(self.active) if c.running]
        if left:
            raise StateError(
                f"an exit handler of {', '.join(left)} has not returned for {_JOIN_SECONDS:.0f} s: the machine is not "
                "closed yet; close it again when it has"
            )

    def release(self) -> None:
        """Let go of vCPUs, VM and memory: the last step of closing, and the clean-up of a machine half made."""
        self.closing = True
        with self.edits:
            for context in self.contexts:
                WATCHDOG.unwatch(context)
            for context in self.contexts:
                if context.vcpu is not None:
                    context.vcpu.close()
            self.vm.close()
            for region in self.memory.regions if hasattr(self, "memory") else ():
                self.memory.remove(region.guest_address)
            self._let_go()
            if self.plan.binary.built is not None:
                self.plan.binary.built.remove()
            self.closed = True
        _engines.discard(self)
        with self.changed:
            self.changed.notify_all()

    def _let_go(self) -> None:
        """Cut the references that lead back here, so that memory goes now and not with a garbage collection."""
        for context in self.contexts:
            context.areas = {}
        self.contexts.clear()
        self.threads.clear()
        self.dispatcher = Dispatcher(())
        gone: Any = _Gone()
        self.space = self.system = gone
        self.vectors = None


class _Gone:
    """What took part in a machine that is closed."""

    def __getattr__(self, name: str) -> object:
        raise StateError("the machine is closed")


class Edits:
    """A reentrant lock; who holds it is not interrupted by Ctrl-C, since a change cut in half cannot be undone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        HELD.__enter__()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
        HELD.__exit__(*exception)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class _Reaper:
    """Closes the engines of machines that were dropped without close: a finalizer may only signal."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._queue: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        self._started = False

    def start(self) -> None:
        """Have the thread ready before any finalizer needs it."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="rift-reaper", daemon=True).start()

    def put(self, engine: Engine) -> None:
        """Close ``engine`` soon. Called by finalizers: takes no lock."""
        if not engine.forked:
            self._queue.put(engine)

    def _run(self) -> None:
        while True:
            engine = self._queue.get()
            try:
                engine.close()
            except StateError:  # an exit handler does not return: later
                self._queue.put(engine)
            except Exception as error:  # an extension's: told as any thread's, but the other machines need us
                _report(error)
            finally:
                del engine


REAPER = _Reaper()


def _close_all() -> None:
    """At interpreter exit: end and join what still runs."""
    for engine in list(_engines):
        try:
            engine.close()
        except Exception as error:
            _report(error)


def _report(error: Exception) -> None:
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


def _forget_in_child() -> None:
    for engine in list(_engines):
        engine.forked = True
    _engines.clear()
    REAPER.reset()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_in_child)
