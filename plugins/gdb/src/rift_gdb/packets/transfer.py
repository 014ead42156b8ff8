"""qXfer: documents that the client reads piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from rift_gdb.connection import PACKET_LIMIT
from rift_gdb.description import target_description
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.packets.arguments import numbers
from rift_gdb.packets.registry import packet
from rift_gdb.packets.threads import describe

if TYPE_CHECKING:
    from rift_gdb.session import Session

_MOST = PACKET_LIMIT // 2 - 8  # every byte may have to be escaped


def _features(session: Session, annex: str) -> bytes:
    if annex != "target.xml":
        raise PacketError(f"there is no description {annex!r}", 0)
    return target_description(session.target.engine.isa, session.target.layout)


def _threads(session: Session, annex: str) -> bytes:
    lines = ['<?xml version="1.0"?>', "<threads>"]
    for thread in session.target.threads:
        name = quoteattr(thread.context.name)
        lines.append(
            f'<thread id="{thread.number:x}" core="{thread.context.index}" name={name}>'
            f"{describe(session, thread)}</thread>"
        )
    lines.append("</threads>")
    return "\n".join(lines).encode()


def _memory_map(session: Session, annex: str) -> bytes:
    """All of the address space is RAM: GDB would break in ROM by debug registers only, and takes what is in no map for
    memory that is not there."""
    return (
        b'<?xml version="1.0"?>\n<memory-map>\n<memory type="ram" start="0x0" length="0x8000000000000000"/>\n'
        b'<memory type="ram" start="0x8000000000000000" length="0x8000000000000000"/>\n</memory-map>\n'
    )


def _exec_file(session: Session, annex: str) -> bytes:
    path = session.server.payloads.own
    return str(path).encode() if path is not None else b""


def _libraries(session: Session, annex: str) -> bytes:
    payloads = session.server.payloads
    session.known_payloads = payloads.added
    return payloads.document()


_DOCUMENTS = {
    "features": _features,
    "threads": _threads,
    "memory-map": _memory_map,
    "exec-file": _exec_file,
    "libraries": _libraries,
}


@packet("qXfer")
def read_document(session: Session, arguments: bytes) -> bytes:
    """A piece of a document: ``m`` before it if there is more, ``l`` before the last."""
    parts = arguments.removeprefix(b":").split(b":")
    if len(parts) != 4 or parts[1] != b"read":
        return b""
    make = _DOCUMENTS.get(parts[0].decode("ascii", "replace"))
    if make is None:
        return b""
    offset, size = numbers(parts[3], 2)
    document = make(session, parts[2].decode("ascii", "replace"))
    if offset > len(document):
        raise PacketError(f"the document has {len(document)} bytes", INVALID)
    piece = document[offset : offset + min(size, _MOST)]
    return (b"l" if offset + len(piece) >= len(document) else b"m") + piece


@packet("qOffsets")
def offsets(session: Session, arguments: bytes) -> bytes:
    """How far the payload stands above the addresses in its file."""
    slide = session.target.engine.plan.binary.slide
    return b"TextSeg=%x" % slide if slide else b""


@packet("Qqemu", prefix=True)
def qemu_memory_mode(session: Session, arguments: bytes) -> bytes:
    """QEMU's switch to guest-physical addresses: ``maintenance packet Qqemu.PhyMemMode:1``."""
    if arguments not in (b".PhyMemMode:0", b".PhyMemMode:1"):
        return b""
    session.physical = arguments.endswith(b"1")
    session.connection.forget_pages()
    return b"OK"


@packet("qqemu", prefix=True)
def qemu_memory_mode_now(session: Session, arguments: bytes) -> bytes:
    """Which of the two it is."""
    return (b"1" if session.physical else b"0") if arguments == b".PhyMemMode" else b""
