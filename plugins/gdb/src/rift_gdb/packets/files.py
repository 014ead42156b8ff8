"""vFile: the client reads the payloads' files from here, so that it finds symbols without being told where they are.

Only files that were loaded, and only reading.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from rift_gdb.connection import PACKET_LIMIT
from rift_gdb.errors import PacketError
from rift_gdb.packets.arguments import number, numbers, text_of
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_ENOENT, _EIO, _EBADF, _EACCES = 2, 5, 9, 13  # File-I/O protocol, "Errno Values"
_MOST = PACKET_LIMIT // 2 - 32
_MOST_OPEN = 16
_LAST = (1 << 63) - PACKET_LIMIT  # place in a file
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
        return _close(session, number(rest))
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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _failed(_ENOENT)
    key = max(session.files, default=2) + 1
    session.files[key] = descriptor
    return b"F%x" % key


def _stat(session: Session, key: int) -> bytes:
    descriptor = session.files.get(key)
    if descriptor is None:
        return _failed(_EBADF)
    size = os.fstat(descriptor).st_size
    record = _STAT.pack(0, 0, _REGULAR_FILE, 1, 0, 0, 0, size, 4096, -(-size // 512), 0, 0, 0)
    return b"F%x;" % len(record) + record


def _read(session: Session, arguments: bytes) -> bytes:
    key, count, offset = numbers(arguments, 3)
    descriptor = session.files.get(key)
    if descriptor is None:
        return _failed(_EBADF)
    try:
        piece = os.pread(descriptor, min(count, _MOST), min(offset, _LAST))
    except OSError:
        return _failed(_EIO)
    return b"F%x;" % len(piece) + piece


def _close(session: Session, key: int) -> bytes:
    descriptor = session.files.pop(key, None)
    if descriptor is None:
        return _failed(_EBADF)
    os.close(descriptor)
    return b"F0"
