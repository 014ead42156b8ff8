"""Files that are mapped: what is copied, what is not, and what the process pays for it."""

from __future__ import annotations

import gc
import mmap
import struct
from typing import TYPE_CHECKING

import elf_writer as w

from rift_core.errors import BinaryError
from rift_core.host_memory import buffer_address
from rift_core.testing.leaks import TELLS_RESIDENT, resident
from rift_core.testing.tools import only_where
from rift_loader_elf import ElfConfig, rift_load_binary

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

GIB = 1 << 30


def load(path: Path, **config: object) -> Binary:
    binary = rift_load_binary(path, ElfConfig.model_validate(config))
    assert binary is not None
    return binary


def write_sparse(path: Path, size: int) -> None:
    """An executable with one segment of ``size`` bytes, nearly all of them holes, and a small writable one."""
    elf = w.Elf(
        [w.Seg(0x1000000, b"", size, offset=0x1000), w.Seg(0x100000000, b"data" * 1024, flags=w.R | w.W)],
        [w.Sym("big", 0x1000000, size, w.OBJECT)],
    )
    data = bytearray(elf.build())
    struct.pack_into("<Q", data, 64 + 8, 0x10000)
    struct.pack_into("<Q", data, 64 + 32, size)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(0x10000 + size)
        file.seek(0x10000 + size - 4)
        file.write(b"last")


@only_where(TELLS_RESIDENT, "resident size is read from /proc")
def test_a_gigabyte_costs_no_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "gigabyte"
    write_sparse(path, GIB)
    load(path)
    gc.collect()
    before = resident()
    binary = load(path)
    big, data = binary.segments
    assert resident() - before < 8 << 20
    assert big.data.nbytes == GIB
    assert bytes(big.data[-4:]) == b"last"
    assert big.mappable
    assert data.mappable
    assert big.data.readonly
    assert not data.data.readonly
    symbol = binary.symbols.find("big")
    assert symbol is not None
    assert symbol.size == GIB


def test_mapping_is_chosen_by_size(tmp_path: Path) -> None:
    elf = w.Elf([w.Seg(0x1000, bytes(0x2000), flags=w.R | w.W)])
    path = tmp_path / "file"
    path.write_bytes(elf.build())
    assert not load(path).segments[0].mappable
    assert load(path, map_file=True).segments[0].mappable
    elf.segments[0].data = bytes(1 << 20)
    path.write_bytes(elf.build())
    assert load(path).segments[0].mappable
    assert not load(path, map_file=False).segments[0].mappable


def test_mappable_means_congruent_and_a_whole_page(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    path = tmp_path / "file"
    data = b"x" * (3 * page)
    elf = w.Elf(
        [
            w.Seg(0x100000 + 0x10, data),
            w.Seg(0x200000 + 0x20, data, offset=0x10),
            w.Seg(0x300000, data[: page - 1]),
            w.Seg(0x400000 + 1, data[: 2 * page - 2]),
            w.Seg(0x500000 + 1, data[: 2 * page - 1]),
        ]
    )
    path.write_bytes(elf.build())
    binary = load(path, map_file=True)
    assert [s.mappable for s in binary.segments] == [True, False, False, False, True]
    for segment in binary.segments:
        if segment.mappable:
            assert buffer_address(segment.data) % page == segment.address % page


def test_relocated_pages_are_private(tmp_path: Path) -> None:
    table = b"".join(w.rela(0x4000 + 8 * n, 8, n) for n in range(512))
    elf = w.static_pie(table, data=bytes(0x1000), RELA=0x2000, RELASZ=len(table), RELAENT=24)
    path = tmp_path / "file"
    content = elf.build()
    path.write_bytes(content)
    # The table is longer than a page and runs into PT_DYNAMIC's address: place it further up.
    elf.segments[1].address = 0x10000
    entries = w.dynamic(RELA=0x10000, RELASZ=len(table), RELAENT=24)
    elf.segments[2].data = entries
    elf.headers = [(w.PT_DYNAMIC, 0x3000, len(entries))]
    content = elf.build()
    path.write_bytes(content)
    binary = load(path, map_file=True)
    data = next(s for s in binary.segments if s.address == 0x404000)
    assert data.mappable
    assert struct.unpack("<512Q", data.data) == tuple(0x400000 + n for n in range(512))
    assert path.read_bytes() == content


@only_where(TELLS_RESIDENT, "resident size is read from /proc")
def test_no_memory_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    symbols = [w.Sym(f"name{n}", 0x200000 + n % 256, 1) for n in range(2000)]
    good = w.good(symbols=symbols).build()
    bad = bytearray(good)
    bad[-64] ^= 0xFF

    def work(count: int) -> None:
        for number in range(count):
            path.unlink(missing_ok=True)
            path.write_bytes(bad if number % 3 == 0 else good)
            try:
                binary = load(path)
            except BinaryError:
                continue
            assert binary.symbols.find("name1999") is not None
            assert binary.symbols.nearest(0x200000) is not None

    work(200)
    gc.collect()
    before = resident()
    work(600)
    gc.collect()
    # One load with its indices takes 200 KiB: had they stayed, 400 loads would have cost 80 MiB.
    assert resident() - before < 16 << 20
