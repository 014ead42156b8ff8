"""vFile: the client reads the payloads' files from here, so that it finds symbols without being told where they are.

Only files that were loaded, and only reading.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_gdb.connection import PACKET_LIMIT
from rift_gdb.errors import PacketError
from rift_gdb.packets.arguments import number, numbers, text_of
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_ENOENT, _EBADF, _EACCES = 2, 9, 13  # File-I/O protocol, "Errno Values"
_MOST = PACKET_LIMIT // 2 - 32
_MOST_OPEN = 16
_LARGEST_FILE = 1 << 30
_STAT = struct.Struct(">7I3Q3I")
"""struct stat of the File-I/O protocol, big-endian: dev, ino, mode, nlink, uid, gid, rdev; size, blksize, blocks;
times."""
_REGULAR_FILE = 0o100444


def _failed(code: int) -> bytes:
    return b"F-1,%x" % code


@packet("vFile")
def file_request(session: Session, arguments: bytes) -> bytes:
    """One of the file requests."""
    operation, _, rest = arguments.removeprefix(b":").partition(b":")
    if operation == b"setfs":
        return b"F0"
    if operation == b"open":
        return _open(session, rest)
    if operation == b"fstat":
        return _stat(session, number(rest))
    if operation == b"pread":
        return _read(session, rest)
    if operation == b"close":
        return b"F0" if session.files.pop(number(rest), None) is not None else _failed(_EBADF)
    return b""


def _open(session: Session, arguments: bytes) -> bytes:
    parts = arguments.split(b",")
    if len(parts) != 3:
        raise PacketError("a name, flags and a mode are expected")
    path = session.server.payloads.find(text_of(parts[0]))
    if path is None:
        return _failed(_ENOENT)
    if number(parts[1]) or len(session.files) >= _MOST_OPEN:
        return _failed(_EACCES)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return _failed(_EACCES)
        content = path.read_bytes()
    except OSError:
        return _failed(_ENOENT)
    key = max(session.files, default=2) + 1
    session.files[key] = content
    return b"F%x" % key


def _stat(session: Session, key: int) -> bytes:
    content = session.files.get(key)
    if content is None:
        return _failed(_EBADF)
    blocks = -(-len(content) // 512)
    record = _STAT.pack(0, 0, _REGULAR_FILE, 1, 0, 0, 0, len(content), 4096, blocks, 0, 0, 0)
    return b"F%x;" % len(record) + record


def _read(session: Session, arguments: bytes) -> bytes:
    key, count, offset = numbers(arguments, 3)
    content = session.files.get(key)
    if content is None:
        return _failed(_EBADF)
    piece = content[offset : offset + min(count, _MOST)]
    return b"F%x;" % len(piece) + piece
