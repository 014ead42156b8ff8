"""64-bit Mach-O files composed byte by byte, right ones and wrong ones. Field names are those of <mach-o/loader.h>."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

X86_64, ARM64, I386, POWERPC = 0x01000007, 0x0100000C, 7, 18
OBJECT, EXECUTE, CORE, PRELOAD, DYLIB, BUNDLE, DSYM = 1, 2, 4, 5, 6, 8, 10
PIE = 0x200000
R, W, X = 1, 2, 4
LC_SEGMENT_64, LC_SYMTAB, LC_UNIXTHREAD, LC_DYSYMTAB, LC_LOAD_DYLIB, LC_UUID = 0x19, 2, 5, 0xB, 0xC, 0x1B
LC_DYLD_INFO_ONLY, LC_MAIN, LC_DYLD_CHAINED_FIXUPS = 0x80000022, 0x80000028, 0x80000034
REGULAR, ZEROFILL, THREAD_ZEROFILL, THREAD_VARIABLES = 0, 1, 0x12, 0x13
N_EXT, N_PEXT, N_ABS, N_SECT, N_UNDF, N_STAB = 1, 0x10, 2, 0xE, 0, 0x24
WEAK_DEFINITION = 0x80
MASK = (1 << 64) - 1


@dataclass
class Sect:
    address: int
    size: int
    name: str = "__data"
    kind: int = REGULAR
    align: int = 0
    offset: int | None = None
    """None: where the segment's bytes for that address are."""


@dataclass
class Seg:
    """A segment; ``offset`` None: behind the one before, congruent to the address modulo 16 KiB. With ``header`` it
    starts at offset 0 and shows the header; ``data`` then stands 0x1000 above its address."""

    name: str
    address: int
    data: bytes = b""
    memory_size: int | None = None
    protection: int = R
    sections: list[Sect] = field(default_factory=list)
    header: bool = False
    offset: int | None = None
    flags: int = 0


@dataclass
class Sym:
    name: str | bytes
    value: int
    kind: int = N_SECT | N_EXT
    section: int = 1
    description: int = 0


def symbol_bytes(symbol: Sym, name: int) -> bytes:
    """``struct nlist_64``."""
    return struct.pack("<IBBHQ", name, symbol.kind, symbol.section, symbol.description, symbol.value & MASK)


def symbol_table(symbols: list[Sym]) -> tuple[bytes, bytes]:
    names = bytearray(b" \0")
    table = bytearray()
    for symbol in symbols:
        table += symbol_bytes(symbol, len(names))
        names += (symbol.name.encode() if isinstance(symbol.name, str) else symbol.name) + b"\0"
    return bytes(table), bytes(names)


def uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def command(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<II", kind, 8 + len(body)) + body


def thread(cpu: int, pc: int) -> bytes:
    """``LC_UNIXTHREAD``: all registers 0 but the program counter."""
    flavour, count, place = (4, 42, 16) if cpu == X86_64 else (6, 68, 32)
    registers = bytearray(4 * count)
    struct.pack_into("<Q", registers, 8 * place, pc)
    return command(LC_UNIXTHREAD, struct.pack("<II", flavour, count) + bytes(registers))


def library(name: str) -> bytes:
    return command(LC_LOAD_DYLIB, struct.pack("<IIII", 24, 0, 0, 0) + name.encode() + b"\0")


def rebase(*places: tuple[int, int]) -> bytes:
    """Opcodes for pointers at (segment, offset)."""
    out = b"\x11"
    for segment, offset in places:
        out += bytes([0x20 | segment]) + uleb(offset) + b"\x51"
    return out + b"\0"


def bind(name: str, segment: int, offset: int, *, library: int = 1, weak: bool = False) -> bytes:
    return (
        bytes([0x10 | library, 0x40 | weak]) + name.encode() + b"\0\x51" + bytes([0x70 | segment]) + uleb(offset)
        + b"\x90\0"
    )  # fmt: skip


def pointer(target: int, distance: int = 0, high: int = 0) -> int:
    """A rebase of DYLD_CHAINED_PTR_64 or _64_OFFSET; ``distance`` to the next one in bytes."""
    return target | high << 36 | distance // 4 << 51


def bound(ordinal: int, distance: int = 0, addend: int = 0) -> int:
    return ordinal | addend << 24 | distance // 4 << 51 | 1 << 63


@dataclass
class Import:
    name: str
    library: int = 1
    weak: bool = False
    addend: int = 0


def chains(
    starts: dict[int, tuple[int, list[int]]],
    imports: list[Import] | None = None,
    *,
    segments: int = 0,
    page_size: int = 0x1000,
    pointer_format: int = 2,
    imports_format: int = 1,
) -> bytes:
    """The data of LC_DYLD_CHAINED_FIXUPS.

    :param starts: by segment: its offset from the header's address, and where each page's list starts.
    """
    imports = imports or []
    count = max([segments, *(number + 1 for number in starts)])
    places = [0] * count
    body = bytearray(4 + 4 * count + -(4 + 4 * count) % 8)
    for number, (offset, pages) in starts.items():
        places[number] = len(body)
        size = 22 + 2 * len(pages)
        body += struct.pack("<IHHQIH", size, page_size, pointer_format, offset & MASK, 0, len(pages))
        body += struct.pack(f"<{len(pages)}H", *pages)
        body += bytes(-len(body) % 8)
    struct.pack_into(f"<I{count}I", body, 0, count, *places)
    names = bytearray(1)
    table = bytearray()
    for entry in imports:
        at = len(names)
        names += entry.name.encode() + b"\0"
        if imports_format == 3:
            table += struct.pack("<HHIQ", entry.library & 0xFFFF, entry.weak, at, entry.addend & MASK)
        else:
            table += struct.pack("<I", entry.library & 0xFF | entry.weak << 8 | at << 9)
            if imports_format == 2:
                table += struct.pack("<i", entry.addend)
    starts_at = 32
    imports_at = starts_at + len(body)
    symbols_at = imports_at + len(table)
    header = struct.pack("<7I", 0, starts_at, imports_at, symbols_at, len(imports), imports_format, 0)
    return header + bytes(4) + bytes(body) + bytes(table) + bytes(names)


@dataclass
class Macho:
    segments: list[Seg] = field(default_factory=list)
    symbols: list[Sym] = field(default_factory=list)
    kind: int = EXECUTE
    cpu: int = X86_64
    subtype: int = 3
    flags: int = 0x85
    main: int | None = None
    """An address: LC_MAIN."""
    thread: int | None = None
    """An address: LC_UNIXTHREAD."""
    rebase: bytes = b""
    bind: bytes = b""
    lazy_bind: bytes = b""
    weak_bind: bytes = b""
    chains: bytes = b""
    libraries: list[str] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)
    relocations: tuple[int, int] | None = None
    """Numbers of external and local relocations in LC_DYSYMTAB."""
    linkedit: bool = True
    magic: int = 0xFEEDFACF

    def _places(self, room: int) -> list[int]:
        """The file offset of each segment."""
        places = []
        end = room
        for seg in self.segments:
            if seg.offset is not None:
                places.append(seg.offset)
                continue
            if seg.header:
                places.append(0)
                end = max(end, 0x1000 + len(seg.data))
                continue
            end += (seg.address - end) % 0x4000 if seg.data else 0
            places.append(end if seg.data else 0)
            end += len(seg.data)
        return places

    def _segment(self, seg: Seg, offset: int) -> bytes:
        size = len(seg.data) + (0x1000 if seg.header else 0)
        memory = size if seg.memory_size is None else seg.memory_size
        out = struct.pack("<16sQQQQIIII", seg.name.encode(), seg.address, memory, offset, size, 7, seg.protection,
                          len(seg.sections), seg.flags)  # fmt: skip
        for sect in seg.sections:
            place = offset + sect.address - seg.address if sect.offset is None else sect.offset
            if sect.kind in (ZEROFILL, THREAD_ZEROFILL):
                place = 0
            out += struct.pack("<16s16sQQIIIIIIII", sect.name.encode(), seg.name.encode(), sect.address, sect.size,
                               place & 0xFFFFFFFF, sect.align, 0, 0, sect.kind, 0, 0, 0)  # fmt: skip
        return command(LC_SEGMENT_64, out)

    def _commands(self, places: list[int], tail: dict[str, tuple[int, int]], end: int, tail_size: int) -> bytes:
        out = [self._segment(seg, place) for seg, place in zip(self.segments, places, strict=True)]
        if self.linkedit:
            top = max((s.address + max(s.memory_size or 0, len(s.data) + 0x1000) for s in self.segments), default=0)
            last = Seg("__LINKEDIT", -(-top // 0x4000) * 0x4000, bytes(tail_size), offset=end)
            out.append(self._segment(last, end))
        if self.symbols:
            out.append(command(LC_SYMTAB, struct.pack("<IIII", tail["symbols"][0], len(self.symbols), *tail["names"])))
        if self.relocations is not None:
            external, local = self.relocations
            values = [0] * 18
            values[14:18] = end, external, end, local
            out.append(command(LC_DYSYMTAB, struct.pack("<18I", *values)))
        if self.rebase or self.bind or self.lazy_bind or self.weak_bind:
            ranges = [tail[name] for name in ("rebase", "bind", "weak_bind", "lazy_bind")]
            out.append(
                command(LC_DYLD_INFO_ONLY, struct.pack("<10I", *(number for pair in ranges for number in pair), 0, 0))
            )
        if self.chains:
            out.append(command(LC_DYLD_CHAINED_FIXUPS, struct.pack("<II", *tail["chains"])))
        if self.main is not None:
            at = next(
                place + self.main - seg.address
                for seg, place in zip(self.segments, places, strict=True)
                if seg.address <= self.main < seg.address + max(seg.memory_size or 0, len(seg.data) + 0x1000)
            )
            out.append(command(LC_MAIN, struct.pack("<QQ", at & MASK, 0)))
        if self.thread is not None:
            out.append(thread(self.cpu, self.thread))
        out += [library(name) for name in self.libraries]
        return b"".join([*out, *self.commands])

    def build(self) -> bytes:
        table, names = symbol_table(self.symbols)
        parts = {
            "rebase": self.rebase, "bind": self.bind, "weak_bind": self.weak_bind, "lazy_bind": self.lazy_bind,
            "chains": self.chains, "symbols": table if self.symbols else b"", "names": names if self.symbols else b"",
        }  # fmt: skip
        offsets: dict[str, tuple[int, int]] = dict.fromkeys(parts, (0, 0))
        places = [0] * len(self.segments)
        size = 32 + len(self._commands(places, offsets, 0, 0))  # sizes do not depend on the places
        places = self._places(size)
        body = bytearray(size)
        for seg, place in zip(self.segments, places, strict=True):
            start = place + (0x1000 if seg.header else 0)
            if not seg.data or seg.offset is not None:
                if seg.header:
                    body += bytes(max(0, 0x1000 - len(body)))
                continue
            body += bytes(max(0, start + len(seg.data) - len(body)))
            body[start : start + len(seg.data)] = seg.data
        body += bytes(-len(body) % 0x4000 if self.linkedit else -len(body) % 8)
        end = len(body)
        for name, data in parts.items():
            if data:
                body += bytes(-len(body) % 8)
                offsets[name] = (len(body), len(data))
                body += data
        commands = self._commands(places, offsets, end, len(body) - end)
        count = 0
        at = 0
        while at < len(commands):
            at += struct.unpack_from("<I", commands, at + 4)[0]
            count += 1
        header = struct.pack("<IIIIIIII", self.magic, self.cpu, self.subtype, self.kind, count, len(commands),
                             self.flags, 0)  # fmt: skip
        body[: 32 + len(commands)] = header + commands
        return bytes(body)


def universal(images: list[tuple[int, int, bytes]], *, wide: bool = False, align: int = 14) -> bytes:
    """A universal file of (cputype, cpusubtype, image)."""
    entry = 32 if wide else 20
    out = bytearray(struct.pack(">II", 0xCAFEBABF if wide else 0xCAFEBABE, len(images)))
    out += bytes(entry * len(images))
    for number, (cpu, subtype, data) in enumerate(images):
        out += bytes(-len(out) % (1 << align))
        layout = ">IIQQII" if wide else ">IIIII"
        values = (cpu, subtype, len(out), len(data), align, 0)[: 6 if wide else 5]
        struct.pack_into(layout, out, 8 + entry * number, *values)
        out += data
    return bytes(out)


TEXT, RODATA, DATA = 0x200000, 0x400000, 0x600000


def good(**changes: object) -> Macho:
    """A hole and three segments of usual shape with symbols, at fixed addresses; ``changes`` replace fields."""
    macho = Macho(
        segments=[
            Seg("__PAGEZERO", 0, memory_size=0x100000, protection=0),
            Seg("__TEXT", TEXT, bytes(range(64)) * 4, protection=R | X, sections=[Sect(TEXT, 256, "__text")]),
            Seg("__CONST", RODATA, b"read only data\0\0", protection=R, sections=[Sect(RODATA, 16, "__const")]),
            Seg(
                "__DATA",
                DATA,
                b"\x11" * 40,
                memory_size=0x3000,
                protection=R | W,
                sections=[Sect(DATA, 40), Sect(DATA + 0x1000, 0x1000, "__bss", ZEROFILL)],
            ),
        ],
        symbols=[
            Sym("crt.c", 0, N_STAB, 0),
            Sym("_helper", TEXT, N_SECT),
            Sym("__start", TEXT + 16),
            Sym("_test", TEXT + 64),
            Sym("bare", TEXT + 128),
            Sym("_counter", DATA, section=3),
            Sym("_buffer", DATA + 0x1000, section=4),
            Sym("_size", 0x1234, N_ABS | N_EXT, 0),
        ],
        thread=TEXT + 16,
    )
    for name, value in changes.items():
        setattr(macho, name, value)
    return macho


def movable(base: int = 0, *, data: bytes = bytes(64), cpu: int = X86_64, kind: int = BUNDLE,
            **changes: object) -> Macho:  # fmt: skip
    """Linked at ``base``: header and text (at 0x1000), data at 0x8000."""
    macho = Macho(
        segments=[
            Seg("__TEXT", base, bytes(64), 0x4000, R | X, [Sect(base + 0x1000, 64, "__text")], header=True),
            Seg("__DATA", base + 0x8000, data, 0x4000, R | W, [Sect(base + 0x8000, len(data))]),
        ],
        symbols=[Sym("_start", base + 0x1000), Sym("_data", base + 0x8000, section=2)],
        kind=kind,
        cpu=cpu,
        subtype=3 if cpu == X86_64 else 0,
        flags=0x85 | (PIE if kind == EXECUTE else 0),
    )
    for name, value in changes.items():
        setattr(macho, name, value)
    return macho
