"""One guest thread as the debugger sees it: what it shall do, why it stopped, its registers while it is stopped.

Its methods run on the thread's own host thread, the owner of its vCPU, unless they say otherwise.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from rift_core.errors import AddressError, HypervisorError, RiftError, UnsupportedError
from rift_gdb.stops import GO, Plan, StopEvent

if TYPE_CHECKING:
    from rift_core.backend import VCpu, Watchpoint
    from rift_core.context import Context
    from rift_core.isa_debug import IsaDebug, Place
    from rift_gdb.breakpoints import Arrangement
    from rift_gdb.means import Means
    from rift_gdb.registers import Image

_MOST_CLOCKS = 1024  # a function called from GDB may stop that often before its caller's registers are brought back


class GuestThread:
    """A vCPU in a run. ``number`` is its id in the protocol: never 0."""

    def __init__(self, context: Context, debug: IsaDebug, means: Means) -> None:
        self.context = context
        self.number = context.index + 1
        self.plan: Plan = GO
        self.stop: StopEvent | None = None  # not told to the client yet
        self.told: int | None = None  # where the client has been told that it stopped, until it is let go
        self.left: int | None = None  # the breakpoint that it stood on when it was let go
        self.deliver = False  # let the fault end the run
        self.start = 0  # where the plan began
        self.exception_stack: int | None = None  # the stack pointer at the vector of an exception that a step has taken
        self.lifted = False  # debug registers at the start of a step are left out until it is done
        self.strange: tuple[int, int] | None = None  # a debug exception that belongs to nothing: kind and place
        self.image: Image | None = None  # any thread, while the machine is stopped
        self.place: Place | None = None  # the same
        self.clocks: deque[tuple[str, int]] = deque(maxlen=_MOST_CLOCKS)  # what registers that move have shown
        self.over = False  # the run has ended; when the vCPU runs again, another object stands for it
        self._debug = debug
        self._means = means
        self._settings: object = None  # what set_debug was given last; None: nothing, or it failed
        self._given = False  # it was given something, which may be in force
        self._trap = False  # the guest's own debug exceptions are on
        self._vectored = False  # breakpoints that it may come upon are the guest's own exceptions
        self._stepping = False  # from `start` on
        self._armed = False
        self._late = False  # a step or breakpoint was taken back that may have happened already
        self._diverted: dict[int, tuple[bytes, bytes]] = {}  # by address: what stood there, what does now

    def __repr__(self) -> str:
        return f"<GuestThread {self.number} {self.context.name} {self.plan.kind}>"

    @property
    def running(self) -> bool:
        """Whether its run goes on, stopped or not. Any thread."""
        return self.context.running and not self.over

    @property
    def held(self) -> bool:
        """Whether its registers can be reached: it waits outside the guest. Any thread."""
        return self.context.held

    @property
    def armed(self) -> bool:
        """Whether the vCPU may still stop for the debugger: it has been set up, and that was not taken back yet, or an
        exception of a step or a breakpoint may be on its way through the guest's vectors."""
        return self._armed or self._late

    @property
    def late(self) -> bool:
        """Whether one may be."""
        return self._late

    def forget(self) -> None:
        """The guest goes on: what is known of its registers is out of date. Any thread."""
        self.image = None
        self.place = None

    def arm(self, arranged: Arrangement) -> None:
        """Set the vCPU up for the plan, before it enters the guest.

        :raises RiftError: the backend refuses.
        """
        vcpu = self.context.vcpu
        if vcpu is None or self.over:
            return
        self._armed = True
        self._abandon_step(vcpu)
        self._set_up(vcpu, arranged)

    def _abandon_step(self, vcpu: VCpu) -> None:
        """What the last plan has left if it was a step that ended elsewhere: at a breakpoint in a handler."""
        if self._stepping:
            self._stepping = False
            self._debug.forget_step(vcpu, self.context.engine, self.start)

    def _set_up(self, vcpu: VCpu, arranged: Arrangement) -> None:
        self.strange = None
        place = self._debug.place(vcpu)
        self.start = place.pc
        self.exception_stack = None
        steps = self.plan.kind != "go" or bool(arranged.compared)
        way = self._means.step[place.privilege] if steps else ""
        self._stepping = steps
        hardware = arranged.hardware
        self.lifted = steps and place.pc in hardware
        if self.plan.kind == "over" or self.lifted:
            # A debug register at the program counter would stop the step before it begins.
            hardware = tuple(address for address in hardware if address != place.pc)
        software = bool(arranged.patched) and "exit" in self._means.instruction.values()
        settings = (way == "exit", software, hardware, arranged.watchpoints)
        if settings != self._settings:
            self._settings = None
            self._given = True
            vcpu.set_debug(
                single_step=settings[0], software=software, breakpoints=hardware, watchpoints=arranged.watchpoints
            )
            self._settings = settings
        vectored = bool(arranged.patched) and "vector" in self._means.instruction.values()
        if self._vectored and not vectored:
            self._late = True
        self._vectored = vectored
        if way == "vector" or vectored:
            self._divert(vcpu)
        if way != "vector":
            self._untrap(vcpu)
        elif not self._trap:
            self._debug.step_by_exception(vcpu, True)
            self._trap = True

    def _divert(self, vcpu: VCpu) -> None:
        """Debug exceptions come to the host, past the payload's own handlers, until :meth:`disarm`."""
        engine = self.context.engine
        try:
            for address, content in self._debug.exceptions_to_host(vcpu, engine, engine.system):
                now = engine.read_virtual(address, len(content))
                if now != content:
                    engine.write_virtual(address, content)
                    self._diverted[address] = (now, content)
        except AddressError:
            return  # its handlers are nowhere: it has other faults

    def _undivert(self) -> None:
        engine = self.context.engine
        for address, (before, content) in self._diverted.items():
            with suppress(AddressError):
                if engine.read_virtual(address, len(content)) == content:
                    engine.write_virtual(address, before)
        self._diverted.clear()

    def rearm(self, arranged: Arrangement) -> None:
        """Go on stepping: the debug register that the first step left out comes back, and where the privilege levels
        are stepped in different ways, the right one is chosen."""
        if self.lifted or self._means.step["supervisor"] != self._means.step["user"]:
            vcpu, start, stack = self.context.vcpu, self.start, self.exception_stack
            if vcpu is not None:
                self._set_up(vcpu, arranged)
            self.start, self.exception_stack = start, stack

    def trapped(self) -> None:
        """What was undone has brought them back: a step's, or a breakpoint's that came while one was on its way."""
        self._trap = True

    def calm(self) -> None:
        """Take the guest's own debug exceptions off: one has come, and nothing else is on its way."""
        vcpu = self.context.vcpu
        if vcpu is not None:
            self._untrap(vcpu)
        self._late = False

    def arrived(self) -> None:
        """It has stopped, and shows its registers; before it goes on it is set up anew."""
        self.calm()
        self._vectored = False

    def _untrap(self, vcpu: VCpu) -> None:
        """The same where it stands anywhere: the exception may have happened, and come later, however often the thread
        is set up anew before."""
        if self._trap:
            self._late = True
            self._debug.step_by_exception(vcpu, False)
            self._trap = False

    def disarm(self) -> None:
        """Nothing stops it any more; a failure has nobody to tell."""
        self.plan = GO
        self._armed = False
        self._undivert()
        vcpu = self.context.vcpu
        if vcpu is None:
            return
        try:
            if self._vectored:
                self._late = True
                self._vectored = False
            self._untrap(vcpu)
            self._abandon_step(vcpu)
            self._clear(vcpu)
        except RiftError:
            pass
        self._settings = None

    def _clear(self, vcpu: VCpu) -> None:
        """What is known of the settings does not count here: some may have been taken that failed, or were tried."""
        if self._given:
            vcpu.set_debug()
            self._given = False

    def takes(self, breakpoints: tuple[int, ...], watchpoints: tuple[Watchpoint, ...]) -> bool:
        """Whether the debug registers take these. It stands, and is disarmed afterwards."""
        vcpu = self.context.vcpu
        if vcpu is None:
            return False
        self._given = True
        try:
            vcpu.set_debug(breakpoints=breakpoints, watchpoints=watchpoints)
        except (HypervisorError, UnsupportedError):
            return False
        finally:
            self.disarm()
        return True
