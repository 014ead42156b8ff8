"""Files made to cost time or memory: well-formed, with the largest counts that are let through."""

from __future__ import annotations

import random
import struct
import time
from typing import TYPE_CHECKING

import macho_writer as w
import pytest

from rift_core.errors import BinaryError
from rift_core.testing.loader import corrupt
from rift_loader_macho import MachoConfig, rift_load_binary

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

LIMIT = 10.0
"""Seconds; each of these takes less than one on an idle machine."""


def timed(path: Path, **config: object) -> Binary | str:
    """What comes of a file: the message where it is refused, "foreign" where it is taken for another format."""
    start = time.monotonic()
    result: Binary | str
    try:
        result = rift_load_binary(path, MachoConfig.model_validate(config), "auto") or "foreign"
    except BinaryError as error:
        result = str(error)
        assert str(path) in result
    assert time.monotonic() - start < LIMIT
    return result


def write(path: Path, macho: w.Macho) -> Path:
    path.write_bytes(macho.build())
    return path


def test_many_segments(tmp_path: Path) -> None:
    segments = [w.Seg(f"s{n}", 0x100000 + 0x10 * n, b"abcd", 0x10, offset=64) for n in range(256)]
    binary = timed(write(tmp_path / "file", w.Macho(segments[::-1], linkedit=False)))
    assert not isinstance(binary, str)
    assert len(binary.segments) == 256
    segments.append(w.Seg("more", 0x10, b"", 1))
    assert "more than 256 segments" in str(timed(write(tmp_path / "more", w.Macho(segments, linkedit=False))))


def test_many_sections(tmp_path: Path) -> None:
    macho = w.good(symbols=[])
    macho.segments[1].sections = [w.Sect(w.TEXT, 1)] * 252
    assert not isinstance(timed(write(tmp_path / "file", macho)), str)
    macho.segments[1].sections = [w.Sect(w.TEXT, 1)] * 253
    assert "more than 255 sections" in str(timed(write(tmp_path / "more", macho)))


def test_many_commands(tmp_path: Path) -> None:
    macho = w.good(symbols=[])
    macho.commands = [w.command(w.LC_UUID, bytes(16))] * 4090
    assert not isinstance(timed(write(tmp_path / "file", macho)), str)
    macho.commands += macho.commands[:20]
    assert "more than 4096 load commands" in str(timed(write(tmp_path / "more", macho)))


def test_many_libraries(tmp_path: Path) -> None:
    macho = w.movable(libraries=["/usr/lib/" + "x" * 200] * 4000, bind=w.bind("_x", 1, 0))
    assert "needs the symbol _x of /usr/lib/xxx" in str(timed(write(tmp_path / "file", macho)))


@pytest.mark.parametrize("base", [0, 0x200000])
def test_many_pointers_by_opcodes(tmp_path: Path, base: int) -> None:
    """A pointer rebased again and again, by one opcode of a few bytes."""
    backwards = w.uleb(-8 & w.MASK)
    macho = w.movable(base, rebase=b"\x11\x21\x00\x80" + w.uleb(8_388_608) + backwards + b"\0")
    assert not isinstance(timed(write(tmp_path / "file", macho)), str)
    macho.rebase = b"\x11\x21\x00\x80" + w.uleb(1 << 60) + backwards + b"\0"
    assert "more than 8388608 pointers" in str(timed(write(tmp_path / "more", macho)))


def test_endless_opcodes(tmp_path: Path) -> None:
    """All of a file's 64 MiB are opcodes that do nothing."""
    for field in ("rebase", "bind", "lazy_bind"):
        opcodes = {"rebase": b"\x40", "bind": b"\x51", "lazy_bind": b"\x00"}[field] * (64 << 20)
        timed(write(tmp_path / field, w.movable(**{field: opcodes})))


def test_many_chained_pointers(tmp_path: Path) -> None:
    """Every fourth byte starts a pointer: as many as a file of that size can have."""
    pages = 1024
    page = struct.pack("<Q", w.pointer(0, 8)) * 511 + struct.pack("<Q", w.pointer(0))
    macho = w.movable(data=page * pages, chains=w.chains({1: (0x8000, [0] * pages)}))
    macho.segments[1].memory_size = 0x1000 * pages
    assert not isinstance(timed(write(tmp_path / "file", macho)), str)
    macho.segments[1].data = struct.pack("<Q", w.pointer(0, 4)) * (512 * pages)
    timed(write(tmp_path / "dense", macho))


def test_many_pages_without_pointers(tmp_path: Path) -> None:
    segments = {number: (0x8000 + 0x4000 * (number - 1), [0xFFFF] * 65535) for number in range(1, 250)}
    macho = w.movable(chains=w.chains(segments))
    macho.segments += [w.Seg(f"s{n}", 0x8000 + 0x4000 * (n - 1), bytes(8), 0x4000) for n in range(2, 250)]
    assert not isinstance(timed(write(tmp_path / "file", macho)), str)


def test_many_imports_of_one_name(tmp_path: Path) -> None:
    symbols = [w.Sym("_same", 0x1000 + n % 64) for n in range(200_000)]
    data = b"".join(struct.pack("<Q", w.bound(n, 8)) for n in range(63)) + struct.pack("<Q", w.bound(63))
    fixups = w.chains({1: (0x8000, [0])}, [w.Import("_same", -3)] * 1000)
    assert not isinstance(timed(write(tmp_path / "file", w.movable(data=data, symbols=symbols, chains=fixups))), str)


def test_500_mutated_files_take_under_a_second_each(tmp_path: Path) -> None:
    """Binary or BinaryError, and never long: for each kind of file."""
    base = 0x100000000
    kinds = [
        w.good().build(),
        w.movable(rebase=w.rebase((1, 0), (1, 16)), lazy_bind=w.bind("_x", 1, 0, weak=True)).build(),
        w.movable(
            base, kind=w.EXECUTE, main=base + 0x1000, data=struct.pack("<QQ", w.pointer(0x1000, 8), w.bound(0)),
            chains=w.chains({1: (0x8000, [0])}, [w.Import("_data", -3)], pointer_format=6),
        ).build(),
        w.universal([(w.X86_64, 3, w.good().build()), (w.ARM64, 0, w.movable(cpu=w.ARM64).build())]),
    ]  # fmt: skip
    generator = random.Random(6)
    errors = 0
    for number in range(500):
        path = tmp_path / f"file{number % 8}"
        path.unlink(missing_ok=True)
        path.write_bytes(corrupt(kinds[number % 4], generator))
        start = time.process_time()
        errors += isinstance(timed(path), str)
        assert time.process_time() - start < 1
    assert 50 < errors < 500
