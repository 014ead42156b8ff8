"""x86-64 for the fake backend: prefixes, ModRM, operands, flags, stack. Intel SDM volume 2, chapter 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.testing.fake_x86_64_access import GENERAL_PROTECTION, MASK64, GuestException
from rift_core.testing.fake_x86_64_delivery import UNDEFINED, Delivery

if TYPE_CHECKING:
    from rift_core.testing.fake_memory import PhysicalMemory

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""General registers by the number that an instruction encodes."""

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_PARITY = tuple(PF if bin(value).count("1") % 2 == 0 else 0 for value in range(256))


class Decoder(Delivery):
    """One instruction while it is taken apart. ``next`` is the address behind what has been decoded."""

    def __init__(self, state: dict[str, Any], memory: PhysicalMemory) -> None:
        super().__init__(state, memory)
        self.next = self.rip
        self.rex = 0
        self.operand = 4  # bytes
        self.repeat = 0  # 0xF2, 0xF3 or 0
        self.locked = False
        self.segment = ""
        self.address32 = False
        self.reg = 0  # of ModRM, extended by REX.R
        self.rm: int | None = None  # a register; None: memory at `address`
        self.address = 0
        self._window = 0  # instruction bytes that were fetched ahead
        self._ahead = 0

    # -- instruction bytes -----------------------------------------------------------------------

    def byte(self) -> int:
        """The next instruction byte."""
        if not self._ahead:
            if self.next - self.rip >= 15:
                raise GuestException(GENERAL_PROTECTION, 0)  # too long
            self._ahead = min(16, 0x1000 - (self.next & 0xFFF))  # never reach into a page that is not needed
            self._window = self.fetch(self.next, self._ahead)
        value = self._window & 0xFF
        self._window >>= 8
        self._ahead -= 1
        self.next = self.next + 1 & MASK64
        return value

    def immediate(self, size: int) -> int:
        """An unsigned number from the instruction."""
        value = 0
        for shift in range(0, size * 8, 8):
            value |= self.byte() << shift
        return value

    def signed(self, size: int) -> int:
        """A sign-extended number from the instruction."""
        return extend(self.immediate(size), size)

    def operand_immediate(self) -> int:
        """An immediate of the operand's size: at most 4 bytes, sign-extended, cut to the operand."""
        return self.signed(min(self.operand, 4)) & mask(self.operand)

    def opcode(self) -> int:
        """Take prefixes and the first opcode byte."""
        while True:
            byte = self.byte()
            if byte not in _PREFIXES:
                break
            if byte == 0x66:
                self.operand = 2
            elif byte in (0xF2, 0xF3):
                self.repeat = byte
            elif byte == 0xF0:
                self.locked = True
            elif byte == 0x64:
                self.segment = "fs.base"
            elif byte == 0x65:
                self.segment = "gs.base"
            elif byte == 0x67:
                self.address32 = True
        if byte & 0xF0 == 0x40:
            self.rex = byte
            if byte & 8:
                self.operand = 8
            byte = self.byte()
            if byte & 0xF0 == 0x40 or byte in _PREFIXES:
                raise GuestException(UNDEFINED)  # a REX that is not the last prefix: no compiler makes it
        return byte

    def modrm(self, immediate_bytes: int = 0) -> None:
        """Take ModRM, SIB and displacement; ``immediate_bytes`` still follow (for RIP-relative addresses)."""
        byte = self.byte()
        mode, low = byte >> 6, byte & 7
        self.reg = byte >> 3 & 7 | (self.rex & 4) << 1
        if mode == 3:
            self.rm = low | (self.rex & 1) << 3
            return
        self.rm = None
        state = self.state
        address = 0
        if low == 4:
            sib = self.byte()
            base, index = sib & 7, sib >> 3 & 7 | (self.rex & 2) << 2
            if index != 4:
                address = state[GENERAL[index]] << (sib >> 6)
            if base == 5 and mode == 0:
                address += self.signed(4)
            else:
                address += state[GENERAL[base | (self.rex & 1) << 3]]
        elif low == 5 and mode == 0:
            displacement = self.signed(4)
            address = self.next + immediate_bytes + displacement
        else:
            address = state[GENERAL[low | (self.rex & 1) << 3]]
        if mode == 1:
            address += self.signed(1)
        elif mode == 2:
            address += self.signed(4)
        self.address = address & (0xFFFF_FFFF if self.address32 else MASK64)

    # -- operands --------------------------------------------------------------------------------

    def get(self, number: int, size: int) -> int:
        """A general register."""
        if size == 1 and not self.rex and 4 <= number < 8:
            return int(self.state[GENERAL[number - 4]] >> 8 & 0xFF)
        return int(self.state[GENERAL[number]]) & mask(size)

    def set(self, number: int, size: int, value: int) -> None:
        """Set a general register: 4 bytes clear the upper half, 1 and 2 bytes leave the rest."""
        value &= mask(size)
        if size >= 4:
            self.state[GENERAL[number]] = value
        elif size == 1 and not self.rex and 4 <= number < 8:
            name = GENERAL[number - 4]
            self.state[name] = self.state[name] & ~0xFF00 | value << 8
        else:
            name = GENERAL[number]
            self.state[name] = self.state[name] & ~mask(size) | value

    def linear(self) -> int:
        """The effective address with its segment's base."""
        if self.segment:
            return int(self.address + self.state[self.segment]) & MASK64
        return self.address

    def get_rm(self, size: int) -> int:
        """The register or memory operand."""
        if self.rm is not None:
            return self.get(self.rm, size)
        return self.read(self.linear(), size)

    def set_rm(self, size: int, value: int) -> None:
        """Set the register or memory operand. Before any register: a store may fault."""
        if self.rm is not None:
            self.set(self.rm, size, value)
        else:
            self.write(self.linear(), size, value & mask(size))

    # -- stack -----------------------------------------------------------------------------------

    def push(self, value: int, size: int = 8) -> None:
        """Store, then move RSP: a fault leaves it."""
        rsp = self.state["rsp"] - size & MASK64
        self.write(rsp, size, value & mask(size))
        self.state["rsp"] = rsp

    def pop(self, size: int = 8) -> int:
        """Load, and move RSP."""
        rsp = self.state["rsp"]
        value = self.read(rsp, size)
        self.state["rsp"] = rsp + size & MASK64
        return value

    # -- flags -----------------------------------------------------------------------------------

    def set_flags(self, flags: int, which: int = ARITHMETIC_FLAGS) -> None:
        """Replace some arithmetic flags."""
        self.state["rflags"] = self.state["rflags"] & ~which | flags & which

    def condition(self, code: int) -> bool:
        """One of the 16 conditions of Jcc, SETcc and CMOVcc."""
        flags = self.state["rflags"]
        kind = code >> 1
        if kind == 0:
            held = flags & OF
        elif kind == 1:
            held = flags & CF
        elif kind == 2:
            held = flags & ZF
        elif kind == 3:
            held = flags & (CF | ZF)
        elif kind == 4:
            held = flags & SF
        elif kind == 5:
            held = flags & PF
        elif kind == 6:
            held = bool(flags & SF) != bool(flags & OF)
        else:
            held = flags & ZF or bool(flags & SF) != bool(flags & OF)
        return bool(held) != bool(code & 1)


def mask(size: int) -> int:
    """All ones, ``size`` bytes."""
    return (1 << 8 * size) - 1


def extend(value: int, size: int) -> int:
    """A number of ``size`` bytes as a signed one."""
    return value - (1 << 8 * size) if value >> 8 * size - 1 else value


def result_flags(value: int, size: int) -> int:
    """ZF, SF and PF of a result that is cut to its size."""
    flags = _PARITY[value & 0xFF]
    if value == 0:
        flags |= ZF
    if value >> 8 * size - 1:
        flags |= SF
    return flags


def add(a: int, b: int, size: int, carry: int = 0) -> tuple[int, int]:
    """Sum and flags."""
    total = a + b + carry
    value = total & mask(size)
    flags = result_flags(value, size) | (CF if total >> 8 * size else 0) | (a ^ b ^ value) & AF
    if (a ^ value) & (b ^ value) & 1 << 8 * size - 1:
        flags |= OF
    return value, flags


def subtract(a: int, b: int, size: int, borrow: int = 0) -> tuple[int, int]:
    """Difference and flags."""
    value = a - b - borrow & mask(size)
    flags = result_flags(value, size) | (CF if a < b + borrow else 0) | (a ^ b ^ value) & AF
    if (a ^ b) & (a ^ value) & 1 << 8 * size - 1:
        flags |= OF
    return value, flags
