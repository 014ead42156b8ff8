"""What a person is told when a guest faults: where, why, and what was around."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rift_core.errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.binary import SymbolTable
    from rift_core.isa import GuestFault, Isa
    from rift_core.memory import Walk

_BACKTRACE_LIMIT = 32


class GuestInspector(Protocol):
    """What a report reads of its machine."""

    isa: Isa
    symbols: SymbolTable

    def read_virtual(self, address: int, size: int) -> bytes:
        """Bytes through the page tables. :raises AddressError: not mapped."""

    def translate(self, address: int) -> Walk:
        """A page walk."""


@dataclass(frozen=True, slots=True)
class FaultReport:
    """An unhandled guest exception, ready to print (``str``)."""

    fault: GuestFault
    location: str
    instructions: tuple[str, ...]
    translation: str
    backtrace: tuple[str, ...]
    register_order: tuple[str, ...] = ()
    note: str = ""
    thread: str = ""
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def registers(self) -> Mapping[str, int]:
        """The registers at the faulting instruction."""
        return self.fault.registers

    def __str__(self) -> str:
        fault = self.fault
        mode = "user" if fault.user else "supervisor"
        lines = [f"unhandled guest exception {fault.name} at {self.location} in {mode} mode"]
        if self.thread:
            lines[0] += f" (thread {self.thread})"
        if fault.words:
            code = f" (error code {fault.code:#x})" if fault.code is not None else ""
            lines.append(f"  cause: {fault.words}{code}")
        if fault.address is not None:
            lines.append(f"  address: {fault.address:#x}: {self.translation}")
        if self.instructions:
            lines.append("  code:")
            lines += [f"    {text}" for text in self.instructions]
        if self.backtrace:
            lines.append("  back trace:")
            lines += [f"    #{depth} {text}" for depth, text in enumerate(self.backtrace)]
        lines.append("  registers:")
        lines += format_registers(fault.registers, self.register_order)
        if self.note:
            lines.append(f"  note: {self.note}")
        return "\n".join(lines)


def format_registers(registers: Mapping[str, int], order: tuple[str, ...], indent: str = "    ") -> list[str]:
    """Lines of four registers each, in hex; those not in ``order`` come last."""
    names = [n for n in order if n in registers] + [n for n in registers if n not in order]
    cells = [f"{name:>8} {registers[name]:016x}" for name in names]
    return [indent + " ".join(cells[at : at + 4]) for at in range(0, len(cells), 4)]


def printable(text: str) -> str:
    """Names from a file, which may hold anything: control characters are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def describe_address(symbols: SymbolTable, address: int) -> str:
    """``0x401136 <main+0x10>``, or the bare address."""
    symbol = symbols.nearest(address)
    if symbol is None:
        return f"{address:#x}"
    offset = address - symbol.address
    return f"{address:#x} <{printable(symbol.name)}{f'+{offset:#x}' if offset else ''}>"


def describe_walk(walk: Walk) -> str:
    """One sentence on what the page tables say."""
    if walk.physical is None:
        return f"not mapped ({walk.reason})" if walk.reason else "not mapped"
    return f"mapped to guest-physical {walk.physical:#x}, {walk.permissions}, page size {walk.page_size:#x}"


def fault_report(inspector: GuestInspector, fault: GuestFault, thread: str = "") -> FaultReport:
    """Collect all about ``fault``. Never raises for what the guest has done: what cannot be read is left out."""
    translation = ""
    if fault.address is not None:
        translation = describe_walk(inspector.translate(fault.address))
    return FaultReport(
        fault=fault,
        location=describe_address(inspector.symbols, fault.pc),
        instructions=tuple(disassemble_around(inspector, fault.pc)),
        translation=translation,
        backtrace=tuple(back_trace(inspector, fault.pc, fault.registers.get(inspector.isa.frame_pointer, 0))),
        register_order=(inspector.isa.program_counter, *inspector.isa.general_registers),
        thread=thread,
    )


def back_trace(inspector: GuestInspector, pc: int, frame: int) -> list[str]:
    """Callers by frame pointers: [frame] is the caller's frame, the word above it the return address."""
    lines = [describe_address(inspector.symbols, pc)]
    for _ in range(_BACKTRACE_LIMIT):
        if frame == 0 or frame % 8:
            break
        try:
            words = inspector.read_virtual(frame, 16)
        except AddressError:
            break
        caller, address = int.from_bytes(words[:8], "little"), int.from_bytes(words[8:], "little")
        if address == 0 or inspector.symbols.nearest(address) is None:
            break
        lines.append(describe_address(inspector.symbols, address))
        if caller <= frame:
            break
        frame = caller
    return lines if len(lines) > 1 else []


def disassemble_around(inspector: GuestInspector, pc: int, before: int = 2, after: int = 2) -> list[str]:
    """Instructions around ``pc``, the one there marked ``=>``; bytes only where capstone is not installed."""
    window = 16 * before
    start = pc
    code = b""
    for back in range(window, -1, -8):
        try:
            code = inspector.read_virtual(pc - back, back + 16 * (after + 1))
            start = pc - back
            break
        except AddressError:
            continue
    if not code:
        try:
            code = inspector.read_virtual(pc, 1)
        except AddressError:
            return []
    return disassemble(inspector.isa, code, start, pc, before, after, inspector.symbols)


def disassemble(
    isa: Isa, code: bytes, start: int, pc: int, before: int, after: int, symbols: SymbolTable | None = None
) -> list[str]:
    """Decode ``code``, which starts at ``start``, so that an instruction begins at ``pc``."""
    offset = pc - start
    if not isa.capstone[0]:
        return [f"=> {pc:#x}: {code[offset : offset + 16].hex(' ')}"]
    try:
        import capstone
    except ImportError:
        return [f"=> {pc:#x}: {code[offset : offset + 16].hex(' ')}   (install capstone to see instructions)"]
    decoder = capstone.Cs(getattr(capstone, isa.capstone[0]), getattr(capstone, isa.capstone[1]))
    chosen = []
    # Instructions vary in length: take the start from which the most instructions lead exactly to pc.
    for begin in range(max(0, offset - 15 * before), offset + 1):
        decoded = list(decoder.disasm(code[begin:offset], start + begin))
        reached = decoded[-1].address + decoded[-1].size if decoded else start + begin
        if reached == pc and len(decoded) >= before:
            chosen = decoded[-before:]
            break
        if reached == pc and len(decoded) > len(chosen):
            chosen = decoded
    chosen += list(decoder.disasm(code[offset:], pc, count=after + 1))
    lines = []
    for instruction in chosen:
        mark = "=>" if instruction.address == pc else "  "
        lines.append(f"{mark} {instruction.address:#x}: {instruction.mnemonic} {instruction.op_str}".rstrip())
    if not any(line.startswith("=>") for line in lines):
        lines.append(f"=> {pc:#x}: {code[offset : offset + 8].hex(' ')}   (not an instruction)")
    return lines
