"""The answer to "why did it stop?": GDB manual, "Stop Reply Packets", and LLDB's additions to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import GuestError
from rift_core.exits import Stop
from rift_gdb.connection import to_hex
from rift_gdb.errors import PacketError
from rift_gdb.stops import SIGABRT, SIGKILL, StopEvent

if TYPE_CHECKING:
    from rift_gdb.guest_thread import GuestThread
    from rift_gdb.session import Session

_EXPEDITED = ("pc", "sp", "fp", "flags")
_LLDB_REASONS = {
    "breakpoint": "breakpoint",
    "hardware": "breakpoint",
    "watch": "watchpoint",
    "step": "trace",
    "trap": "exception",
    "fault": "exception",
}
_WATCH_KEYS = {"write": "watch", "read": "rwatch", "access": "awatch"}


def stop_reply(session: Session, thread: GuestThread, stop: StopEvent | None) -> bytes:
    """``T`` with what both kinds of clients want to know.

    :param stop: None: the thread was merely stopped with the others.
    """
    signal = stop.signal if stop is not None else 0
    words = [f"thread:{thread.number:x}", f"core:{thread.context.index:x}"]
    words += _registers(session, thread, stop)
    if stop is not None:
        words += _reason(session, stop)
    if session.lists_threads:
        words += _all_threads(session)
    return f"T{signal:02x}{';'.join(words)};".encode()


def _registers(session: Session, thread: GuestThread, stop: StopEvent | None) -> list[str]:
    if not thread.held:
        return []
    image = session.target.image(thread)
    if stop is not None:
        thread.told = image.values[session.target.engine.isa.program_counter]
    words = []
    for role in _EXPEDITED:
        try:
            row = image.layout.of_role(role)
        except KeyError:
            continue
        part = image.part(row)
        if part is not None:
            words.append(f"{row.number:02x}:{part.hex()}")
    session.show_images()
    return words


def _reason(session: Session, stop: StopEvent) -> list[str]:
    words = []
    if stop.reason == "breakpoint" and "swbreak" in session.features:
        words.append("swbreak:")
    if stop.reason == "hardware" and "hwbreak" in session.features:
        words.append("hwbreak:")
    if stop.reason == "watch":
        words.append(f"{_WATCH_KEYS[stop.access]}:{stop.address:x}")
    if stop.reason == "payloads":
        words.append("library:")
        session.known_payloads = session.server.payloads.added
    reason = _LLDB_REASONS.get(stop.reason)
    if reason is not None and session.is_lldb:
        words.append(f"reason:{reason}")
    if stop.text or stop.reason == "trap":
        text = stop.text or "breakpoint instruction of the program"
        words.append(f"description:{to_hex(text.encode()).decode()}")
    return words


def _all_threads(session: Session) -> list[str]:
    threads = session.target.threads
    words = [f"threads:{','.join(f'{t.number:x}' for t in threads)}"]
    try:
        words.append(f"thread-pcs:{','.join(f'{session.target.place(t).pc:x}' for t in threads)}")
    except PacketError:
        return words  # one of them cannot be looked at
    return words


def end_reply(outcome: Stop | BaseException | None) -> bytes:
    """``W`` with the status, or ``X`` with a signal."""
    if isinstance(outcome, GuestError):
        return b"X%02x" % SIGABRT
    if isinstance(outcome, Stop):
        return b"X%02x" % SIGKILL if outcome.reason == "killed" else b"W%02x" % (outcome.status & 0xFF)
    return b"W00" if outcome is None else b"X%02x" % SIGABRT
