"""Reading what stands in packets. All of it is the client's to get wrong."""

from __future__ import annotations

from rift_gdb.connection import from_hex
from rift_gdb.errors import INVALID, PacketError

_MOST_DIGITS = 16


def number(text: bytes) -> int:
    """A hexadecimal number of up to 64 bits.

    :raises PacketError: something else.
    """
    if not 0 < len(text) <= _MOST_DIGITS or not text.isalnum():
        raise PacketError(f"{show(text)} is no hexadecimal number", INVALID)
    try:
        return int(text, 16)
    except ValueError:
        raise PacketError(f"{show(text)} is no hexadecimal number", INVALID) from None


def numbers(text: bytes, count: int, separator: bytes = b",") -> list[int]:
    """So many numbers with separators between.

    :raises PacketError: something else.
    """
    parts = text.split(separator)
    if len(parts) != count:
        raise PacketError(f"{show(text)}: {count} numbers are expected", INVALID)
    return [number(part) for part in parts]


def content(digits: bytes) -> bytes:
    """Bytes of hexadecimal digits.

    :raises PacketError: something else.
    """
    try:
        return from_hex(digits)
    except ValueError as error:
        raise PacketError(str(error), INVALID) from None


def text_of(digits: bytes) -> str:
    """UTF-8 in hexadecimal digits; what is not valid is replaced."""
    return content(digits).decode("utf-8", "replace")


def show(data: bytes) -> str:
    """A part of a packet for a message: short and printable."""
    return repr(data[:32])[1:]
