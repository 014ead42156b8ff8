"""Instructions as text, and which memory they write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import capstone
import capstone.x86

from rift_core.errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.isa import GuestReader, Isa

_LONGEST = 16
_MASK = (1 << 64) - 1


_FLAGS = {"CF": 1, "PF": 4, "AF": 0x10, "ZF": 0x40, "SF": 0x80, "OF": 0x800}
_SHIFTS = frozenset({"shl", "sal", "shr", "sar", "shld", "shrd", "rol", "ror", "rcl", "rcr"})


def _more_undefined(decoded: Any) -> int:
    """Of shifts: AF always, and OF unless by one, which capstone does not say (Intel SDM volume 2)."""
    if decoded.mnemonic in _SHIFTS:
        return 0x810 if not decoded.mnemonic.startswith(("ro", "rc")) else 0x800
    return 0x10 if decoded.mnemonic in ("and", "or", "xor", "test") else 0


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. ``writes`` are addresses and sizes, by the registers before it; flags are bits of RFLAGS."""

    address: int
    size: int
    text: str
    code: bytes
    writes: tuple[tuple[int, int], ...] = ()
    flags_written: int = 0
    flags_undefined: int = 0


class Decoder:
    """Decodes instructions of an ISA where the guest has them."""

    def __init__(self, isa: Isa, reader: GuestReader) -> None:
        self._isa = isa
        self._reader = reader
        self._engine: Any = None
        if isa.capstone[0]:
            self._engine = capstone.Cs(getattr(capstone, isa.capstone[0]), getattr(capstone, isa.capstone[1]))
            self._engine.detail = True

    def at(self, address: int, registers: Mapping[str, int]) -> Instruction:
        """The instruction there; one without text where there is none."""
        code = self._bytes(address)
        decoded = next(self._engine.disasm(code, address, 1), None) if self._engine is not None and code else None
        if decoded is None:
            return Instruction(address, 0, "(cannot be read)" if not code else code[:8].hex(" "), code[:8])
        text = f"{decoded.mnemonic} {decoded.op_str}".strip()
        writes = tuple(self._writes(decoded, registers))
        written, undefined = self._flags(decoded)
        return Instruction(address, decoded.size, text, bytes(decoded.bytes), writes, written, undefined)

    def _flags(self, decoded: Any) -> tuple[int, int]:
        """Status flags that it defines, and that it leaves undefined."""
        if self._isa.name != "x86_64":
            return 0, 0
        written = undefined = 0
        for name, bit in _FLAGS.items():
            for how in ("MODIFY", "RESET", "SET"):
                if decoded.eflags & getattr(capstone.x86, f"X86_EFLAGS_{how}_{name}", 0):
                    written |= bit
            if decoded.eflags & getattr(capstone.x86, f"X86_EFLAGS_UNDEFINED_{name}", 0):
                undefined |= bit
        if decoded.group(capstone.CS_GRP_INT):
            return 0, 0
        return written & ~undefined, undefined | _more_undefined(decoded)

    def _bytes(self, address: int) -> bytes:
        for size in (_LONGEST, 0x1000 - address % 0x1000):
            try:
                return self._reader.read_virtual(address, min(size, _LONGEST))
            except AddressError:
                continue
        return b""

    def _writes(self, decoded: Any, registers: Mapping[str, int]) -> list[tuple[int, int]]:
        """Memory operands that are written, and what a push or a call puts on the stack."""
        found = []
        for operand in decoded.operands:
            if operand.type == capstone.CS_OP_MEM and operand.access & capstone.CS_AC_WRITE:
                address = self._address(decoded, operand.mem, registers)
                found.append((address, getattr(operand, "size", 0) or 8))
        if self._isa.name == "x86_64" and decoded.mnemonic.split()[-1] in ("push", "call", "pushfq"):
            found.append((registers.get("rsp", 0) - 8 & _MASK, 8))
        return found

    def _address(self, decoded: Any, memory: Any, registers: Mapping[str, int]) -> int:
        value: int = memory.disp
        for number, scale in ((memory.base, 1), (memory.index, getattr(memory, "scale", 1))):
            if number:
                name = decoded.reg_name(number)
                value += scale * (decoded.address + decoded.size if name == "rip" else registers.get(name, 0))
        segment = getattr(memory, "segment", 0)
        if segment:
            value += registers.get(f"{decoded.reg_name(segment)}.base", 0)
        return value & _MASK
