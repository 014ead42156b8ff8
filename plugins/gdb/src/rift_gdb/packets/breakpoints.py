"""Breakpoints and watchpoints: set and removed one by one; the client keeps the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.breakpoints import Watch
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import number
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_SOFTWARE, _HARDWARE = 0, 1
_WATCHES = {2: "write", 3: "read", 4: "access"}


def _point(arguments: bytes) -> tuple[int, int, int]:
    """Kind, address, and size: further parts are conditions, which only clients that were told so send."""
    parts = arguments.partition(b";")[0].split(b",")
    if len(parts) != 3:
        raise PacketError("a kind, an address and a size are expected", INVALID)
    kind, address, size = (number(part) for part in parts)
    return kind, address, size


@packet("Z")
def insert(session: Session, arguments: bytes) -> bytes:
    """Set one."""
    kind, address, size = _point(arguments)
    points = session.target.breakpoints
    if kind in (_SOFTWARE, _HARDWARE):
        points.add(address, session.view(), hardware=kind == _HARDWARE)
    elif kind in _WATCHES:
        points.watch(Watch(address, size, _WATCHES[kind]), session.view())
    else:
        return b""
    return b"OK"


@packet("z")
def remove(session: Session, arguments: bytes) -> bytes:
    """Remove one; twice is harmless."""
    kind, address, size = _point(arguments)
    points = session.target.breakpoints
    if kind in (_SOFTWARE, _HARDWARE):
        points.remove(address, hardware=kind == _HARDWARE)
    elif kind in _WATCHES:
        points.unwatch(Watch(address, size, _WATCHES[kind]))
    else:
        return b""
    return b"OK"
