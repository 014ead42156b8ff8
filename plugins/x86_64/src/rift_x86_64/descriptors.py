"""Descriptor tables of one thread: GDT, TSS, interrupt gates, as bytes.

SDM volume 3: "Segment Descriptors", "64-Bit TSS", "64-Bit IDT Gate Descriptors"; the order of the GDT's
entries is the one that SYSCALL and SYSRET demand (APM volume 2, "SYSCALL and SYSRET").
"""

from __future__ import annotations

import struct
from functools import lru_cache

KERNEL_CODE = 0x08
KERNEL_DATA = 0x10
USER_DATA = 0x18 | 3
USER_CODE = 0x20 | 3
TASK = 0x28
STAR = (KERNEL_CODE << 32) | ((0x10 | 3) << 48)
"""SYSCALL loads CS from bits 47-32 and SS 8 above; SYSRET to 64-bit code loads SS 8, CS 16 above bits 63-48."""

FLAT_LIMIT = 0xFFFF_FFFF
KERNEL_CODE_ATTRIBUTES = 0xA09B  # G, L, present, DPL 0, execute/read, accessed
KERNEL_DATA_ATTRIBUTES = 0xC093  # G, B, present, DPL 0, read/write, accessed
USER_CODE_ATTRIBUTES = 0xA0FB
USER_DATA_ATTRIBUTES = 0xC0F3
TASK_ATTRIBUTES = 0x008B  # present, 64-bit TSS, busy
UNUSABLE = 0

TSS_SIZE = 0x68
TSS_LIMIT = TSS_SIZE - 1
TSS_OFFSET = 0x80  # behind the GDT, in one page with it
IDT_SIZE = 256 * 16
IDT_LIMIT = IDT_SIZE - 1

DOUBLE_FAULT, NMI, MACHINE_CHECK = 8, 2, 18
INTERRUPT_STACKS = {DOUBLE_FAULT: 1, NMI: 2, MACHINE_CHECK: 3}
"""Vectors that must not trust the stack of the moment, and their IST numbers."""

INTERRUPT_GATE = 0x8E  # present, DPL 0
_USER_GATE = INTERRUPT_GATE | 0x60  # DPL 3
_FROM_USER = frozenset({3, 4})
"""INT3 and INTO are for user mode too; any other INT n from there is a #GP."""


def segment_descriptor(limit: int, base: int, attributes: int) -> int:
    """8 bytes of a segment descriptor; ``attributes`` as in the register table, ``limit`` in bytes."""
    if attributes & 0x8000:
        limit >>= 12
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (attributes & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (attributes >> 12 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


_FIXED_GDT = struct.pack(
    "<5Q",
    0,
    segment_descriptor(FLAT_LIMIT, 0, KERNEL_CODE_ATTRIBUTES),
    segment_descriptor(FLAT_LIMIT, 0, KERNEL_DATA_ATTRIBUTES),
    segment_descriptor(FLAT_LIMIT, 0, USER_DATA_ATTRIBUTES),
    segment_descriptor(FLAT_LIMIT, 0, USER_CODE_ATTRIBUTES),
)
GDT_SIZE = len(_FIXED_GDT) + 16
GDT_LIMIT = GDT_SIZE - 1


@lru_cache(maxsize=64)
def gdt(task: int) -> bytes:
    """The GDT of a thread whose TSS stands at ``task``."""
    return _FIXED_GDT + struct.pack("<QQ", segment_descriptor(TSS_LIMIT, task, TASK_ATTRIBUTES), task >> 32)


def tss(stack: int, interrupt_stacks: tuple[int, int, int]) -> bytes:
    """The TSS: ``stack`` is RSP0, ``interrupt_stacks`` are IST1 to IST3, all first addresses behind a stack.

    The I/O map base lies beyond the limit, so that IN and OUT from user mode are #GP. With base 0 the TSS's own
    bytes would be the permission map, and zeros permit.
    """
    return struct.pack("<I3QQ7QQHH", 0, stack, 0, 0, 0, *interrupt_stacks, 0, 0, 0, 0, 0, 0, TSS_SIZE)


def gate(vector: int, handler: int, interrupt_stack: int | None = None, attributes: int | None = None) -> bytes:
    """16 bytes of the IDT; stack and attributes default to what the vector needs."""
    if interrupt_stack is None:
        interrupt_stack = INTERRUPT_STACKS.get(vector, 0)
    if attributes is None:
        attributes = _USER_GATE if vector in _FROM_USER else INTERRUPT_GATE
    return struct.pack(
        "<HHBBHII",
        handler & 0xFFFF,
        KERNEL_CODE,
        interrupt_stack,
        attributes,
        handler >> 16 & 0xFFFF,
        handler >> 32,
        0,
    )


@lru_cache(maxsize=16)
def idt(first: int, step: int = 16) -> bytes:
    """An IDT of 256 entries whose handlers stand ``step`` bytes apart from ``first`` on.

    Kept, because machines that are alike have their handlers at the same address.
    """
    return b"".join(gate(vector, first + vector * step) for vector in range(256))
