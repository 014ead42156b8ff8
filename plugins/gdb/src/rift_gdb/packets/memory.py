"""Memory: read and write, in hexadecimal or binary, search, checksum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import AddressError
from rift_gdb.connection import PACKET_LIMIT, crc, to_hex
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import content, number, numbers
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_MOST = PACKET_LIMIT // 2 - 1
"""Bytes of memory in one packet."""

_CHUNK = 0x1_0000
_MOST_SEARCHED = 1 << 32
_PAGE = 0x1000


def _read(session: Session, arguments: bytes) -> bytes:
    """As much as can be read. Whole pages are looked up, so that the native side answers for them the next time."""
    address, size = numbers(arguments, 2)
    size = min(size, _MOST)
    if size == 0:
        return b""
    skipped = address % _PAGE
    start = at = address - skipped
    parts: list[memoryview] = []
    try:
        for piece in session.view().pieces(start, -(-(skipped + size) // _PAGE) * _PAGE):
            if not session.awaiting and piece.physical % _PAGE == at % _PAGE == len(piece.host) % _PAGE == 0:
                session.connection.add_pages(at, piece.host)
            parts.append(piece.host)
            at += len(piece.host)
    except AddressError:
        if at <= address:
            raise
    return b"".join(parts)[skipped : skipped + size]


@packet("m")
def read(session: Session, arguments: bytes) -> bytes:
    """Bytes in hexadecimal; fewer than asked for where the rest is not mapped."""
    return to_hex(_read(session, arguments))


@packet("x")
def read_binary(session: Session, arguments: bytes) -> bytes:
    """Bytes as they are. GDB 16 and LLDB 20 want a ``b`` before them; LLDB before that asks for zero bytes first, wants
    to hear OK, and then the bytes alone."""
    address, size = numbers(arguments, 2)
    if size == 0:
        if address == 0:
            session.bare_binary = True
            session.connection.set_binary(2)
        return b"OK" if session.bare_binary else b"b"
    session.connection.set_binary(2 if session.bare_binary else 1)
    data = _read(session, arguments)
    return data if session.bare_binary else b"b" + data


def _write(session: Session, address: int, size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise PacketError(f"{size} bytes are announced, {len(data)} are there", INVALID)
    if data:
        session.view().write(address, data)
        session.connection.forget_pages()  # it may have been a page table
    return b"OK"


def _head(arguments: bytes) -> tuple[int, int, bytes]:
    head, found, data = arguments.partition(b":")
    if not found:
        raise PacketError("an address, a size, and data behind a colon are expected", INVALID)
    address, size = numbers(head, 2)
    return address, size, data


@packet("M")
def write(session: Session, arguments: bytes) -> bytes:
    """Bytes in hexadecimal."""
    address, size, digits = _head(arguments)
    return _write(session, address, size, content(digits))


@packet("X")
def write_binary(session: Session, arguments: bytes) -> bytes:
    """Bytes as they are; none at all is GDB's question whether this works."""
    address, size, data = _head(arguments)
    return _write(session, address, size, data)


@packet("qCRC")
def checksum(session: Session, arguments: bytes) -> bytes:
    """For ``compare-sections``."""
    address, size = numbers(arguments.removeprefix(b":"), 2)
    if size > _MOST_SEARCHED:
        raise PacketError("that is more than a checksum is made of", INVALID)
    value = 0xFFFF_FFFF
    view = session.view()
    for start in range(0, size, _CHUNK):
        session.check()
        value = crc(view.read(address + start, min(_CHUNK, size - start)), value)
    return b"C%x" % value


@packet("qSearch")
def search(session: Session, arguments: bytes) -> bytes:
    """For ``find``: where bytes stand first in a range."""
    kind, _, rest = arguments.removeprefix(b":").partition(b":")
    parts = rest.split(b";", 2)
    if kind != b"memory":
        return b""
    if len(parts) != 3:
        raise PacketError("an address, a size and a pattern are expected", INVALID)
    address, size, pattern = number(parts[0]), number(parts[1]), parts[2]
    if not pattern or size > _MOST_SEARCHED:
        raise PacketError("a pattern, and a range of at most 4 GiB, are expected", INVALID)
    view = session.view()
    tail = b""
    for start in range(0, size, _CHUNK):
        session.check()
        block = tail + view.read(address + start, min(_CHUNK, size - start))
        at = block.find(pattern)
        if at >= 0:
            return b"1,%x" % (address + start - len(tail) + at)
        tail = block[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
    return b"0"
