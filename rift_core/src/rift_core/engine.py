"""What a machine is made of: the part that guest threads hold on to.

A :class:`~rift_core.machine.Machine` is the handle that its user holds; dropping it must not need the
guest threads' consent, so these refer to the engine only, and a reaper closes the engine when the handle
is gone. Lifetimes end in one place: :meth:`Engine.close`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from rift_core.context import Context
from rift_core.dispatch import Dispatcher
from rift_core.errors import ForkedMachineError, StateError
from rift_core.exits import Stop
from rift_core.gate import Gate
from rift_core.isa import Area
from rift_core.layout import stack_request
from rift_core.lifetimes import ENGINES
from rift_core.machine_memory import MachineMemory
from rift_core.memory import Gva, Permission
from rift_core.timeouts import waitable
from rift_core.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_core.backend import Limits, Vm
    from rift_core.binary import SymbolTable
    from rift_core.guest_memory import GuestMemory
    from rift_core.hooks import Hooks
    from rift_core.isa import Isa, Privilege, SystemState, Vectors
    from rift_core.layout import MachinePlan
    from rift_core.thread import Thread

_SLICE_SECONDS = 0.05
_EDIT_SECONDS = 0.5
"""How long an edit of the page tables that no CPU may watch waits for vCPUs to leave the guest."""

_JOIN_SECONDS = 10.0
"""How long a close waits for a guest thread; longer only if an exit handler of its own does not return."""


class GuestLimits:
    """The ``[limits]`` of a machine; None: no limit."""

    __slots__ = ("console_bytes", "exits_per_second", "wall_time")

    def __init__(self, wall_time: float | None, exits_per_second: int | None, console_bytes: int | None) -> None:
        self.wall_time = wall_time
        self.exits_per_second = exits_per_second
        self.console_bytes = console_bytes


class Engine(MachineMemory):
    """VM, memory, page tables and vCPUs of one machine. ``memory`` is what ``vm`` has been given already."""

    def __init__(
        self,
        hooks: Hooks,
        plan: MachinePlan,
        isa: Isa,
        vm: Vm,
        host_limits: Limits,
        limits: GuestLimits,
        memory: GuestMemory,
    ) -> None:
        super().__init__(plan, isa, vm, host_limits, memory)
        self.hooks = hooks
        self.limits = limits
        self.symbols: SymbolTable = plan.binary.symbols
        self.abi = plan.binary.abi
        self.isa_registers = (plan.doorbell + 0x800, plan.doorbell + 0x1000)
        self.console_stream: TextIO | BinaryIO | None = None
        self.system: SystemState
        self.dispatcher: Dispatcher
        self.vectors: Vectors | None = None
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
        ENGINES.add(self)

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
        timeout = waitable(timeout)
        gate = Gate(self)
        try:
            gate.close()
            if not gate.wait(timeout):
                raise TimeoutError(f"the machine did not pause within {timeout} s: an exit handler does not return")
            yield
        finally:
            gate.open()

    def edit_pages(self, virtual: int, size: int, permissions: Permission | None) -> None:
        """Unmap (``permissions`` None) or protect a range, and make every vCPU see it."""
        gate = Gate(self)
        with self.edits:
            if self.space.free_tables < 8:  # a large page may be split at either end, twice
                self.add_tables(8)
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
            for region in self.memory.regions:
                self.memory.remove(region.guest_address)
            self._let_go()
            if self.plan.binary.built is not None:
                self.plan.binary.built.remove()
            self.closed = True
        ENGINES.discard(self)
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
