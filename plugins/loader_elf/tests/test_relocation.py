"""Relocations that are served, and those that are refused by name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import elf_writer as w
import pytest

from rift_core.errors import BinaryError
from rift_core.testing.loader import image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rift_core.binary import Binary

    Open = Callable[..., Binary]

BASE = 0x400000


def word(binary: Binary, address: int) -> int:
    return int.from_bytes(image_bytes(binary, address, 8), "little")


def with_rela(table: bytes, symbols: list[w.Sym] | None = None, changes: dict[str, int] | None = None) -> w.Elf:
    """A static-PIE whose PT_DYNAMIC names that table and those dynamic symbols."""
    entries, names = w.symbol_table(symbols or [])
    names = names.ljust(-(-len(names) // 8) * 8, b"\0")
    at = 0x2000 + len(entries) + len(names)
    tags = {
        "SYMTAB": 0x2000,
        "STRTAB": 0x2000 + len(entries),
        "STRSZ": len(names),
        "RELA": at,
        "RELASZ": len(table),
        "RELAENT": 24,
    }
    return w.static_pie(entries + names + table, memory_size=0x2000, tags=tags | (changes or {}))


def test_chosen_base(opened: Open) -> None:
    binary = opened(with_rela(w.rela(0x4000, 8, 0x1000)), base=0x10000000)
    assert word(binary, 0x10004000) == 0x10001000
    assert binary.slide == 0x10000000


def test_aarch64_relative(opened: Open) -> None:
    elf = with_rela(w.rela(0x4000, 1027, 0x1000) + w.rela(0x4008, 1027, -8))
    elf.machine = w.EM_AARCH64
    binary = opened(elf)
    assert binary.isa == "aarch64"
    assert (word(binary, BASE + 0x4000), word(binary, BASE + 0x4008)) == (BASE + 0x1000, BASE - 8)


def test_negative_addend_wraps(opened: Open) -> None:
    binary = opened(with_rela(w.rela(0x4000, 8, -0x400001)))
    assert word(binary, BASE + 0x4000) == (1 << 64) - 1


def test_read_only_segment_is_relocated_too(opened: Open) -> None:
    binary = opened(with_rela(w.rela(0x1008, 8, 0x1000)))
    assert word(binary, BASE + 0x1008) == BASE + 0x1000
    assert binary.segments[0].data.readonly


@pytest.mark.parametrize("map_file", [True, False])
def test_the_file_is_not_touched(opened: Open, tmp_path: Path, map_file: bool) -> None:
    elf = with_rela(w.rela(0x4000, 8, 0x1000))
    binary = opened(elf, map_file=map_file)
    assert word(binary, BASE + 0x4000) == BASE + 0x1000
    assert (tmp_path / "file").read_bytes() == elf.build()


def test_unaligned_word_and_word_across_file_part_and_bss(opened: Open) -> None:
    binary = opened(with_rela(w.rela(0x4003, 8, 0x1000) + w.rela(0x403C, 8, 0x1122)))
    assert word(binary, BASE + 0x4003) == BASE + 0x1000
    assert word(binary, BASE + 0x403C) == BASE + 0x1122
    assert len(binary.segments[3].data) == 0x44


def test_bss_is_relocated_within_bounds(opened: Open) -> None:
    elf = with_rela(w.rela(0x5FF8, 8, 5))
    assert word(opened(elf), BASE + 0x5FF8) == BASE + 5
    elf = with_rela(w.rela(0x4000 + (20 << 20), 8, 5))
    elf.segments[3].memory_size = 64 << 20
    with pytest.raises(BinaryError, match=r"relocations in \.bss"):
        opened(elf)


AARCH64_KINDS = {1: 257, 6: 1025, 7: 1026, 0: 256}
"""R_AARCH64_ABS64, GLOB_DAT, JUMP_SLOT and the withdrawn NONE, by the number of x86-64's counterpart."""


@pytest.mark.parametrize("machine", [w.EM_X86_64, w.EM_AARCH64])
def test_symbols(opened: Open, machine: int) -> None:
    symbols = [
        w.Sym("inside", 0x1010),
        w.Sym("absolute", 0x77, section=w.ABS),
        w.Sym("weak", 0, bind=w.WEAK, section=w.UNDEF),
    ]
    table = b"".join(
        w.rela(0x4000 + 8 * number, kind if machine == w.EM_X86_64 else AARCH64_KINDS[kind], addend, symbol)
        for number, (kind, addend, symbol) in enumerate(
            [(1, 4, 1), (6, 4, 1), (7, 0, 1), (1, 1, 2), (1, 0, 3), (1, 9, 3), (1, 0x123, 0), (0, 0, 99)]
        )
    )
    elf = with_rela(table, symbols)
    elf.machine = machine
    binary = opened(elf)
    addend = 4 if machine == w.EM_AARCH64 else 0  # x86-64 ignores that of GLOB_DAT
    assert struct.unpack("<8Q", image_bytes(binary, BASE + 0x4000, 64)) == (
        BASE + 0x1014,
        BASE + 0x1010 + addend,
        BASE + 0x1010,
        0x78,
        0,
        9,
        0x123,
        0,
    )


@pytest.mark.parametrize(
    ("machine", "kind"), [(w.EM_X86_64, 6), (w.EM_X86_64, 7), (w.EM_AARCH64, 1025), (w.EM_AARCH64, 1026)]
)
def test_a_slot_without_a_symbol_is_refused(opened: Open, machine: int, kind: int) -> None:
    elf = with_rela(w.rela(0x4000, kind, 8, 0))
    elf.machine = machine
    with pytest.raises(BinaryError, match="names no symbol"):
        opened(elf)


def test_undefined_symbol_is_named(opened: Open) -> None:
    elf = with_rela(w.rela(0x4000, 1, 0, 1), [w.Sym(b"print\x1bf", 0, section=w.UNDEF)])
    with pytest.raises(BinaryError, match=r"offset 0x.*not defined in the file \(symbol 1, print\\x1bf\)"):
        opened(elf)


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (w.Sym("tls", 0, kind=w.TLS), "thread-local"),
        (w.Sym("ifunc", 0x1000, kind=w.IFUNC), "STT_GNU_IFUNC"),
        (w.Sym("common", 8, section=0xFFF2), "stands in no section"),
    ],
)
def test_symbols_without_an_address(opened: Open, symbol: w.Sym, message: str) -> None:
    with pytest.raises(BinaryError, match=message):
        opened(with_rela(w.rela(0x4000, 1, 0, 1), [symbol]))


@pytest.mark.parametrize(
    ("machine", "kind", "message"),
    [
        (w.EM_X86_64, 37, r"indirect functions.*\(R_X86_64_IRELATIVE\)"),
        (w.EM_X86_64, 5, r"shared library.*\(R_X86_64_COPY\)"),
        (w.EM_X86_64, 16, "R_X86_64_DTPMOD64"),
        (w.EM_X86_64, 4000, "0xfa0"),
        (w.EM_AARCH64, 1032, "indirect functions.*R_AARCH64_IRELATIVE"),
        (w.EM_AARCH64, 8, "not supported"),
        (w.EM_AARCH64, 1024, r"shared library.*\(R_AARCH64_COPY\)"),
        (w.EM_AARCH64, 1028, "R_AARCH64_TLS"),
        (w.EM_AARCH64, 1030, "R_AARCH64_TLS"),
        (w.EM_AARCH64, 1031, "R_AARCH64_TLS"),
    ],
)
def test_types_that_are_refused(opened: Open, machine: int, kind: int, message: str) -> None:
    elf = with_rela(w.rela(0x4000, kind))
    elf.machine = machine
    with pytest.raises(BinaryError, match=message):
        opened(elf)


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (w.rela(0x9000, 8), {}, "outside every segment"),
        (w.rela(0x5FF9, 8), {}, "outside every segment"),
        (w.rela(0xFFFFFFFFFFFFFFFC, 8), {}, "outside every segment"),
        (w.rela(0x4000, 1, 0, 5000), {}, "no symbol of that index"),
        (w.rela(0x4000, 8), {"RELAENT": 16}, "DT_RELAENT is 16"),
        (w.rela(0x4000, 8), {"RELASZ": 23}, "no multiple"),
        (w.rela(0x4000, 8), {"RELASZ": 0x900}, "DT_RELA: 0x900 bytes"),
        (w.rela(0x4000, 8), {"RELASZ": 1 << 63}, "DT_RELA"),
        (w.rela(0x4000, 8), {"RELA": 0x4038}, "DT_RELA"),
        (w.rela(0x4000, 8), {"JMPREL": 0x2000, "PLTRELSZ": 24, "PLTREL": 17}, "DT_PLTREL"),
        (w.rela(0x4000, 8), {"REL": 0x2000, "RELSZ": 16}, "REL relocations"),
        (w.rela(0x4000, 8), {"RELR": 0x2000}, "DT_RELR without DT_RELRSZ"),
    ],
)
def test_damaged_tables(opened: Open, table: bytes, changes: dict[str, int], message: str) -> None:
    with pytest.raises(BinaryError, match=message):
        opened(with_rela(table, changes=changes))


class TestRelr:
    def build(self, *words: int) -> w.Elf:
        table = struct.pack(f"<{len(words)}Q", *words)
        data = struct.pack("<64Q", *range(64)) + bytes(0x1000)
        return w.static_pie(table, data=data, RELR=0x2000, RELRSZ=len(table), RELRENT=8)

    def test_bitmaps(self, opened: Open) -> None:
        binary = opened(self.build(0x4000, 1 | 1 << 1 | 1 << 63, 0b11, 0x4400))
        values = struct.unpack("<64Q", image_bytes(binary, BASE + 0x4000, 512))
        changed = {index for index, value in enumerate(values) if value == BASE + index}
        assert changed == {0, 1, 63}
        assert word(binary, BASE + 0x4000 + 8 * 64) == BASE
        assert word(binary, BASE + 0x4400) == BASE

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((3,), "before any address"),
            ((0x4008, 0x4000), "do not ascend"),
            ((0x4008, 0x4008), "do not ascend"),
            ((0x8000,), "outside every segment"),
            (((1 << 64) - 2,), "do not ascend"),
            ((0x4000, *[(1 << 64) - 1] * 40), "outside every segment"),
        ],
    )
    def test_damaged(self, opened: Open, words: tuple[int, ...], message: str) -> None:
        with pytest.raises(BinaryError, match=message):
            opened(self.build(*words))


class TestWithoutDynamicSection:
    """A linker script that discards .dynamic leaves allocated relocation sections."""

    def build(self, table: bytes, *, kind: int = w.SHT_RELA, flags: int = w.SHF_ALLOC, link: int = 0) -> w.Elf:
        elf = w.good(kind=w.ET_DYN)
        elf.sections = [w.Sec(kind, table, flags=flags, link=link, entry_size=24)]
        return elf

    def test_linked_at_fixed_addresses(self, opened: Open) -> None:
        binary = opened(self.build(w.rela(0x600000, 8, 0x200040)))
        assert word(binary, 0x600000) == 0x200040

    def test_moved(self, opened: Open) -> None:
        binary = opened(self.build(w.rela(0x600000, 8, 0x200040)), base=0x80000000)
        assert word(binary, 0x80400000) == 0x80000040
        symbol = binary.symbols.find("test")
        assert symbol is not None
        assert symbol.address == 0x80000040

    def test_relr(self, opened: Open) -> None:
        table = struct.pack("<Q", 0x600000)
        binary = opened(self.build(table, kind=w.SHT_RELR), base=0x80000000)
        assert word(binary, 0x80400000) == (0x1111111111111111 + 0x80000000 - 0x200000)

    def test_sections_that_are_not_loaded_do_not_count(self, opened: Open) -> None:
        binary = opened(self.build(w.rela(0x600000, 99), flags=0))
        assert word(binary, 0x600000) == 0x1111111111111111

    def test_rel_is_refused(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="REL relocations"):
            opened(self.build(bytes(16), kind=w.SHT_REL))

    def test_symbols_of_a_discarded_table(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="-fvisibility=hidden"):
            opened(self.build(w.rela(0x600000, 1, 0, 4), link=3))

    def test_symbols_of_dynsym(self, opened: Open) -> None:
        entries, names = w.symbol_table([w.Sym("x", 0x200008)])
        elf = self.build(w.rela(0x600000, 1, 2, 1), link=3)
        elf.sections += [w.Sec(w.SHT_DYNSYM, entries, link=4, entry_size=24), w.Sec(w.SHT_STRTAB, names)]
        assert word(opened(elf), 0x600000) == 0x20000A

    def test_too_many_sections(self, opened: Open) -> None:
        elf = self.build(w.rela(0x600000, 8))
        elf.sections *= 65
        with pytest.raises(BinaryError, match="more than 64 sections"):
            opened(elf)


def test_relocated_segment_that_shares_its_bytes(opened: Open) -> None:
    elf = with_rela(w.rela(0x4000, 8, 0x1000))
    data = elf.build()
    (offset,) = struct.unpack_from("<Q", data, 64 + 3 * 56 + 8)
    elf.segments.append(w.Seg(0x10000, bytes(64), offset=offset))
    elf.segments[3].offset = None
    shifted = elf.build()
    (offset,) = struct.unpack_from("<Q", shifted, 64 + 3 * 56 + 8)
    elf.segments[4].offset = offset
    with pytest.raises(BinaryError, match="shares its bytes"):
        opened(elf)
