"""The machine as the debugger drives it: all threads stopped, or some of them let go with a plan each.

What guest threads come upon stands in :mod:`rift_gdb.guest_side`; here the server's thread decides: it stops, inspects
and resumes. To step off a breakpoint a thread goes alone, with this one left out, and only then the others follow:
none of them can run past a breakpoint that is out of memory for a moment. Stops of several threads at a time are told
one after another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from rift_core.errors import StateError
from rift_core.exits import Stop
from rift_gdb.breakpoints import NOTHING
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.guest_side import Ended, GuestSide
from rift_gdb.guest_thread import GuestThread
from rift_gdb.inspection import STOP_SECONDS
from rift_gdb.patches import Patches
from rift_gdb.stops import GO, OVER, SIGINT, Plan, StopEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future

    from rift_core.engine import Engine
    from rift_core.isa_debug import Place
    from rift_gdb.breakpoints import Arrangement
    from rift_gdb.memory import View


class Target(GuestSide):
    """One machine under a debugger.

    :param wake: called, on any thread, when there is something for :meth:`collect`.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        super().__init__(engine, wake)
        self._patches = Patches(engine, self.debug.breakpoint)
        self._plans: dict[GuestThread, Plan] = {}
        self._over: deque[GuestThread] = deque()
        self._missed: Ended | None = None  # the end of a run while the client had everything stopped
        self._rest: Plan | None = None

    # -- stopping --------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep everybody outside the guest from now on, those that come as well; returns at once."""
        self._gate.close()

    def attach(self) -> None:
        """A client has come: stop everything, and keep what happens for it. What has happened before stands in
        ``GuestThread.stop``."""
        with self._lock:
            self.attended = True
        self._halt()
        self.idle()

    def idle(self) -> None:
        """Nobody is there to be told of anything."""
        with self._lock:
            self._reports.clear()

    def interrupt(self, reason: Literal["interrupt", "payloads"] = "interrupt") -> None:
        """Stop everything, and have :meth:`collect` tell of it."""
        if not self.running:
            return
        self._stop_all()
        with self._lock:
            if any(isinstance(report, GuestThread) and _is_news(report.stop) for report in self._reports):
                return  # something has happened by itself
        self._settle()
        for each in self.threads:
            if not _is_news(each.stop):
                self._take(each)
        stop = StopEvent(reason, SIGINT if reason == "interrupt" else 0)
        self._awaited = stop  # before the look at the threads: one that comes now sees this, or is seen
        threads = self.threads
        thread = next((t for t in self._plans if t.held and t.running), None)
        thread = thread or next((t for t in threads if t.held), None) or next(iter(threads), None)
        if thread is None:
            self.running = True  # the client waits on, for the next run that begins
            return
        self._awaited = None
        thread.stop = stop
        self._report(thread)

    def _halt(self) -> None:
        self._stop_all()
        self._settle()

    def _stop_all(self) -> None:
        self._gate.close()
        self._gate.wait(STOP_SECONDS)

    def _settle(self) -> None:
        """Everybody stands: the program's own instructions come back."""
        self._patches.remove()
        self._over.clear()
        self.running = False

    def collect(self) -> tuple[GuestThread, StopEvent] | Ended | None:
        """What the client must be told next; everything is stopped then. None: nothing, or it goes on by itself."""
        while True:
            with self._lock:
                report = self._reports.popleft() if self._reports else None
            if report is None:
                return None
            if isinstance(report, Ended):
                if self._ended(report):
                    return report
                continue
            if not report.running:
                continue  # its end comes next
            stop = self._take(report)
            if stop is None:
                continue
            if stop.reason == "over" and self._stepped_over(report, stop.pc):
                continue
            self._awaited = None
            self._halt()
            self._keep_others()
            return report, stop

    def _keep_others(self) -> None:
        """What other threads came upon at the same time waits until they are resumed, but for ends of steps."""
        with self._lock:
            kept = [report for report in self._reports if isinstance(report, Ended)]
            self._reports.clear()
            self._reports.extend(kept)
        for thread in self.threads:
            if thread.stop is not None and thread.stop.reason in ("step", "over"):
                self._take(thread)

    def _ended(self, report: Ended) -> bool:
        """Whether the client must know of the end of a run."""
        self._plans.pop(report.thread, None)
        stepping = bool(self._over) and self._over[0] is report.thread
        if report.thread in self._over:
            self._over.remove(report.thread)
        if not self.running or not self.attended:
            self._missed = report
            return False
        if not self.threads:
            # A call's end is nobody's: the next one may come.
            return report.outcome is not None and not any(t.state == "new" for t in self.engine.threads)
        if stepping or (report.thread.stop is not None and not any(t.stop is not None for t in self.threads)):
            self._advance()  # it had closed the gate, and nobody else has a reason to
            return False
        if not self._gate.closed or any(t.running for t in self._plans):
            return False
        self._halt()  # others are there, but none of those that were let go
        return True

    # -- resuming --------------------------------------------------------------------------------

    def resume(self, plans: dict[GuestThread, Plan], rest: Plan | None, deliver: Iterable[GuestThread] = ()) -> None:
        """Let these threads go; all others do ``rest``, or stay where they are.

        A stop that one of them has not been told of yet comes at once instead. ``deliver``: their faults end them.
        :raises PacketError: one cannot be stepped where it stands; nothing has changed.
        """
        threads = self.threads
        if rest is not None:
            plans = {**dict.fromkeys(threads, rest), **plans}
        self._check_steps(plans)
        self._awaited = None
        pending = [t for t in plans if t.stop is not None and self._still_true(t, t.stop)]
        if pending:
            self.running = True
            self._report(pending[0])
            return
        arranged = self.breakpoints.arrange()
        delivered = frozenset(deliver)
        for thread in threads:
            self._take(thread)
            thread.deliver = thread in delivered
        self._plans, self._rest, self._arranged = plans, rest, arranged
        self.running = True  # from now on threads that begin set themselves up
        self._events.remember(arranged, self.breakpoints)
        self._over = deque(t for t in plans if t not in delivered and self._stands_on_breakpoint(t))
        for thread in threads:
            thread.left = thread.told if thread in self._over else None
            thread.told = None
        if not threads:
            self._report(self._missed)
        self._advance()

    def _check_steps(self, plans: dict[GuestThread, Plan]) -> None:
        for thread, plan in plans.items():
            if plan.kind != "go" and not self.means.step[self.place(thread).privilege]:
                raise PacketError(
                    f"thread {thread.context.name} cannot be stepped: this hypervisor has no single steps in "
                    f"{self.place(thread).privilege} mode",
                    INVALID,
                )

    def _still_true(self, thread: GuestThread, stop: StopEvent) -> bool:
        """Whether a stop that was not told yet still holds: its breakpoint may have gone, the thread been moved."""
        if stop.reason in ("breakpoint", "hardware"):
            if stop.pc in self.breakpoints and self.place(thread).pc == stop.pc:
                return True
            self._take(thread)
            return False
        return True

    def _stands_on_breakpoint(self, thread: GuestThread) -> bool:
        """Only if the client knows it: a thread that has just come to the place has yet to stop at it."""
        told = thread.told
        if told is None or (told not in self._arranged.patched and told not in self._arranged.hardware):
            return False
        place = self._place_of(thread)
        return place is not None and place.pc == told

    def _place_of(self, thread: GuestThread) -> Place | None:
        """Where it stands; None: it has just ended."""
        try:
            return self.place(thread)
        except PacketError:
            return None

    def _advance(self) -> None:
        """The next thread steps off its breakpoint; when all have, everybody goes."""
        while self._over:
            thread = self._over[0]
            place = self._place_of(thread)
            if place is not None and self.means.step[place.privilege]:
                thread.plan = OVER
                # The instruction may write to what is watched, or fault into a handler that has breakpoints.
                patched = {a: view for a, view in self._arranged.patched.items() if a != place.pc}
                self._insert(patched)
                self._let_go([thread], replace(self._arranged, patched=patched))
                return
            self._over.popleft()
        self._insert(self._arranged.patched)
        if self._rest is not None:  # those that have begun since, and may have looked before there was a plan
            self._plans = {**dict.fromkeys(self.threads, self._rest), **self._plans}
        going = [t for t in self._plans if t.running]
        for thread in going:
            thread.plan = self._plans[thread]
        self._let_go(going, self._arranged)

    def _insert(self, patched: Mapping[int, View]) -> None:
        """These, and no others."""
        self._patches.remove()
        for address, view in patched.items():
            self._patches.insert(address, view)

    def _stepped_over(self, thread: GuestThread, pc: int) -> bool:
        """One has stepped off its breakpoint, to ``pc``; False if that was all it was to do."""
        if not self.running or not self._over or self._over[0] is not thread:
            return True
        self._over.popleft()
        plan = self._plans.get(thread, GO)
        done = plan.kind == "step" or (plan.kind == "range" and not plan.first <= pc < plan.last)
        if done and not self._events.begins_exception(pc):
            return False
        self._advance()
        return True

    def _let_go(self, threads: list[GuestThread], arranged: Arrangement) -> None:
        for thread in threads:
            thread.forget()
            try:
                future = thread.context.post(partial(thread.arm, arranged))
            except StateError:
                continue  # it has ended meanwhile
            future.add_done_callback(partial(self._armed, thread))
        if self._over or self._rest is None:
            self._gate.close(t.context for t in threads)
        else:
            self._gate.open()

    def _armed(self, thread: GuestThread, future: Future[None]) -> None:
        """On its owner: a vCPU that cannot be set up does not run away from its breakpoints."""
        error = future.exception()
        if error is not None:
            thread.stop = StopEvent("interrupt", SIGINT, text=f"the vCPU cannot be set up: {error}")
            self._gate.close()
            self._report(thread)

    def detach(self) -> None:
        """No debugger any more: no breakpoints, and everybody goes on."""
        self._halt()  # nobody is just about to tell of a breakpoint; who is late finds out by itself
        with self._lock:
            self.attended = False
        self._release()

    def _release(self) -> None:
        """Forget breakpoints and stops, and let everybody go on."""
        self._patches.remove()
        self.breakpoints.clear()
        self._arranged = NOTHING
        self._awaited = None
        self._over.clear()
        self._plans.clear()
        with self._lock:
            self._reports.clear()
        for thread in self.threads:
            self._take(thread)
            thread.forget()
            try:
                thread.context.post(thread.disarm)
            except StateError:
                continue
        self.running = True
        self._gate.open()

    def kill(self) -> None:
        """End every run."""
        with self._lock:
            self.attended = False
        self.engine.end_all(Stop(0, "killed"))
        self._release()


def _is_news(stop: StopEvent | None) -> bool:
    """Whether the client must be told of it: not of the step off a breakpoint."""
    return stop is not None and stop.reason != "over"
