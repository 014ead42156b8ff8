"""Files that are mapped: what is copied, what is not, and what the process pays for it."""

from __future__ import annotations

import gc
import mmap
import struct
from typing import TYPE_CHECKING

import macho_writer as w

from rift_core.errors import BinaryError
from rift_core.host_memory import buffer_address
from rift_core.testing.leaks import TELLS_RESIDENT, resident
from rift_core.testing.tools import only_where
from rift_loader_macho import MachoConfig, rift_load_binary

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

GIB = 1 << 30


def load(path: Path, isa: str = "auto", **config: object) -> Binary:
    binary = rift_load_binary(path, MachoConfig.model_validate(config), isa)
    assert binary is not None
    return binary


def write_sparse(path: Path, size: int) -> None:
    """An executable with one segment of ``size`` bytes, nearly all of them holes, and a small writable one."""
    macho = w.Macho(
        [
            w.Seg("__BIG", 0x1000000, memory_size=size, sections=[w.Sect(0x1000000, size, kind=w.ZEROFILL)]),
            w.Seg("__DATA", 0x100000000, b"data" * 4096, protection=w.R | w.W),
        ],
        [w.Sym("_big", 0x1000000)],
    )
    data = bytearray(macho.build())
    struct.pack_into("<QQ", data, 32 + 40, 0x10000, size)
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
    big, data = binary.segments[:2]
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


@only_where(TELLS_RESIDENT, "resident size is read from /proc")
def test_an_image_of_a_large_universal_file(tmp_path: Path) -> None:
    """More than 4 GiB, which takes the wide form; only the wanted image is touched, and its pages are shown."""
    small = w.movable(cpu=w.ARM64, data=bytes(0x4000)).build()
    path = tmp_path / "universal"
    header = bytearray(w.universal([(w.X86_64, 3, b"x"), (w.ARM64, 0, b"y")], wide=True))
    struct.pack_into(">QQ", header, 8 + 8, 0x4000, 4 * GIB)
    struct.pack_into(">QQ", header, 40 + 8, 5 * GIB, len(small))
    with path.open("wb") as file:
        file.write(header)
        file.seek(5 * GIB)
        file.write(small)
    load(path, "aarch64")
    gc.collect()
    before = resident()
    binary = load(path, "aarch64")
    assert resident() - before < 8 << 20
    assert binary.isa == "aarch64"
    assert [s.mappable for s in binary.segments] == [True, True, False]


def test_mapping_is_chosen_by_size(tmp_path: Path) -> None:
    macho = w.Macho([w.Seg("__DATA", 0x4000, bytes(0x8000), protection=w.R | w.W)], linkedit=False)
    path = tmp_path / "file"
    path.write_bytes(macho.build())
    assert not load(path).segments[0].mappable
    assert load(path, map_file=True).segments[0].mappable
    macho.segments[0].data = bytes(1 << 20)
    path.write_bytes(macho.build())
    assert load(path).segments[0].mappable
    assert not load(path, map_file=False).segments[0].mappable


def test_mappable_means_congruent_and_a_whole_page(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    path = tmp_path / "file"
    data = b"x" * (3 * page)
    segments = [
        w.Seg("a", 0x100000 + 0x10, data),
        w.Seg("b", 0x200000 + 0x20, data, offset=0x10),
        w.Seg("c", 0x300000, data[: page - 1]),
        w.Seg("d", 0x400000 + 1, data[: 2 * page - 2]),
        w.Seg("e", 0x500000 + 1, data[: 2 * page - 1]),
    ]
    path.write_bytes(w.Macho(segments, linkedit=False).build())
    binary = load(path, map_file=True)
    assert [s.mappable for s in binary.segments] == [True, False, False, False, True]
    for segment in binary.segments:
        if segment.mappable:
            assert buffer_address(segment.data) % page == segment.address % page


def test_fixed_pages_are_private(tmp_path: Path) -> None:
    data = b"".join(struct.pack("<Q", w.pointer(n, 8 if n < 2047 and n % 512 != 511 else 0)) for n in range(2048))
    macho = w.movable(data=data, chains=w.chains({1: (0x8000, [0, 0, 0, 0])}))
    path = tmp_path / "file"
    content = macho.build()
    path.write_bytes(content)
    binary = load(path, map_file=True)
    segment = binary.segments[1]
    assert segment.mappable
    assert struct.unpack("<2048Q", segment.data) == tuple(0x400000 + n for n in range(2048))
    assert path.read_bytes() == content


@only_where(TELLS_RESIDENT, "resident size is read from /proc")
def test_no_memory_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    symbols = [w.Sym(f"_name{n}", w.TEXT + n % 256) for n in range(2000)]
    good = w.good(symbols=symbols).build()
    bad = bytearray(good)
    bad[0x30] ^= 0xFF

    def work(count: int) -> None:
        for number in range(count):
            path.unlink(missing_ok=True)
            path.write_bytes(bad if number % 3 == 0 else good)
            try:
                binary = load(path)
            except BinaryError:
                continue
            assert binary.symbols.find("name1999") is not None
            assert binary.symbols.nearest(w.TEXT) is not None

    work(200)
    gc.collect()
    before = resident()
    work(600)
    gc.collect()
    # One load with its indices takes 200 KiB: had they stayed, 400 loads would have cost 80 MiB.
    assert resident() - before < 16 << 20
