"""``monitor``: commands for people, with text for an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.connection import PACKET_LIMIT, to_hex
from rift_gdb.monitor import run_command
from rift_gdb.packets.arguments import text_of
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_gdb.session import Session

_PIECE = PACKET_LIMIT // 2 - 16


@packet("qRcmd")
def command(session: Session, arguments: bytes) -> bytes:
    """Run a command; what is more than a packet holds goes before the answer. For LLDB all of it does: it shows an
    answer in the digits that it came in."""
    text = run_command(session, text_of(arguments.removeprefix(b",")))
    data = text.encode()
    if not data:
        return b"OK"
    while len(data) > _PIECE:
        end = _PIECE
        while data[end] & 0xC0 == 0x80:  # inside a character of UTF-8: a client may decode each piece by itself
            end -= 1
        session.connection.send(b"O" + to_hex(data[:end]))
        data = data[end:]
    if session.is_lldb:
        session.connection.send(b"O" + to_hex(data))
        return b"OK"
    return to_hex(data)
