"""What guest threads come upon, on their own host threads: runs that begin and end, breakpoints, steps, faults.

A thread that stops closes the gate for everybody, leaves a :class:`~rift_gdb.stops.StopEvent`, wakes the server and
waits, like all others, in the mailbox of its vCPU.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rift_core.errors import RiftError
from rift_core.exits import Resume
from rift_core.gate import Gate
from rift_gdb.breakpoints import NOTHING, Breakpoints
from rift_gdb.events import Events
from rift_gdb.guest_thread import GuestThread
from rift_gdb.inspection import Inspection
from rift_gdb.stops import GO, StopEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault


class Ended:
    """A run that is over: a thread's with its outcome, a call's without."""

    def __init__(self, thread: GuestThread, outcome: Stop | BaseException | None) -> None:
        self.thread = thread
        self.outcome = outcome


class GuestSide(Inspection):
    """The part of a :class:`~rift_gdb.target.Target` that guest threads call.

    :param wake: called, on any thread, when there is something to be told.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        super().__init__(engine)
        self.breakpoints = Breakpoints(self.means, self._fits, self._levels)
        self.attended = False  # a debugger is there, or will come and find the machine as it was left
        self.holds_faults = False  # faults wait for one
        self.running = True  # as the client sees it
        self._gate = Gate(engine)
        self._wake = wake
        self._outcomes: dict[Context, Stop | BaseException] = {}
        self._reports: deque[GuestThread | Ended] = deque()
        self._arranged = NOTHING
        self._events = Events(self)
        self._awaited: StopEvent | None = None  # what the next run that begins stops with

    def _report(self, report: GuestThread | Ended | None) -> None:
        if report is not None:
            with self._lock:
                self._reports.append(report)
        self._wake()

    def run_started(self, context: Context) -> None:
        """``rift_run_started``."""
        with self._lock:
            self._outcomes.pop(context, None)
            thread = self._threads.get(context)
            if thread is None:
                thread = self._threads[context] = GuestThread(context, self.debug, self.means)
            thread.stop = None
            thread.plan = GO
            thread.forget()
        arranged = self._arranged if self.running and self.attended else NOTHING
        try:
            thread.disarm()
            if arranged is not NOTHING:
                thread.arm(arranged)
        except RiftError:
            pass
        if self._awaited is not None:
            thread.stop = self._awaited
            self._report(thread)

    def run_outcome(self, context: Context, outcome: Stop | BaseException) -> None:
        """``rift_thread_stopped``: the last moment at which the vCPU is the thread's, see :meth:`run_ended`."""
        with self._lock:
            self._outcomes[context] = outcome
            thread = self._threads.get(context)
        if thread is not None:
            thread.disarm()

    def run_ended(self, context: Context) -> None:
        """``rift_run_ended``."""
        with self._lock:
            thread = self._threads.pop(context, None)
            if thread is None:
                return
            thread.over = True
            ended = Ended(thread, self._outcomes.get(context))
        thread.disarm()
        self._report(ended)

    def verdict(self, last: Ended) -> Stop | BaseException | None:
        """How the whole guest has ended, ``last`` being the last run: as ``Machine.run`` has it, with the fault of a
        thread that had one, else as the first thread has."""
        with self._lock:
            outcomes = [self._outcomes.get(thread.context) for thread in self.engine.threads]
        candidates = (last.outcome, *outcomes)
        faults = (outcome for outcome in candidates if isinstance(outcome, BaseException))
        return next(faults, next((outcome for outcome in outcomes if outcome is not None), last.outcome))

    def answer(
        self, context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
    ) -> ExitResult | None:
        """``rift_exit_unanswered``: a breakpoint, a step, or a fault; None: not ours."""
        if not self.attended and not self.holds_faults and context not in self._threads:
            return None
        with self._lock:
            thread = self._threads.get(context)
            if thread is None:
                thread = self._threads[context] = GuestThread(context, self.debug, self.means)
        if not self.attended and not self.holds_faults and not thread.armed:
            return None
        stop = self._events.classify(thread, exit, fault, describe)
        if stop is None:
            return Resume()
        thread.arrived()
        thread.forget()
        guests_own = stop.reason in ("fault", "trap")
        with self._lock:  # who detaches comes before, and is seen, or after, and finds the stop
            told = self.attended or (self.holds_faults and guests_own)
            if told:
                thread.stop = stop
                self._gate.close()
        if not told:  # the client has just gone
            if guests_own:
                return None
            thread.disarm()
            return Resume()
        while self._keep(thread, stop):
            self._report(thread)
            ending = context.serve()
            if ending is not None:
                return ending
        if thread.deliver:
            thread.deliver = False
            return None
        return Resume()

    def _keep(self, thread: GuestThread, stop: StopEvent) -> bool:
        """Close the gate for a stop, unless the server has taken it: its gate may be open again by then."""
        with self._lock:
            if thread.stop is not stop:
                return False
            self._gate.close()
            return True

    def _take(self, thread: GuestThread) -> StopEvent | None:
        """What it has stopped for; it keeps the gate closed no more. The server's thread."""
        with self._lock:
            stop, thread.stop = thread.stop, None
        return stop
