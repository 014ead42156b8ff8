"""A guest thread: a host thread, the vCPU that it alone may touch, and how they end.

1. ``start`` makes the host thread; that thread makes the vCPU (a vCPU belongs to its creator).
2. ``rift_run_vcpu`` drives it; ``kick``, ``kill`` and requests are all that comes from outside.
3. Whatever ends the loop, Stop or exception, is kept and given to every ``join``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

from rift_core.errors import GuestError, RiftError, StateError, again
from rift_core.exits import Stop
from rift_core.interrupts import HELD
from rift_core.isa import EntryState
from rift_core.timeouts import waitable
from rift_core.values import to_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.isa import Argument, Privilege, Vectors
    from rift_core.memory import Gva


T = TypeVar("T")


class Registers(MutableMapping[str, int]):
    """A guest thread's registers by name, read and written while it is not in the guest.

    Before the first start, what is written here is set on top of the entry state. ``update`` and
    :meth:`read` are one batch.
    """

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    def __getitem__(self, name: str) -> int:
        return self.read((name,))[name]

    def __setitem__(self, name: str, value: int) -> None:
        self._thread.write_registers({name: value})

    def read(self, names: tuple[str, ...]) -> dict[str, int]:
        """Several registers, in one batch.

        :raises StateError: the thread is in the guest.  :raises HypervisorError: no such register.
        """
        return self._thread.read_registers(names)

    def __delitem__(self, name: str) -> None:
        raise TypeError("registers cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(r.name for r in self._thread.engine.isa.registers)

    def __len__(self) -> int:
        return len(self._thread.engine.isa.registers)

    def _repr_html_(self) -> str:
        isa = self._thread.engine.isa
        values = self.read((isa.program_counter, *isa.general_registers))
        rows = "".join(f"<tr><td>{name}</td><td><code>{value:#018x}</code></td></tr>" for name, value in values.items())
        return f"<table>{rows}</table>"


class Thread:
    """A configured guest thread. Made by ``Machine.thread``; started, and after its end started again."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        entry: Gva,
        privilege: Privilege,
        arguments: tuple[int, ...],
        context: Context,
        vectors: Vectors | None,
    ) -> None:
        self.engine = engine
        self.name = name
        self.entry = entry
        self.privilege: Privilege = privilege
        self.context = context
        self.registers = Registers(self)
        self._default_arguments = arguments
        self._vectors = vectors
        self._overrides: dict[str, int] = {}
        self._arguments: tuple[Argument, ...] = ()
        self._host: threading.Thread | None = None
        self._ended = threading.Event()
        self._outcome: Stop | BaseException | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Thread {self.name!r} at {self.entry:#x}, {self.state}>"

    @property
    def state(self) -> str:
        """``new``, ``running`` or ``ended``."""
        if self._host is None:
            return "new"
        return "ended" if self._ended.is_set() else "running"

    @property
    def outcome(self) -> Stop | BaseException | None:
        """How it ended; None before."""
        return self._outcome

    def start(self, *arguments: Any) -> Thread:
        """Run the entry function with ``arguments`` by the ISA's C calling convention; returns at once, with self.

        Without arguments, those of the configuration are used.
        :raises StateError: it runs already, or the machine is closed.
        """
        converted = to_arguments(arguments or self._default_arguments)
        self.engine.check_process()  # before the lock: in a forked child nobody may be left to release it
        with HELD, self._lock:
            self.engine.check_open()
            if self._host is not None and not self._ended.is_set():
                raise StateError(f"thread {self.name} runs already; join() or kill() it first")
            ended = threading.Event()
            host = threading.Thread(target=self._run, args=(converted, ended), name=f"rift-{self.name}", daemon=True)
            # Enter on behalf of the new thread: a kill that comes before the thread is scheduled must count.
            self.context.busy.acquire()
            before = self._outcome, self._ended
            try:
                self.context.enter(None, None)
                self._outcome, self._ended = None, ended
                host.start()
            except BaseException:
                self._outcome, self._ended = before
                self.context.leave()
                self.context.busy.release()
                raise
            self._host = host
        return self

    def join(self, timeout: float | None = None) -> Stop:
        """Wait for the end.

        :raises GuestError: the guest's fault ended it.  :raises TimeoutError: it goes on.
        :raises StateError: it was never started.
        """
        self.engine.check_process()
        if self._host is None:
            raise StateError(f"thread {self.name} was not started")
        if not self._ended.wait(waitable(timeout)):
            raise TimeoutError(f"thread {self.name} still runs after {timeout} s")
        outcome = self._outcome
        if isinstance(outcome, Stop):
            return outcome
        if outcome is None:
            raise StateError(f"thread {self.name} has no outcome")
        raise again(outcome)

    def kick(self) -> None:
        """Make it leave the guest; it goes on by itself. Signal-safe for the guest: nothing is lost."""
        self.engine.check_process()
        self.context.kick()

    def kill(self) -> None:
        """End it: ``join`` gives ``Stop(reason="killed")``. Harmless when it has ended."""
        self.engine.check_process()
        self.context.end(Stop(0, "killed"))

    def wait_ended(self, timeout: float | None) -> bool:
        """Wait for the end without its outcome."""
        return self._host is None or self._ended.wait(timeout)

    def read_registers(self, names: tuple[str, ...]) -> dict[str, int]:
        """See :class:`Registers`."""
        if self.context.vcpu is None:
            missing = [name for name in names if name not in self._overrides]
            if missing:
                raise StateError(
                    f"thread {self.name} has not run yet: {', '.join(missing)} gets its value from the entry "
                    "state at start()"
                )
            return {name: self._overrides[name] for name in names}
        return self._with_vcpu(lambda: self.context.acquire_vcpu().read_registers(names))

    def write_registers(self, values: dict[str, int]) -> None:
        """See :class:`Registers`."""
        if self.context.vcpu is None and self.state == "new":
            known = {r.name for r in self.engine.isa.registers}
            for name in values:
                if name not in known:
                    raise StateError(f"{self.engine.isa.name} has no register {name!r}")
            self._overrides.update(values)
            return
        self._with_vcpu(lambda: self.context.acquire_vcpu().write_registers(values))

    def enter_again(self) -> None:
        """Put the vCPU to the entry function, with the arguments of the last start. Its owner, outside the guest."""
        engine, context = self.engine, self.context
        state = EntryState(
            self.entry, context.stack_top, engine.root, self.privilege, self._arguments, self._vectors, engine.abi
        )
        registers = engine.isa.thread_registers(engine.system, context.areas, state)
        vcpu = context.acquire_vcpu()  # the backend may still be making it: as late as can be
        context.begin(vcpu, registers)
        if self._overrides:
            vcpu.write_registers(self._overrides)

    def _with_vcpu(self, action: Callable[[], T]) -> T:
        self.engine.check_open()
        context = self.context
        if context.running:
            if context.owner == threading.get_ident():
                return action()  # an exit handler on the thread itself
            if self.engine.gates and context.held:
                return context.post(action).result()
            raise StateError(
                f"thread {self.name} is in the guest: wait for its end, or hold it with machine.pause(), to touch its "
                "registers"
            )
        with HELD, self._lock, context.borrow():
            return action()

    def _run(self, arguments: tuple[Argument, ...], ended: threading.Event) -> None:
        outcome: Stop | BaseException
        engine, context = self.engine, self.context
        try:
            try:
                self._arguments = arguments
                self.enter_again()
                vcpu = context.acquire_vcpu()
                engine.hooks.thread_started(self)
                outcome = engine.hooks.run_vcpu(self, vcpu, engine.dispatcher)
            except BaseException as error:
                outcome = error
            failure = engine.dispatcher.finish()
            if failure is not None and isinstance(outcome, Stop):
                outcome = failure
            context.fresh = True
            engine.hooks.thread_stopped(self, outcome)
        except BaseException as error:
            outcome = error
        finally:
            try:
                context.park()
            except RiftError as error:
                outcome = error
            try:
                context.leave()
            finally:
                context.busy.release()
        if isinstance(outcome, GuestError):
            outcome.__traceback__ = None  # the host's frames say nothing about the guest
        self._outcome = outcome
        ended.set()
