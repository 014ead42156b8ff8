"""Why a guest thread stopped, in the debuggers' terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from rift_core.exits import Exit

SIGINT, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGKILL, SIGBUS, SIGSEGV = 2, 4, 5, 6, 8, 9, 10, 11
"""GDB's own numbers (gdb/signals.def), whatever the host's are."""

SIGNALS = {"SIGILL": SIGILL, "SIGTRAP": SIGTRAP, "SIGFPE": SIGFPE, "SIGBUS": SIGBUS, "SIGSEGV": SIGSEGV}
"""By the names that an ISA gives its faults (``IsaDebug.signal``)."""

Reason = Literal["attach", "interrupt", "step", "over", "breakpoint", "hardware", "watch", "trap", "fault", "payloads"]
"""``over``: the step off a breakpoint, which no client hears of; ``trap``: a breakpoint of the program's own;
``payloads``: there are more of them, and the client is to go on when it has looked."""


@dataclass(frozen=True, slots=True)
class StopEvent:
    """One thread's stop. ``text`` is a sentence for people, of faults; ``address`` the data's, of watchpoints."""

    reason: Reason
    signal: int = SIGTRAP
    pc: int = 0
    address: int = 0
    access: str = "write"
    text: str = ""


class Plan(NamedTuple):
    """What a thread is to do when it is let go: run, step once, or step while it is in [first, last)."""

    kind: Literal["go", "step", "range", "over"]
    first: int = 0
    last: int = 0


GO = Plan("go")
STEP = Plan("step")
OVER = Plan("over")


def crash_signal(exit: Exit) -> int:
    """The signal for an exit that nobody answers."""
    return SIGILL if exit.kind is ExitKind.FAIL_ENTRY else SIGABRT
