"""500 damaged executables: a Binary that can be planned and asked, or one clear error; in time, and nothing is kept."""

from __future__ import annotations

import random
import resource
import struct
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from rift_core import BinaryError, RiftError, load_config
from rift_core.assembly import check, load_binary
from rift_core.build import build
from rift_core.catalog import Catalog
from rift_core.testing.leaks import no_leaks
from rift_core.testing.tools import require_compiler

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 1.0
FILES = 500
ABSURD = (0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096)
MEMORY = 256 << 20  # bytes that all of them together may add to the process at its largest

SOURCE = """
#include <rift_guest.h>
static int numbers[1000];
int *pointers[4] = {numbers, numbers + 1, numbers + 2, numbers + 3};
int main(int value) { rift_printf("%d\\n", *pointers[value & 3]); return 0; }
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A fixed and a position-independent executable."""
    from machine_code import ISA

    require_compiler()
    folder = tmp_path_factory.mktemp("good")
    source = folder / "guest.c"
    source.write_text(SOURCE)
    files = []
    for pie in (False, True):
        build(source, folder / f"guest{pie}", isa=ISA, pie=pie)
        files.append((folder / f"guest{pie}").read_bytes())
    return files


def tables(file: bytes) -> list[range]:
    """The file header, the program headers and the section headers: where sizes and counts stand."""
    program, sections = struct.unpack_from("<QQ", file, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<4H", file, 54)
    return [
        range(64),
        range(program, program + program_size * program_count),
        range(sections, sections + section_size * section_count),
    ]


def mutate(file: bytes, choose: random.Random) -> bytes:
    damaged = bytearray(file)
    for _ in range(choose.choice((1, 1, 2, 8))):
        kind = choose.randrange(4)
        if kind == 0:  # bit flips anywhere
            for _ in range(choose.choice((1, 10, 200))):
                at = choose.randrange(len(damaged))
                damaged[at] ^= 1 << choose.randrange(8)
        elif kind == 1:  # truncation
            del damaged[choose.randrange(1, len(damaged)) :]
        elif kind == 2:  # an absurd size, count, offset or address
            where = choose.choice(tables(file))
            width = choose.choice((2, 4, 8))
            at = where.start + choose.randrange(len(where)) // width * width
            value = choose.choice(ABSURD) & (1 << 8 * width) - 1
            damaged[at : at + width] = value.to_bytes(width, "little")
        else:  # a piece of it somewhere else
            size = choose.randrange(1, 200)
            start, at = (choose.randrange(len(file)) for _ in range(2))
            damaged[at : at + size] = file[start : start + size]
        if len(damaged) < 2:
            break
    return bytes(damaged)


def use(path: Path) -> bool:
    """Load, ask and plan; whether it could be loaded.

    :raises BinaryError: it is damaged.  :raises RiftError: it cannot be laid out.
    """
    config = load_config({"binary": {"path": str(path)}}, environ={})
    binary = load_binary(config, Catalog.installed())
    for name in ("main", "", "numbers", "\udc80"):
        binary.symbols.find(name)
    for address in (0, 0x20_0140, 1 << 47, (1 << 64) - 1):
        binary.symbols.nearest(address)
    assert all(isinstance(symbol.name, str) for symbol in islice(binary.symbols, 10_000))
    check(config, Catalog.installed())
    return True


def test_mutated_files(good: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    for file in good:
        path.write_bytes(file)
        assert use(path)
    for foreign in (b"\0" * 64, b"\xcf\xfa\xed\xfe" + bytes(64)):  # every loader is loaded once
        path.write_bytes(foreign)
        with pytest.raises(RiftError):
            use(path)
    choose = random.Random(20261127)
    loaded = refused = 0
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with no_leaks():
        for number in range(FILES):
            damaged = mutate(good[number % len(good)], choose)
            path.write_bytes(damaged)
            began = time.process_time()  # the machine may be busy with something else
            message = str(path)
            try:
                use(path)
                loaded += 1
            except BinaryError as error:
                message = str(error)
                refused += 1
            except RiftError:
                loaded += 1  # it was read, and wants memory that cannot be had, or another ISA's backend
            slowest = max(slowest, time.process_time() - began)
            assert slowest < SECONDS, number
            assert str(path) in message, number
    assert loaded > FILES // 20
    assert refused > FILES // 20
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY
