"""ELF64 files composed byte by byte, right ones and wrong ones. Field names are the gABI's."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

EM_X86_64, EM_AARCH64 = 62, 183
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL, SHT_DYNSYM, SHT_RELR = 1, 2, 3, 4, 8, 9, 11, 19
SHF_ALLOC = 2
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION, FILE, TLS, IFUNC = 0, 1, 2, 3, 4, 6, 10
UNDEF, ABS = 0, 0xFFF1
R, W, X = 4, 2, 1
DT = {
    "NULL": 0, "NEEDED": 1, "PLTRELSZ": 2, "STRTAB": 5, "SYMTAB": 6, "RELA": 7, "RELASZ": 8, "RELAENT": 9,
    "STRSZ": 10, "SYMENT": 11, "REL": 17, "RELSZ": 18, "PLTREL": 20, "JMPREL": 23, "RELRSZ": 35, "RELR": 36,
    "RELRENT": 37,
}  # fmt: skip
MASK = (1 << 64) - 1


@dataclass
class Seg:
    """A PT_LOAD; ``offset`` None: behind the one before, congruent to the address modulo 4096."""

    address: int
    data: bytes = b""
    memory_size: int | None = None
    flags: int = R
    align: int = 0x1000
    offset: int | None = None


@dataclass
class Sym:
    name: str | bytes
    value: int
    size: int = 0
    kind: int = FUNC
    bind: int = GLOBAL
    section: int = 1


@dataclass
class Sec:
    """A section header; ``data`` is appended to the file unless ``offset`` is given."""

    kind: int
    data: bytes = b""
    flags: int = 0
    address: int = 0
    link: int = 0
    entry_size: int = 0
    offset: int | None = None
    size: int | None = None


def rela(offset: int, kind: int, addend: int = 0, symbol: int = 0) -> bytes:
    return struct.pack("<QQQ", offset, symbol << 32 | kind, addend & MASK)


def dynamic(**tags: int) -> bytes:
    return b"".join(struct.pack("<QQ", DT[name], value) for name, value in tags.items()) + bytes(16)


def symbol_bytes(symbol: Sym, name: int) -> bytes:
    info = symbol.bind << 4 | symbol.kind
    return struct.pack("<IBBHQQ", name, info, 0, symbol.section, symbol.value & MASK, symbol.size)


def symbol_table(symbols: list[Sym]) -> tuple[bytes, bytes]:
    """Symbols (the null symbol first) and their string table."""
    names = bytearray(1)
    table = bytearray(24)
    for symbol in symbols:
        table += symbol_bytes(symbol, len(names))
        names += (symbol.name.encode() if isinstance(symbol.name, str) else symbol.name) + b"\0"
    return bytes(table), bytes(names)


@dataclass
class Elf:
    segments: list[Seg] = field(default_factory=list)
    symbols: list[Sym] = field(default_factory=list)
    sections: list[Sec] = field(default_factory=list)
    headers: list[tuple[int, int, int]] = field(default_factory=list)
    """More program headers: (p_type, address inside a segment, size)."""
    kind: int = ET_EXEC
    machine: int = EM_X86_64
    entry: int = 0
    ident: bytes = b"\x7fELF\x02\x01\x01" + bytes(9)

    def build(self) -> bytes:
        count = len(self.segments) + len(self.headers)
        body = bytearray(64 + 56 * count)
        programs = bytearray()
        places: list[tuple[Seg, int]] = []
        for seg in self.segments:
            if seg.offset is None:
                body += bytes((seg.address - len(body)) % 0x1000)
                offset = len(body)
                body += seg.data
            else:
                offset = seg.offset
            places.append((seg, offset))
            memory = len(seg.data) if seg.memory_size is None else seg.memory_size
            programs += struct.pack(
                "<IIQQQQQQ", PT_LOAD, seg.flags, offset, seg.address, seg.address, len(seg.data), memory, seg.align
            )
        for kind, address, size in self.headers:
            seg, offset = next((s, o) for s, o in places if s.address <= address < s.address + max(1, len(s.data)))
            offset += address - seg.address
            programs += struct.pack("<IIQQQQQQ", kind, R, offset, address, address, size, size, 8)
        body[64 : 64 + len(programs)] = programs

        sections = [Sec(0), Sec(SHT_PROGBITS, flags=SHF_ALLOC), *self.sections]
        if self.symbols:
            table, names = symbol_table(self.symbols)
            sections.append(Sec(SHT_SYMTAB, table, link=len(sections) + 1, entry_size=24))
            sections.append(Sec(SHT_STRTAB, names))
        headers = bytearray()
        for section in sections:
            offset = len(body) if section.offset is None else section.offset
            size = len(section.data) if section.size is None else section.size
            body += section.data
            headers += struct.pack(
                "<IIQQQQIIQQ", 0, section.kind, section.flags, section.address, offset if section.kind else 0, size,
                section.link, 0, 1, section.entry_size,
            )  # fmt: skip
        body += bytes(-len(body) % 8)
        start = len(body)
        body += headers
        body[:64] = struct.pack(
            "<16sHHIQQQIHHHHHH", self.ident, self.kind, self.machine, 1, self.entry, 64, start, 0, 64, 56, count, 64,
            len(sections), 0,
        )  # fmt: skip
        return bytes(body)


def good(**changes: object) -> Elf:
    """Three segments of usual shape with symbols; ``changes`` replace fields of :class:`Elf`."""
    elf = Elf(
        segments=[
            Seg(0x200000, bytes(range(64)) * 4, flags=R | X),
            Seg(0x400000, b"read only data\0\0", flags=R),
            Seg(0x600000, b"\x11" * 40, memory_size=0x3000, flags=R | W),
        ],
        symbols=[
            Sym("crt.c", 0, kind=FILE, bind=LOCAL, section=ABS),
            Sym("helper", 0x200000, 16, bind=LOCAL),
            Sym("_start", 0x200010, 32),
            Sym("test", 0x200040, 64),
            Sym("counter", 0x600000, 8, OBJECT),
            Sym("buffer", 0x601000, 0x1000, OBJECT),
            Sym("_size", 0x1234, 0, NOTYPE, section=ABS),
        ],
        entry=0x200010,
    )
    for name, value in changes.items():
        setattr(elf, name, value)
    return elf


def static_pie(tables: bytes, *, text: bytes = bytes(64), data: bytes = bytes(64), memory_size: int | None = None,
               machine: int = EM_X86_64, tags: dict[str, int] | None = None, **more: int) -> Elf:  # fmt: skip
    """ET_DYN at 0: text at 0x1000, ``tables`` at 0x2000, PT_DYNAMIC at 0x3000, data at 0x4000."""
    entries = dynamic(**(tags or {}), **more)
    return Elf(
        segments=[
            Seg(0x1000 - 0x1000, bytes(0x1000) + text, flags=R | X),
            Seg(0x2000, tables, flags=R),
            Seg(0x3000, entries, flags=R | W),
            Seg(0x4000, data, memory_size=memory_size, flags=R | W),
        ],
        headers=[(PT_DYNAMIC, 0x3000, len(entries))],
        symbols=[Sym("_start", 0x1000, len(text)), Sym("data", 0x4000, len(data), OBJECT)],
        kind=ET_DYN,
        machine=machine,
        entry=0x1000,
    )
