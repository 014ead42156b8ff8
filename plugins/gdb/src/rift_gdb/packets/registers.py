"""Registers: read one or all, write one or all, put them aside and bring them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import content, number
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.guest_thread import GuestThread
    from rift_gdb.registers import Row
    from rift_gdb.session import Session

_SUFFIX = b";thread:"
_MOST_SAVED = 64


def split_thread(session: Session, arguments: bytes) -> tuple[bytes, GuestThread]:
    """What comes before LLDB's ``;thread:N;``, and the thread that is meant.

    :raises PacketError: no such thread.
    """
    head, found, tail = arguments.partition(_SUFFIX)
    if not found:
        return head, session.thread()
    return head, session.target.find(number(tail.removesuffix(b";")))


def _row(session: Session, which: int) -> Row:
    rows = session.target.layout.rows
    if which >= len(rows):
        raise PacketError(f"there is no register {which}", INVALID)
    return rows[which]


@packet("p")
def read_one(session: Session, arguments: bytes) -> bytes:
    """One register. Natively answered from the second time on."""
    which, thread = split_thread(session, arguments)
    image = session.target.image(thread)
    row = _row(session, number(which))
    session.show_images()
    part = image.part(row)
    if part is None:
        # LLDB would take the letters x for a value.
        raise PacketError(f"this backend does not know register {row.view.name}", INVALID)
    return part.hex().encode()


@packet("g")
def read_all(session: Session, arguments: bytes) -> bytes:
    """All registers."""
    _, thread = split_thread(session, arguments)
    image = session.target.image(thread)
    session.show_images()
    return image.all()


@packet("P")
def write_one(session: Session, arguments: bytes) -> bytes:
    """One register."""
    text, thread = split_thread(session, arguments)
    which, found, digits = text.partition(b"=")
    if not found:
        raise PacketError("P takes a register's number, = and its value", INVALID)
    row, data = _row(session, number(which)), content(digits)
    if row.view.moves and (row.register.name, int.from_bytes(data, "little")) in thread.clocks:
        return b"OK"  # GDB brings all registers back after a call: time goes on
    _write(session, thread, {row: data})
    return b"OK"


@packet("G")
def write_all(session: Session, arguments: bytes) -> bytes:
    """All registers; only those that change are written."""
    text, thread = split_thread(session, arguments)
    layout = session.target.layout
    digits = text.replace(b"x", b"0")  # unavailable ones, handed back as they came
    if len(digits) != 2 * layout.size:
        raise PacketError(f"{layout.size} bytes of registers are expected", INVALID)
    data = content(digits)
    image = session.target.image(thread)
    changed = {}
    for row in layout.rows:
        part = data[row.place : row.place + row.size]
        if image.part(row) not in (None, part) and not row.view.moves:
            changed[row] = part
    if changed:
        _write(session, thread, changed)
    return b"OK"


def _write(session: Session, thread: GuestThread, parts: dict[Row, bytes]) -> None:
    target = session.target
    image = target.image(thread)
    values: dict[str, int] = {}
    for row, data in parts.items():
        name = row.register.name
        if len(data) != row.size:
            raise PacketError(f"{row.view.name} has {row.size} bytes, not {len(data)}", INVALID)
        before = values.get(name, image.values.get(name))
        if before is None:
            raise PacketError(f"this backend does not know register {row.view.name}", INVALID)
        try:
            values[name] = row.merge(before, data)
        except ValueError as error:
            raise PacketError(str(error), INVALID) from None
    try:
        target.write_registers(thread, values)
    finally:
        session.connection.forget_pages()  # it may have been the root of the page tables
        session.show_images()


@packet("QSaveRegisterState")
def save_all(session: Session, arguments: bytes) -> bytes:
    """Put a thread's registers aside, before LLDB calls a function of the guest."""
    _, thread = split_thread(session, arguments)
    if len(session.states) >= _MOST_SAVED:
        raise PacketError(f"{_MOST_SAVED} states of registers are saved already", INVALID)
    key = max(session.states, default=0) + 1
    session.states[key] = dict(session.target.image(thread).values)
    return b"%d" % key


@packet("QRestoreRegisterState")
def restore_all(session: Session, arguments: bytes) -> bytes:
    """Bring them back."""
    text, thread = split_thread(session, arguments)
    digits = text.removeprefix(b":")
    values = session.states.pop(int(digits), None) if digits.isdigit() and len(digits) < 9 else None
    if values is None:
        raise PacketError("there is no such state of registers", INVALID)
    now = session.target.image(thread).values
    moving = session.target.layout.moving
    changed = {name: v for name, v in values.items() if now.get(name) != v and name not in moving}
    session.target.write_registers(thread, changed)
    session.show_images()
    return b"OK"
