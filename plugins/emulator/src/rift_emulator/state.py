"""The saved state of a vCPU: all of its registers in one block, with what it takes to refuse a wrong one.

Little-endian: 8 bytes of magic, the length of the ISA's name and the name, a count of registers, a CRC-32 of the
rest, and the registers in the order of the binding's table.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from rift_core.errors import HypervisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAGIC = b"RIFTEMU1"
_HEADER = struct.Struct("<8s16sII")


def pack(isa: str, sizes: Sequence[int], values: Sequence[int]) -> bytes:
    """Registers of ``sizes`` bytes each."""
    body = b"".join(value.to_bytes(size, "little") for value, size in zip(values, sizes, strict=True))
    return _HEADER.pack(_MAGIC, isa.encode(), len(sizes), zlib.crc32(body)) + body


def unpack(isa: str, sizes: Sequence[int], state: bytes) -> list[int]:
    """The values again.

    :raises HypervisorError: another version, another ISA, or damaged.
    """
    if len(state) != _HEADER.size + sum(sizes):
        raise HypervisorError("restore", 0, "the state is damaged, or was saved by another version or another ISA")
    magic, name, count, checksum = _HEADER.unpack_from(state)
    body = state[_HEADER.size :]
    known = (magic, name.rstrip(b"\0"), count) == (_MAGIC, isa.encode(), len(sizes))
    if not known or checksum != zlib.crc32(body):
        raise HypervisorError("restore", 0, "the state is damaged, or was saved by another version or another ISA")
    values, at = [], 0
    for size in sizes:
        values.append(int.from_bytes(body[at : at + size], "little"))
        at += size
    return values
