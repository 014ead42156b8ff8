"""Which threads there are, and which one is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.connection import to_hex
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import number
from rift_gdb.packets.registry import packet
from rift_gdb.stop_reply import stop_reply

if TYPE_CHECKING:
    from rift_gdb.guest_thread import GuestThread
    from rift_gdb.session import Session


def thread_id(text: bytes) -> int:
    """A thread's number, 0 for any, -1 for all.

    :raises PacketError: something else.
    """
    return -1 if text == b"-1" else number(text)


@packet("H")
def choose(session: Session, arguments: bytes) -> bytes:
    """The thread of the following packets: ``g`` for registers and memory, ``c`` for going on."""
    operation, which = arguments[:1], thread_id(arguments[1:])
    if which > 0:
        session.target.find(which)
    if operation == b"g":
        session.select(max(which, 0))
    elif operation == b"c":
        session.resumed = which
    else:
        raise PacketError("H takes g or c", INVALID)
    return b"OK"


@packet("T")
def alive(session: Session, arguments: bytes) -> bytes:
    """Whether a thread is there."""
    session.target.find(number(arguments))
    return b"OK"


@packet("qC")
def current(session: Session, arguments: bytes) -> bytes:
    """The thread that is meant."""
    return b"QC%x" % session.thread().number


@packet("qfThreadInfo")
def first_threads(session: Session, arguments: bytes) -> bytes:
    """All threads at once."""
    threads = session.target.threads
    return b"m" + b",".join(b"%x" % thread.number for thread in threads) if threads else b"l"


@packet("qsThreadInfo")
def more_threads(session: Session, arguments: bytes) -> bytes:
    """There are no more."""
    return b"l"


def describe(session: Session, thread: GuestThread) -> str:
    """What is worth knowing of a thread, in a few words."""
    context = thread.context
    if not context.held:
        return f"vCPU {context.index}, inside an exit handler"
    place = session.target.place(thread)
    return f"vCPU {context.index}, {place.privilege} mode, pc={place.pc:#x}"


@packet("qThreadExtraInfo")
def extra_info(session: Session, arguments: bytes) -> bytes:
    """The same for a client that does not read the list as XML."""
    thread = session.target.find(number(arguments.removeprefix(b",")))
    return to_hex(f"{thread.context.name} ({describe(session, thread)})".encode())


@packet("?")
def why(session: Session, arguments: bytes) -> bytes | None:
    """Why it has stopped: because the client has come, or what has happened before."""
    return session.server.first_stop(session)


@packet("qThreadStopInfo", prefix=True)
def why_this_one(session: Session, arguments: bytes) -> bytes:
    """The same of one thread (LLDB)."""
    thread = session.target.find(number(arguments))
    return stop_reply(session, thread, session.server.last_stop_of(thread))
