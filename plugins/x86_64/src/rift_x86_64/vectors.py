"""From a payload's exception vectors to the IDT: three layouts, told apart by name, then by content.

- none: the built-in stubs of :mod:`rift_x86_64.builtin_code`;
- ``rift_vectors``: the guest runtime's 256 stubs of 16 bytes;
- ``interrupt_table``, or any other name whose bytes look like it: 256 entries of 16 bytes, each like a gate without
  its offset (two zero bytes, selector, IST, type and attributes, two zero bytes) followed by the handler's 64-bit
  address: what a linker can fill. A GDT stands at +0x1000: null, 64-bit code, TSS. The host makes a real IDT of
  it and keeps its own GDT, where selector 8 is 64-bit code too. Its handlers run on the interrupted stack.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core.errors import BinaryError
from rift_x86_64 import descriptors
from rift_x86_64.paging import is_canonical

if TYPE_CHECKING:
    from rift_core.isa import Vectors

RUNTIME_SYMBOL = "rift_vectors"
TABLE_SYMBOL = "interrupt_table"
_ENTRY = struct.Struct("<HHBBHQ")  # zero, selector, IST, type and attributes, zero, handler
_TABLE_SIZE = 256 * _ENTRY.size
_CODE_DESCRIPTOR_MASK = 0x0060_9800_0000_0000  # L, D, present, S, executable
_CODE_DESCRIPTOR = 0x0020_9800_0000_0000
_HIGHEST_IST = max(descriptors.INTERRUPT_STACKS.values())


def make_idt(vectors: Vectors | None, builtin: int) -> bytes:
    """The 4,096 bytes of the IDT; ``builtin`` is the address of the first built-in stub.

    :raises BinaryError: the symbol's layout is not understood, or an entry in it is wrong.
    """
    if vectors is None:
        return descriptors.idt(builtin)
    if vectors.symbol == RUNTIME_SYMBOL:
        if vectors.host.nbytes < descriptors.IDT_SIZE:
            raise BinaryError(
                f"{vectors.symbol} at {vectors.address:#x}: the segment ends after {vectors.host.nbytes} bytes, "
                f"256 vectors of 16 bytes take {descriptors.IDT_SIZE}"
            )
        return descriptors.idt(vectors.address)
    if vectors.symbol != TABLE_SYMBOL and not looks_like_table(vectors.host):
        raise BinaryError(
            f"{vectors.symbol} at {vectors.address:#x} is no vector table that is known: expected the layout of "
            f"{TABLE_SYMBOL!r} (256 entries of 16 bytes: gate without offset, handler address; a GDT at +0x1000)"
        )
    return _from_table(vectors, builtin)


def find_vector(idt: bytes, handler: int) -> int | None:
    """The first vector of an IDT whose gate leads to ``handler``."""
    for vector in range(len(idt) // 16):
        low, high = struct.unpack_from("<QQ", idt, 16 * vector)
        target = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        if low >> 47 & 1 and target == handler:
            return vector
    return None


def looks_like_table(host: memoryview) -> bool:
    """Whether the bytes have the layout of an interrupt table, at least one entry used, the GDT behind it."""
    if host.nbytes < _TABLE_SIZE + 24:
        return False
    used = 0
    for low, selector, _, attributes, middle, handler in _ENTRY.iter_unpack(bytes(host[:_TABLE_SIZE])):
        if low or middle or not is_canonical(handler):
            return False
        if attributes & 0x80:
            used += 1
            if attributes & 0x1F not in (0x0E, 0x0F) or selector != descriptors.KERNEL_CODE or handler == 0:
                return False
        elif selector or handler:
            return False
    null, code, _ = struct.unpack_from("<3Q", host, _TABLE_SIZE)
    return used > 0 and null == 0 and code & _CODE_DESCRIPTOR_MASK == _CODE_DESCRIPTOR


def _from_table(vectors: Vectors, builtin: int) -> bytes:
    where = f"{vectors.symbol} at {vectors.address:#x}"
    if vectors.host.nbytes < _TABLE_SIZE:
        raise BinaryError(f"{where}: the segment ends after {vectors.host.nbytes} bytes, the table takes {_TABLE_SIZE}")
    gates = []
    for vector, entry in enumerate(_ENTRY.iter_unpack(bytes(vectors.host[:_TABLE_SIZE]))):
        low, selector, stack, attributes, middle, handler = entry
        if not attributes & 0x80:  # not present: a fault there shall still be reported
            gates.append(descriptors.gate(vector, builtin + vector * 16))
            continue
        if low or middle or attributes & 0x1F not in (0x0E, 0x0F):
            raise BinaryError(f"{where}: entry {vector} is no interrupt or trap gate with an empty offset")
        if selector != descriptors.KERNEL_CODE:
            raise BinaryError(
                f"{where}: entry {vector} has selector {selector:#x}; 64-bit code is {descriptors.KERNEL_CODE:#x}"
            )
        if stack & 7 > _HIGHEST_IST or stack & ~7:
            raise BinaryError(f"{where}: entry {vector} wants interrupt stack {stack}; there are 1 to {_HIGHEST_IST}")
        if handler == 0 or not is_canonical(handler):
            raise BinaryError(f"{where}: entry {vector} has the handler {handler:#x}, which is no code address")
        gates.append(descriptors.gate(vector, handler, stack or None, attributes))
    return b"".join(gates)
