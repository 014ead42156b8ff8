"""One vCPU with its stack and tables, the loop that drives it, and what others ask of it meanwhile.

1. The owner thread calls :meth:`Context.enter`, the loop, :meth:`Context.leave`.
2. Other threads never touch the vCPU. They post a request, or an ending, and kick; the owner serves both
   between two entries, when every access is complete (a kicked ``VCpu.run`` has completed it).
3. A kick is never lost: it makes the run in progress, or the next one, return INTERRUPTED.
4. Whether a run is in progress is the state of a lock, ``busy``, which an interrupt cannot leave half taken. All else
   that ``enter`` and ``leave`` do may be cut short by one, and is put right by the next ``enter``.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from rift_core import doorbell
from rift_core.errors import (
    AddressError,
    GuestCrashError,
    GuestFaultError,
    LimitError,
    RiftError,
    StateError,
    UnhandledExitError,
)
from rift_core.exits import Exit, ExitKind, Fault, Resume, Stop
from rift_core.interrupts import MAIN_THREAD
from rift_core.memory import Gva
from rift_core.report import describe_address, disassemble, fault_report, format_registers
from rift_core.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rift_core.backend import VCpu
    from rift_core.dispatch import Dispatcher
    from rift_core.engine import Engine
    from rift_core.exits import ExitResult
    from rift_core.isa import Area, GuestFault, Privilege

T = TypeVar("T")

NEVER = float("inf")

USER_RETURN = 2
"""User call: the entry function returned; first argument: its value."""

USER_DOORBELL = 3
"""User call: store the second argument to the doorbell register at offset first argument (below 0x800)."""

USER_DOORBELL_READ = 4
"""User call: read 8 bytes of the doorbell register at offset first argument (below 0x800)."""

_ENOSYS = (1 << 64) - errno.ENOSYS
_BAD_CALL = Resume((1 << 64) - errno.EFAULT)
_CRASHES = frozenset({ExitKind.SHUTDOWN, ExitKind.FAIL_ENTRY, ExitKind.UNKNOWN, ExitKind.MEMORY_FAULT})
_SYSTEM_ENDS = frozenset({ExitKind.POWER_OFF, ExitKind.RESET})
"""The guest has switched off the whole machine, not the CPU that says so."""

_RATE_WINDOW = 0.25  # seconds over which exits a second are counted
_HELD_LOOK = 0.5  # seconds until the watchdog looks again at a deadline that has passed while the guest is held


def signed_status(value: int) -> int:
    """A C ``int`` out of a register."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


class Context:
    """A vCPU and what belongs to it. ``index`` numbers the vCPUs of a machine."""

    def __init__(self, engine: Engine, index: int, name: str, privilege: Privilege, areas: Mapping[str, Area]) -> None:
        self.engine = engine
        self.index = index
        self.name = name
        self.privilege: Privilege = privilege
        self.areas = areas
        self.stack_top = Gva(areas["stack"].end)
        self.vcpu: VCpu | None = None
        self.owner = 0  # ident of the thread that owns the vCPU, 0: parked
        self.busy = threading.Lock()  # held by a run in progress
        self.used = False  # the vCPU has been in the guest
        self.fresh = True  # the whole entry state must be written before the next run
        self.returned: Exit | None = None  # the store to RETURN that ended the last run
        self._lock = threading.Lock()
        self._accepting = False  # requests are going to be served
        self._requests: deque[Callable[[], None]] = deque()
        self._ending: Stop | BaseException | None = None
        self.held = False  # waits at a closed gate
        # Watched
        self.deadline = NEVER
        self.polled = False
        self._expires_at = NEVER
        self._expiry: Callable[[], BaseException] | None = None
        self._rate_from = (0.0, 0)

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self.busy.locked()

    # -- ownership -------------------------------------------------------------------------------

    def acquire_vcpu(self) -> VCpu:
        """Make or adopt the vCPU on the calling thread."""
        me = threading.get_ident()
        if self.vcpu is None:
            self.engine.pristine = False
            self.vcpu = self.engine.vm.create_vcpu(self.index)
            self.owner = me
        elif self.owner != me:
            self.vcpu.adopt()
            self.owner = me
        return self.vcpu

    def park(self) -> None:
        """Let another thread adopt the vCPU."""
        if self.vcpu is not None and self.owner == threading.get_ident():
            self.vcpu.park()
            self.owner = 0

    @contextlib.contextmanager
    def borrow(self) -> Iterator[None]:
        """The vCPU for the calling thread, to read or write its state while no run is in progress.

        :raises StateError: a run is in progress, or the machine is closed.
        """
        if not self.busy.acquire(blocking=False):
            raise StateError(f"thread {self.name} is in the guest")
        engine = self.engine
        try:
            engine.active.add(self)
            engine.check_open()
            try:
                yield
            finally:
                self.park()
        finally:
            engine.active.discard(self)
            self.busy.release()
            with engine.changed:
                engine.changed.notify_all()

    # -- the owner's side ------------------------------------------------------------------------

    def enter(self, seconds: float | None, expiry: Callable[[], BaseException] | None, heartbeat: bool = False) -> None:
        """Begin a run that may take ``seconds``; when they are over it ends with ``expiry()``. ``busy`` is held.

        ``heartbeat``: it runs on the process's main thread, which must look after Python's signals.
        :raises StateError: the machine is closed; :meth:`leave` all the same.
        """
        self.returned = None
        self.held = False
        self.deadline = self._expires_at = NEVER
        with self._lock:
            self._ending = None
            self._accepting = True
        engine = self.engine
        engine.active.add(self)
        if engine.closing:  # looked at after the line above: whoever closes sees us, or we see that
            raise StateError("the machine is closed")
        limits = engine.limits
        if limits.wall_time is not None and (seconds is None or limits.wall_time < seconds):
            seconds, expiry = limits.wall_time, self._wall_time_error
        self.polled = heartbeat or limits.exits_per_second is not None
        if seconds is not None:
            self._expiry = expiry
            self._expires_at = self.deadline = time.monotonic() + seconds
        if self.polled or seconds is not None:
            if limits.exits_per_second is not None and self.vcpu is not None:
                self._rate_from = (time.monotonic(), self.vcpu.exit_count)
            WATCHDOG.watch(self)
        if engine.gates:
            self._kick()

    def leave(self) -> None:
        """End a run; ``busy`` is released afterwards."""
        if self.polled or self._expires_at != NEVER:
            self._expires_at = self.deadline = NEVER
            WATCHDOG.unwatch(self)
        with self._lock:
            self._accepting = False
            self._ending = None  # an exception leads, by its traceback, to whoever has made the call
        engine = self.engine
        engine.active.discard(self)
        if engine.waiting:
            with engine.changed:
                engine.changed.notify_all()
        while self._requests:
            self._requests.popleft()()
        if engine.hooks.watches_runs:
            engine.hooks.run_ended(self)

    def begin(self, vcpu: VCpu, registers: Mapping[str, int]) -> None:
        """Put the vCPU to the begin of a run; what the run before has left undone is forgotten. Owner only."""
        if self.used:
            vcpu.drop_events()
        self.used = True
        vcpu.write_registers(registers)

    def loop(self, dispatcher: Dispatcher) -> Stop:
        """Run the guest until it ends: the default of ``rift_run_vcpu``.

        :raises GuestError: the guest did something that nobody answers.
        """
        vcpu = self.acquire_vcpu()
        run, answer = vcpu.run, dispatcher.answer
        if self.engine.hooks.watches_runs:
            self.engine.hooks.run_started(self)
        ending = self.serve()
        if ending is not None:
            return ending
        isa_first, isa_end = self.engine.isa_registers
        reply: int | None = None
        while True:
            exit = run(reply)
            reply = None
            kind = exit.kind
            if kind is ExitKind.INTERRUPTED:
                ending = self.serve()
                if ending is not None:
                    return ending
                continue
            if vcpu.stopped is not None:
                return Stop(signed_status(vcpu.stopped), "exit")
            if kind is ExitKind.MMIO and isa_first <= exit.address < isa_end and exit.is_write:
                result = self._isa_exit(vcpu, dispatcher, exit)
            else:
                result = answer(vcpu, exit) or self._unanswered(vcpu, dispatcher, exit)
            if isinstance(result, Resume):
                if not exit.is_write:
                    reply = result.value
            elif isinstance(result, Stop):
                if kind in _SYSTEM_ENDS:
                    self.engine.end_all(result, but=self)
                return result
            else:
                vcpu.inject_exception(result.vector, result.code)

    def serve(self) -> Stop | None:
        """Serve what others have asked; wait while a gate is closed (the machine is paused). A Stop ends the run.

        Time spent waiting does not count for deadlines. Owner only, between two entries: the loop calls it, and
        so may a hook that keeps the guest stopped.
        :raises BaseException: what :meth:`end` was given.
        """
        engine = self.engine
        while True:
            while self._requests:
                self._requests.popleft()()
            ending = self._ending
            if ending is not None:
                if isinstance(ending, Stop):
                    return ending
                raise ending
            if not engine.gates or not engine.holds(self):
                return None
            since = time.monotonic()
            with engine.changed:
                self.held = True
                try:
                    engine.changed.notify_all()
                    while engine.holds(self) and not self._requests and self._ending is None:
                        engine.changed.wait()
                finally:
                    self.held = False
            self._postpone(time.monotonic() - since)

    # -- the others' side ------------------------------------------------------------------------

    def end(self, outcome: Stop | BaseException) -> None:
        """End the run in progress with ``outcome``; the first one counts. Any thread."""
        with self._lock:
            if not self.running:
                return
            if self._ending is None:
                self._ending = outcome
        self._kick()

    def post(self, function: Callable[[], T]) -> Future[T]:
        """Have ``function`` called on the owner, between two entries. Any thread but the owner.

        A future that is cancelled in time is not served.
        """
        future: Future[T] = Future()

        def serve() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if not (self._accepting and self.running):
                raise StateError(f"thread {self.name} does not run")
            self._requests.append(serve)
        self._kick()
        return future

    def kick(self) -> None:
        """Make the vCPU leave the guest once. Any thread."""
        self._kick()

    def _kick(self) -> None:
        vcpu = self.vcpu
        if vcpu is not None:
            vcpu.kick()
        engine = self.engine
        if engine.gates:
            with engine.changed:
                engine.changed.notify_all()

    # -- watched ---------------------------------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed, unless it belonged to the run before."""
        now = time.monotonic()
        if self.held:
            self.deadline = now + _HELD_LOOK  # the time that it is held does not count
            return
        if now < self._expires_at:
            self.deadline = self._expires_at
            return
        expiry = self._expiry
        self.end(expiry() if expiry is not None else Stop(0, "killed"))

    def _postpone(self, seconds: float) -> None:
        if self._expires_at != NEVER:
            self._expires_at += seconds
            self.deadline = self._expires_at

    def poll(self, now: float) -> None:
        """The heartbeat of a guest on the main thread, and the limit on exits."""
        vcpu = self.vcpu
        if vcpu is None or not self.running:
            return
        limit = self.engine.limits.exits_per_second
        if limit is not None:
            since, count = self._rate_from
            if now - since >= _RATE_WINDOW:
                exits = vcpu.exit_count - count
                if exits > limit * (now - since):
                    rate = exits / (now - since)
                    self.end(
                        LimitError(
                            f"thread {self.name} made {rate:.0f} exits a second; limits.exits_per_second is {limit}",
                            limit="limits.exits_per_second",
                        )
                    )
                self._rate_from = (now, vcpu.exit_count)
        if self.owner == MAIN_THREAD.ident:
            vcpu.kick()

    def _wall_time_error(self) -> LimitError:
        return LimitError(
            f"thread {self.name} ran longer than limits.wall_time = {self.engine.limits.wall_time} s",
            limit="limits.wall_time",
        )

    # -- exits -----------------------------------------------------------------------------------

    def _isa_exit(self, vcpu: VCpu, dispatcher: Dispatcher, exit: Exit) -> ExitResult:
        """A store to the upper half of the doorbell: the guest code of the ISA speaks, or supervisor code forges it.

        :raises GuestError: an unhandled exception of the guest, or what it wrote makes no sense.
        """
        engine = self.engine
        register = exit.address - engine.doorbell
        if register == doorbell.RETURN:
            self.returned = exit
            return Stop(signed_status(exit.value), "return")
        if register == doorbell.FAULT:
            with self._believing(vcpu, exit):
                fault = engine.isa.read_fault(vcpu, engine, exit)
            if fault is not None:
                return self._fault(exit, fault)
        elif register != doorbell.USER_CALL:
            raise self._unhandled(vcpu, exit, UnhandledExitError(f"the guest wrote to a reserved register: {exit}"))
        with self._believing(vcpu, exit):
            call = engine.isa.read_user_call(vcpu, engine, exit)
        result = self._user_call(vcpu, dispatcher, call)
        if isinstance(result, Fault):
            # An exception here would be the companion's, on a stack pointer that user mode has chosen.
            result = _BAD_CALL
        if isinstance(result, Resume):
            with self._believing(vcpu, exit):
                engine.isa.finish_user_call(vcpu, engine, exit, result.value)
        return result

    @contextlib.contextmanager
    def _believing(self, vcpu: VCpu, exit: Exit) -> Iterator[None]:
        """The ISA reads what its own guest code has left; supervisor code that forges its store leaves no frame."""
        try:
            yield
        except AddressError as error:
            why = f"the guest wrote to a doorbell register of its own vectors, but {error}"
            raise self._unhandled(vcpu, exit, UnhandledExitError(why)) from None

    def _user_call(self, vcpu: VCpu, dispatcher: Dispatcher, call: Exit) -> ExitResult:
        """A system call from user mode. What nobody serves is answered with -ENOSYS: it leads nowhere."""
        if call.address == USER_RETURN:
            value = call.info[0]
            self.returned = Exit(ExitKind.MMIO, self.engine.doorbell + doorbell.RETURN, 8, value, True)
            return Stop(signed_status(value), "return")
        if call.address in (USER_DOORBELL, USER_DOORBELL_READ):
            offset, value = call.info[:2]
            if offset >= doorbell.RETURN:
                return Resume(_ENOSYS)
            store = call.address == USER_DOORBELL
            call = Exit(ExitKind.MMIO, self.engine.doorbell + offset, 8, value if store else 0, store)
        try:
            return dispatcher.dispatch(vcpu, call)
        except UnhandledExitError:
            return Resume(_ENOSYS)

    def _fault(self, exit: Exit, fault: GuestFault) -> ExitResult:
        """An exception that nothing in the guest handles."""
        engine = self.engine

        def describe() -> RiftError:
            return GuestFaultError(fault_report(engine, fault, self.name), exit=exit)

        result = engine.hooks.exit_unanswered(self, exit, fault, describe)
        if result is None:
            raise describe()
        return result

    def _unanswered(self, vcpu: VCpu, dispatcher: Dispatcher, exit: Exit) -> ExitResult:
        """An exit that no handler takes: an extension may, or the run ends."""

        def describe() -> RiftError:
            return self._unhandled(vcpu, exit, dispatcher.unanswered(exit))

        result = self.engine.hooks.exit_unanswered(self, exit, None, describe)
        if result is None:
            raise describe()
        return result

    def _unhandled(self, vcpu: VCpu, exit: Exit, error: UnhandledExitError) -> RiftError:
        """The same error with the guest's registers, place and instruction in it."""
        isa = self.engine.isa
        wanted = (isa.program_counter, *isa.general_registers)
        try:
            registers = vcpu.read_registers(wanted)
        except RiftError:
            return error
        pc = registers.get(isa.program_counter, 0)
        lines = [f"{error} at {describe_address(self.engine.symbols, pc)} (thread {self.name})"]
        kind = exit.kind
        if kind is ExitKind.SHUTDOWN:
            what = (
                "the guest shut its CPU down (on x86-64: a triple fault, an exception while delivering a double fault)"
            )
            if exit.value:
                message = f"{what}; the hypervisor has reset the vCPU, its registers are lost (thread {self.name})"
                return GuestCrashError(message, exit=exit)
            lines = [f"{what} at {describe_address(self.engine.symbols, pc)} (thread {self.name})"]
        elif kind is ExitKind.FAIL_ENTRY:
            lines = [
                f"the hypervisor cannot run the guest's instruction at {describe_address(self.engine.symbols, pc)} "
                f"(thread {self.name}, raw reason {exit.raw_reason}, suberror {exit.value})"
            ]
            code = b"".join(word.to_bytes(8, "little") for word in exit.info)[: exit.size]
            if code:
                lines.append(f"  bytes: {code.hex(' ')}")
                lines += ["  " + text for text in disassemble(isa, code, pc, pc, 0, 0)]
        lines.append("  registers:")
        lines += format_registers(registers, wanted)
        message = "\n".join(lines)
        if kind in _CRASHES:
            return GuestCrashError(message, exit=exit, registers=registers)
        return UnhandledExitError(message, exit=exit, registers=registers, handlers=error.handlers)
