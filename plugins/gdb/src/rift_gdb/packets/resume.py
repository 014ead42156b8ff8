"""Going on: all threads or some, a step, or steps while the program counter stays in a range."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import number, numbers
from rift_gdb.packets.registry import packet
from rift_gdb.packets.threads import thread_id
from rift_gdb.stops import GO, SIGTRAP, STEP, Plan

if TYPE_CHECKING:
    from rift_gdb.guest_thread import GuestThread
    from rift_gdb.session import Session


class _Action:
    """What one part of ``vCont`` says."""

    def __init__(self, text: bytes) -> None:
        letter, rest = text[:1], text[1:]
        self.signal = 0
        self.stops = False
        self.plan: Plan = GO
        if letter in (b"c", b"s") and not rest:
            self.plan = GO if letter == b"c" else STEP
        elif letter in (b"C", b"S"):
            self.plan = GO if letter == b"C" else STEP
            self.signal = number(rest)
        elif letter == b"r":
            first, last = numbers(rest, 2)
            self.plan = Plan("range", first, last)
        elif letter == b"t" and not rest:
            self.stops = True
        else:
            raise PacketError("vCont takes c, C, s, S, r and t", INVALID)

    @property
    def delivers(self) -> bool:
        """Whether the signal ends the thread: not the debugger's own."""
        return self.signal not in (0, SIGTRAP)


@packet("vCont?")
def actions(session: Session, arguments: bytes) -> bytes:
    """What ``vCont`` can do."""
    return b"vCont;c;C;s;S;t;r"


@packet("vCont")
def resume_each(session: Session, arguments: bytes) -> None:
    """An action for each thread; the first that fits a thread counts, and a thread without one stays stopped."""
    plans: dict[GuestThread, Plan] = {}
    deliver: list[GuestThread] = []
    rest: Plan | None = None
    for part in arguments.removeprefix(b";").split(b";"):
        text, found, who = part.partition(b":")
        action = _Action(text)
        which = thread_id(who) if found else -1
        if which > 0:
            threads = [session.target.find(which)]
        elif which == 0:
            threads = [session.thread()]
        else:
            threads = session.target.threads
        for thread in threads:
            if thread in plans:
                continue
            if not action.stops:
                plans[thread] = action.plan
            if action.delivers:
                deliver.append(thread)
        if which < 0 and not action.stops:
            rest = action.plan
    session.server.resume(session, plans, rest, deliver)


def _resume(session: Session, action: _Action, address: bytes) -> None:
    """The older packets: one thread steps, or all go on."""
    one = session.target.find(session.resumed) if session.resumed > 0 else session.thread()
    if address:
        pc = session.target.engine.isa.program_counter
        session.target.write_registers(one, {pc: number(address)})
    alone = action.plan is STEP or session.resumed > 0
    session.server.resume(session, {one: action.plan}, None if alone else action.plan, [one] if action.delivers else [])


@packet("c")
def go(session: Session, arguments: bytes) -> None:
    """Go on, from an address if one is given."""
    _resume(session, _Action(b"c"), arguments)


@packet("s")
def step(session: Session, arguments: bytes) -> None:
    """One instruction."""
    _resume(session, _Action(b"s"), arguments)


@packet("C")
def go_with_signal(session: Session, arguments: bytes) -> None:
    """Go on with a signal: the fault that it stands for ends the thread."""
    signal, _, address = arguments.partition(b";")
    _resume(session, _Action(b"C" + signal), address)


@packet("S")
def step_with_signal(session: Session, arguments: bytes) -> None:
    """One instruction, with a signal."""
    signal, _, address = arguments.partition(b";")
    _resume(session, _Action(b"S" + signal), address)


@packet("vCtrlC")
def interrupt(session: Session, arguments: bytes) -> bytes:
    """Stop everything."""
    session.target.interrupt()
    return b"OK"
