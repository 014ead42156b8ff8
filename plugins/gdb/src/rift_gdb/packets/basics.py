"""Hello and goodbye: what both sides can do, acknowledgements, detaching, killing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.connection import PACKET_LIMIT
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_ALWAYS = (
    f"PacketSize={PACKET_LIMIT:x}",
    "QStartNoAckMode+",
    "qXfer:features:read+",
    "qXfer:threads:read+",
    "qXfer:memory-map:read+",
    "qXfer:libraries:read+",
    "vContSupported+",
    "binary-upload+",
    "error-message+",
    "QThreadSuffixSupported+",
    "QListThreadsInStopReply+",
)
"""What is announced to everybody, and answered."""

_IF_BOTH = ("swbreak", "hwbreak", "no-resumed")
"""What is used only if the client has announced it as well; GDB stops with an error otherwise."""


@packet("qSupported")
def supported(session: Session, arguments: bytes) -> bytes:
    """Both sides' features."""
    offered = arguments.removeprefix(b":").decode("ascii", "replace").split(";")
    session.features = frozenset(word.removesuffix("+") for word in offered if word.endswith("+"))
    words = [*_ALWAYS, *(f"{word}+" for word in _IF_BOTH if word in session.features)]
    if session.server.payloads.own is not None:
        words.append("qXfer:exec-file:read+")
    return ";".join(words).encode()


@packet("QStartNoAckMode")
def no_acknowledgements(session: Session, arguments: bytes) -> None:
    """The answer is the last packet that the client acknowledges."""
    session.connection.send(b"OK")
    session.connection.stop_acknowledging()


@packet("qAttached")
def attached(session: Session, arguments: bytes) -> bytes:
    """The guest was there before: a client that goes detaches rather than kills."""
    return b"1"


@packet("D")
def detach(session: Session, arguments: bytes) -> None:
    """The guest goes on without a debugger; or, for LLDB's ``D1``, waits for the next one."""
    session.connection.send(b"OK")
    session.over, session.after = True, "stopped" if arguments == b"1" else "detached"


@packet("qSupportsDetachAndStayStopped")
def detach_and_stay_stopped(session: Session, arguments: bytes) -> bytes:
    """``process detach --keep-stopped true`` works."""
    return b"OK"


@packet("k")
def kill(session: Session, arguments: bytes) -> None:
    """The guest threads end; LLDB waits for an answer, GDB does not."""
    session.connection.send(b"X09")
    session.over, session.after = True, "killed"


@packet("vKill")
def kill_process(session: Session, arguments: bytes) -> None:
    """The same, with an answer."""
    session.connection.send(b"OK")
    session.over, session.after = True, "killed"


@packet("QEnableErrorStrings")
def error_strings(session: Session, arguments: bytes) -> bytes:
    """LLDB wants the text of errors."""
    session.error_strings = True
    return b"OK"
