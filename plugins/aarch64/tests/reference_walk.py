"""Translation as the manual writes it, a second time and by itself: from TCR_EL1, TTBRn_EL1 and bytes of memory.

Arm ARM, "Translation process" and "Memory access control"; only what a guest of Rift can meet: stage 1 of
EL1 and EL0, 4 KiB and 16 KiB granules, no FEAT_LPA2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Translation:
    """What an access meets."""

    physical: int
    size: int  # of the page or block
    attribute: int  # MAIR_EL1's byte
    shareability: int
    el0_reads: bool
    el0_writes: bool
    el0_executes: bool
    el1_writes: bool
    el1_executes: bool
    accessed: bool
    clean: bool  # DBM and AP[2]: the CPU writes, and makes it dirty
    global_: bool
    contiguous: bool


def bits(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def translate(address: int, registers: dict[str, int], read: Callable[[int], int]) -> Translation | None:
    """The translation of ``address``, or None for a translation fault. ``read`` gives 8 bytes of physical memory."""
    tcr = registers["tcr_el1"]
    upper = bits(address, 55, 55) == 1
    size_offset = bits(tcr, 21, 16) if upper else bits(tcr, 5, 0)
    input_bits = 64 - size_offset
    above = address >> input_bits
    if above != ((1 << size_offset) - 1 if upper else 0):
        return None
    granule = {0b10: 12, 0b01: 14}[bits(tcr, 31, 30)] if upper else {0b00: 12, 0b10: 14}[bits(tcr, 15, 14)]
    assert not bits(tcr, 23, 23) if upper else not bits(tcr, 7, 7), "walks are disabled (EPD)"
    stride = granule - 3
    level = 4 - -(-(input_bits - granule) // stride)
    base = registers["ttbr1_el1" if upper else "ttbr0_el1"] & ((1 << 48) - 2)
    no_el0 = read_only = no_el0_execute = no_el1_execute = False
    high = input_bits - 1
    while True:
        low = granule + stride * (3 - level)
        entry = read(base | bits(address, high, low) << 3)
        if not entry & 1:
            return None
        leaf = level == 3 or not entry & 2
        if leaf and (level == 3) != bool(entry & 2):
            return None  # reserved
        if leaf:
            break
        no_el0 |= bool(bits(entry, 61, 61))
        read_only |= bool(bits(entry, 62, 62))
        no_el0_execute |= bool(bits(entry, 60, 60))
        no_el1_execute |= bool(bits(entry, 59, 59))
        base = entry & ((1 << 48) - (1 << granule))
        high = low - 1
        level += 1
    smallest_block = {12: 1, 14: 2}[granule]
    if level < smallest_block:
        return None
    output = entry & ((1 << 48) - (1 << low)) | bits(address, low - 1, 0)
    if output >> {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48}[bits(tcr, 34, 32)]:
        return None
    el0 = bool(bits(entry, 6, 6)) and not no_el0
    dirty_management = bool(bits(tcr, 40, 40) and bits(entry, 51, 51))
    writable = (not bits(entry, 7, 7) or dirty_management) and not read_only
    if not bits(entry, 10, 10) and not bits(tcr, 39, 39):
        return None  # access flag fault
    return Translation(
        physical=output,
        size=1 << low,
        attribute=bits(registers["mair_el1"], 8 * bits(entry, 4, 2) + 7, 8 * bits(entry, 4, 2)),
        shareability=bits(entry, 9, 8),
        el0_reads=el0,
        el0_writes=el0 and writable,
        el0_executes=el0 and not bits(entry, 54, 54) and not no_el0_execute,
        el1_writes=writable,
        el1_executes=not bits(entry, 53, 53) and not no_el1_execute and not (el0 and writable),
        accessed=bool(bits(entry, 10, 10)),
        clean=dirty_management and bool(bits(entry, 7, 7)),
        global_=not bits(entry, 11, 11),
        contiguous=bool(bits(entry, 52, 52)),
    )
