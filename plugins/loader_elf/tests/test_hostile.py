"""Files made to cost time or memory: well-formed, with the largest counts that are let through."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import elf_writer as w
import pytest

from rift_core.errors import BinaryError
from rift_loader_elf import ElfConfig, rift_load_binary

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

LIMIT = 10.0
"""Seconds; each of these takes less than one on an idle machine."""


def timed(path: Path, **config: object) -> Binary | str:
    start = time.monotonic()
    try:
        binary = rift_load_binary(path, ElfConfig.model_validate(config))
    except BinaryError as error:
        binary, message = None, str(error)
        assert str(path) in message
    assert time.monotonic() - start < LIMIT
    return message if binary is None else binary


def write(path: Path, elf: w.Elf) -> Path:
    path.write_bytes(elf.build())
    return path


def test_many_segments(tmp_path: Path) -> None:
    segments = [w.Seg(0x100000 + 0x10 * number, b"abcd", 0x10, offset=64) for number in range(1024)]
    binary = timed(write(tmp_path / "file", w.Elf(segments[::-1])))
    assert not isinstance(binary, str)
    assert len(binary.segments) == 1024
    segments.append(w.Seg(0x10, b"", 1))
    assert "more than 1024" in str(timed(write(tmp_path / "more", w.Elf(segments))))


@pytest.mark.parametrize("kind", [w.SHT_PROGBITS, w.SHT_RELA, w.SHT_RELR, w.SHT_REL, w.SHT_SYMTAB, w.SHT_STRTAB])
def test_many_sections(tmp_path: Path, kind: int) -> None:
    elf = w.good(symbols=[])
    data = bytearray(elf.build())
    header = struct.pack("<IIQQQQIIQQ", 0, kind, w.SHF_ALLOC, 0, 64, 0, 1, 0, 1, 24)
    start = len(data)
    data += header * 65535
    struct.pack_into("<Q", data, 40, start)
    struct.pack_into("<H", data, 60, 65535)
    path = tmp_path / "file"
    path.write_bytes(data)
    timed(path)


def test_many_dynamic_tags(tmp_path: Path) -> None:
    elf = w.static_pie(b"")
    entries = struct.pack("<QQ", w.DT["NEEDED"], 1) * 4095 + bytes(16)
    elf.segments[2] = w.Seg(0x10000, entries)
    elf.headers = [(w.PT_DYNAMIC, 0x10000, len(entries))]
    elf.segments[3].address = 0x40000
    assert "shared library" in str(timed(write(tmp_path / "file", elf)))


@pytest.mark.parametrize("entries", [8_388_608, 8_388_609])
@pytest.mark.parametrize("kind", [w.SHT_RELA, w.SHT_RELR])
def test_many_relocations(tmp_path: Path, kind: int, entries: int) -> None:
    """A hole full of R_X86_64_NONE, or of addresses 0 that do not ascend."""
    size = entries * (24 if kind == w.SHT_RELA else 8)
    elf = w.good(kind=w.ET_DYN, symbols=[])
    elf.sections = [w.Sec(kind, flags=w.SHF_ALLOC, offset=0x10000, size=size)]
    path = write(tmp_path / "file", elf)
    with path.open("r+b") as file:
        file.truncate(0x10000 + size)
    result = timed(path)
    if entries > 8_388_608:
        assert "more than 8388608 relocations" in str(result)
    elif kind == w.SHT_RELA:
        assert not isinstance(result, str)


def test_many_tables_over_the_same_relocations(tmp_path: Path) -> None:
    elf = w.good(kind=w.ET_DYN, symbols=[])
    size = 2_097_152 * 24
    elf.sections = [w.Sec(w.SHT_RELA, flags=w.SHF_ALLOC, offset=0x10000, size=size)] * 64
    path = write(tmp_path / "file", elf)
    with path.open("r+b") as file:
        file.truncate(0x10000 + size)
    assert "more than 8388608 relocations" in str(timed(path))


def test_relr_bitmaps_over_a_large_segment(tmp_path: Path) -> None:
    words = 0x80000
    table = struct.pack("<Q", 0x10000000) + b"\xff" * (words - 8)
    elf = w.good(kind=w.ET_DYN)
    elf.sections = [w.Sec(w.SHT_RELR, table, flags=w.SHF_ALLOC)]
    elf.segments.append(w.Seg(0x10000000, b"", 1 << 34, w.R | w.W))
    assert "relocations in .bss" in str(timed(write(tmp_path / "file", elf)))


def test_many_symbols_in_a_hole(tmp_path: Path) -> None:
    for count, fits in ((16_777_216, True), (16_777_217, False)):
        elf = w.good(symbols=[])
        symbols = w.Sec(w.SHT_SYMTAB, link=3, entry_size=24, offset=0x10000, size=24 * count)
        elf.sections = [symbols, w.Sec(w.SHT_STRTAB, b"\0name\0")]
        path = write(tmp_path / f"file{count}", elf)
        with path.open("r+b") as file:
            file.truncate(0x10000 + 24 * count)
        binary = timed(path)
        if not fits:
            assert "more than 16777216 symbols" in str(binary)
            continue
        assert not isinstance(binary, str)
        start = time.monotonic()
        assert binary.symbols.find("name") is None
        assert binary.symbols.nearest(0x200000) is None
        assert len(binary.symbols) == 0
        assert binary.symbols.similar("name") == []
        assert time.monotonic() - start < LIMIT
