"""The extension that tools stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rift_core.errors import UnsupportedError
from rift_core.exits import ExitKind, Resume

if TYPE_CHECKING:
    from rift_core.backend import VCpu
    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault

STEP = 1
"""``Exit.info[0]`` of the DEBUG exit behind a stepped instruction."""


class Follower(Protocol):
    """Who is told. Every method is called on the host thread of the vCPU; what it returns ends the run."""

    def started(self, context: Context) -> None:
        """A run begins; registers can be read."""

    def stepped(self, context: Context, pc: int) -> Stop | None:
        """One instruction is over, or an exception has been delivered; registers can be read."""

    def exited(self, context: Context, exit: Exit) -> None:
        """An exit comes to Python. The access is open: registers are not to be read."""

    def faulted(self, context: Context, fault: GuestFault) -> None:
        """The built-in vectors report an exception that nothing in the guest handles."""

    def ended(self, context: Context, outcome: Stop | BaseException) -> None:
        """A thread's run is over; registers can be read."""


class Steps:
    """Tells one follower of the steps and exits of a machine."""

    def __init__(self, engine: Engine, single: bool) -> None:
        if single and not engine.vm.capabilities & {"debug_single_step"}:
            raise UnsupportedError("this backend cannot execute single instructions: use --backend emulator")
        self.single = single
        self._follower: Follower | None = None
        self._contexts: dict[int, Context] = {}  # by index, which observers are told
        for kind in ExitKind:
            if kind is not ExitKind.DEBUG:
                engine.dispatcher.observe(kind, self._observe)

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` from now on."""
        self._follower = follower

    def run_started(self, context: Context) -> None:
        """See :meth:`Follower.started`."""
        vcpu = context.vcpu
        self._contexts[context.index] = context
        if self.single and vcpu is not None:
            vcpu.set_debug(single_step=True)
        if self._follower is not None:
            self._follower.started(context)

    def unanswered(self, context: Context, exit: Exit, fault: GuestFault | None) -> ExitResult | None:
        """See :meth:`Follower.stepped` and :meth:`Follower.faulted`."""
        follower = self._follower
        if follower is None:
            return None
        if fault is not None:
            follower.faulted(context, fault)
            return None
        if exit.kind is not ExitKind.DEBUG or not exit.info or exit.info[0] != STEP:
            return None
        return follower.stepped(context, exit.address) or Resume()

    def run_over(self, context: Context, outcome: Stop | BaseException) -> None:
        """See :meth:`Follower.ended`."""
        if self._follower is not None:
            self._follower.ended(context, outcome)

    def _observe(self, vcpu: VCpu, exit: Exit) -> None:
        context = self._contexts.get(vcpu.index)
        if self._follower is not None and context is not None:
            self._follower.exited(context, exit)
