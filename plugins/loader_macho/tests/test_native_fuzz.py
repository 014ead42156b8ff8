"""The native piece called directly with made-up tables: it must answer, whatever it is given."""

from __future__ import annotations

import random
import struct
from typing import Any

import macho_writer as w
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_loader_macho._native import ffi, lib

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, 8, 24, 63, 64, 65, 0x1000, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 8]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x800),
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = w.good().build()
BUNDLE = w.movable(rebase=w.rebase((1, 0), (1, 8)), relocations=(0, 0)).build()


def buffer(data: bytes) -> Any:
    """Exactly so many bytes on the heap, so that AddressSanitizer sees a step beyond them."""
    array = ffi.new("uint8_t[]", len(data)) if data else ffi.new("uint8_t[1]")
    ffi.memmove(array, data, len(data))
    return array


def image(memory: Any, size: int) -> Any:
    return ffi.new("struct rift_macho_image *", {"bytes": memory, "size": size, "origin": 0})


def check(data: bytes, max_memory: int = 1 << 36) -> int:
    memory = buffer(data)
    summary, error = ffi.new("struct rift_macho_summary *"), ffi.new("struct rift_macho_error *")
    status: int = lib.rift_macho_image_check(image(memory, len(data)), max_memory, summary, error)
    if status == 0:
        assert 0 < summary.segments <= summary.commands <= 4096
        assert 32 + summary.commands_size <= len(data)
        assert summary.lowest < summary.highest
        assert summary.memory_size <= max_memory
        assert summary.sections <= 255
        assert summary.alignment & (summary.alignment - 1) == 0
    else:
        assert status == -1
        assert error.error.code != 0
        assert ffi.string(error.reason)
        assert ffi.string(error.error.operation)
    return status


@FUZZ
@given(st.binary(max_size=400))
def test_check_of_any_bytes(data: bytes) -> None:
    check(data)
    check(GOOD[:32] + data)


@FUZZ
@given(
    st.sampled_from([GOOD, BUNDLE]),
    st.lists(st.tuples(st.integers(0, 1000), NUMBERS, st.sampled_from("BHIQ")), max_size=4),
)
def test_check_of_changed_fields(base: bytes, changes: list[tuple[int, int, str]]) -> None:
    data = bytearray(base)
    for place, value, layout in changes:
        size = struct.calcsize(layout)
        place -= place % size
        struct.pack_into("<" + layout, data, place, value % (1 << 8 * size))
    check(bytes(data))


@pytest.mark.parametrize("base", [GOOD, BUNDLE])
def test_check_of_truncations(base: bytes) -> None:
    for length in [*range(1200), *range(1200, len(base), 97), len(base) - 1]:
        assert check(base[:length]) == -1


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf"]))
def test_slices(data: bytes, magic: bytes) -> None:
    data = magic + data
    slices, error = ffi.new("struct rift_macho_slice[]", 64), ffi.new("struct rift_macho_error *")
    count = lib.rift_macho_slices(buffer(data), len(data), slices, error)
    assert count == -1 or 1 <= count <= 64
    for index in range(max(0, count)):
        assert slices[index].offset + slices[index].size <= len(data)


SIZES = (64, 0, 4200, 37)


def fixer(memory: Any, size: int, slide: int, write: int, keep: list[Any], header: int = 0x1000) -> Any:
    """Targets of exactly the size that they claim."""
    targets = ffi.new("struct rift_macho_target[]", len(SIZES))
    for number, (target, length) in enumerate(zip(targets, SIZES, strict=True)):
        keep.append(buffer(random.Random(number).randbytes(length)))
        target.address, target.memory_size = 0x1000 + 0x4000 * number, 0x4000
        target.bytes, target.size, target.offset = keep[-1], length, 0
    bound = ffi.new("uint64_t[]", [5, (1 << 64) - 2])
    keep += [targets, bound, image(memory, size)]
    return ffi.new(
        "struct rift_macho_fixer *",
        {
            "image": keep[-1],
            "slide": slide,
            "header_address": header,
            "write": write,
            "bound_count": 2,
            "targets": targets,
            "target_count": len(SIZES),
            "bound": bound,
        },
    )


def contents(keep: list[Any]) -> list[bytes]:
    return [bytes(part) for part in keep[: len(SIZES)]]


OPCODES = st.lists(
    st.one_of(
        st.sampled_from([b"\x11", b"\x20", b"\x21", b"\x22", b"\x23", b"\x50", b"\x53", b"\x60", b"\x70", b"\x80"]),
        st.sampled_from([b"\x41_a\0", b"\x40_b\0", b"\x71", b"\x72", b"\x90", b"\xa0", b"\xb1", b"\xc0", b"\x00"]),
        st.binary(min_size=1, max_size=3),
        NUMBERS.map(w.uleb),
        st.integers(0, 80).map(w.uleb),
    ),
    max_size=20,
).map(b"".join)


@FUZZ
@given(OPCODES, st.sampled_from([0, 0x1000, (1 << 64) - 0x1000]), st.integers(0, 3))
def test_opcodes(data: bytes, slide: int, cut: int) -> None:
    memory = buffer(data)
    for write in (0, 1):
        keep: list[Any] = []
        fix = fixer(memory, len(data), slide, write, keep)
        before = contents(keep)
        error, found = ffi.new("struct rift_macho_error *"), ffi.new("struct rift_macho_import *")
        size = max(0, len(data) - cut)
        assert lib.rift_macho_rebase(fix, cut, size, error) in (0, -1)
        for lazy in (0, 1):
            status = lib.rift_macho_bind(fix, cut, size, lazy, found, error)
            assert status in (0, 1, -1)
            assert status != 1 or found.name + found.name_size <= len(data)
        if not write:
            assert contents(keep) == before


@FUZZ
@given(st.binary(max_size=120), NUMBERS, NUMBERS)
def test_ranges(data: bytes, offset: int, size: int) -> None:
    keep: list[Any] = []
    memory = buffer(data)
    fix = fixer(memory, len(data), 0x1000, 1, keep)
    error, found = ffi.new("struct rift_macho_error *"), ffi.new("struct rift_macho_import *")
    lib.rift_macho_rebase(fix, offset, size, error)
    lib.rift_macho_bind(fix, offset, size, 1, found, error)
    lib.rift_macho_chains(fix, offset, size, error)
    lib.rift_macho_chained_import(fix.image, offset, size, 0, found, error)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 600), NUMBERS, st.sampled_from("BHIQ")), max_size=4),
    st.lists(st.sampled_from([0, 4, 8, 60, 0xFF8, 0xFFC, 0x1000, 0xFFFF]), max_size=4),
    st.sampled_from([2, 6]),
    st.integers(1, 3),
    st.integers(0, 40),
)
def test_chains(
    changes: list[tuple[int, int, str]], pages: list[int], pointer_format: int, imports_format: int, cut: int
) -> None:
    fixups = bytearray(
        w.chains(
            {0: (0, [0]), 2: (0x8000, pages)},
            [w.Import("_one"), w.Import("_two", weak=True), w.Import("_three", -3)],
            pointer_format=pointer_format,
            imports_format=imports_format,
        )
    )
    for place, value, layout in changes:
        size = struct.calcsize(layout)
        place = min(place, len(fixups) - size)
        struct.pack_into("<" + layout, fixups, place - place % size, value % (1 << 8 * size))
    data = bytes(fixups[: len(fixups) - cut])
    memory = buffer(data)
    for write in (0, 1):
        keep: list[Any] = []
        fix = fixer(memory, len(data), 0x10000, write, keep)
        before = contents(keep)
        error, found = ffi.new("struct rift_macho_error *"), ffi.new("struct rift_macho_import *")
        status = lib.rift_macho_chains(fix, 0, len(data), error)
        assert status in (0, -1)
        assert status == 0 or ffi.string(error.reason)
        if not write:
            assert contents(keep) == before
        for index in range(5):
            if lib.rift_macho_chained_import(fix.image, 0, len(data), index, found, error) == 1:
                assert found.name + found.name_size <= len(data)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255), st.integers(0, 4), NUMBERS, NUMBERS)),
    st.binary(max_size=40),
    NUMBERS,
    st.lists(NUMBERS, max_size=5),
)
def test_symbols(entries: list[tuple[int, int, int, int, int]], names: bytes, slide: int, addresses: list[int]) -> None:
    """Look-ups agree with what a plain walk over the table says."""
    table = b"".join(
        struct.pack("<IBBHQ", name, kind, section, description % 65536, value)
        for name, kind, section, description, value in entries
    )
    data = buffer(table + names)
    summary = ffi.new("struct rift_macho_summary *")
    summary.sections = 3
    for number, (start, end) in enumerate(((0, 0x800), (0x1000, 0x1000), (1 << 63, (1 << 64) - 1))):
        summary.section[number].address, summary.section[number].end = start, end
    where = ffi.new("struct rift_macho_symbol_table *", (0, len(entries), len(table), len(names)))
    error, found = ffi.new("struct rift_macho_error *"), ffi.new("struct rift_found *")
    reason = ffi.new("struct rift_error *")
    size = len(table + names)
    handle = lib.rift_macho_symbols_open(image(data, size), slide, where, summary, error)
    assert handle != ffi.NULL
    try:
        listed = []
        first = 0
        while lib.rift_symbols_next(handle, first, found, reason):
            listed.append((bytes(ffi.buffer(found.name, found.name_size)), found.address, found.size, found.index))
            first = found.index + 1
        assert lib.rift_symbols_count(handle) == len(listed)
        for name, _, _, index in listed:
            at = entries[index][0]
            spelled = names[at:].split(b"\0")[0]
            assert spelled in (name, b"_" + name)
            if len(names) > at + len(spelled):  # else it is not terminated, and cannot be compared
                assert lib.rift_symbols_find(handle, spelled, len(spelled), found, reason) == 1
        for address in addresses:
            for low in (0, max(0, address - 100)):
                status = lib.rift_symbols_nearest(handle, address, low, found, reason)
                assert status in (0, 1)
                if status:
                    assert found.address <= address
                    assert found.index in [entry[3] for entry in listed]
        several = ffi.new("struct rift_found[]", 64)
        assert 0 <= lib.rift_symbols_similar(handle, b"abc", 3, several, 64) <= min(64, len(listed))
    finally:
        lib.rift_symbols_close(handle)


@given(st.binary(max_size=64), NUMBERS)
def test_string_length(data: bytes, offset: int) -> None:
    length = lib.rift_macho_string_length(buffer(data), len(data), offset)
    expected = data[offset:].find(b"\0") if offset < len(data) else -1
    assert length == expected


def test_symbols_that_change_while_they_are_used() -> None:
    """A guest may write to the file's mapped bytes: look-ups then find nonsense, and nothing worse."""
    generator = random.Random(3)
    table, names = w.symbol_table([w.Sym(f"_name{n}", n * 16) for n in range(200)])
    data = buffer(table + names)
    summary = ffi.new("struct rift_macho_summary *")
    summary.sections = 1
    summary.section[0].end = 4000
    where = ffi.new("struct rift_macho_symbol_table *", (0, 200, len(table), len(names)))
    error, found = ffi.new("struct rift_macho_error *"), ffi.new("struct rift_found *")
    reason = ffi.new("struct rift_error *")
    handle = lib.rift_macho_symbols_open(image(data, len(table + names)), 0, where, summary, error)
    for turn in range(500):
        for _ in range(20):
            data[generator.randrange(len(data))] = generator.randrange(256)
        name = f"_name{turn % 200}".encode()
        assert lib.rift_symbols_find(handle, name, len(name), found, reason) in (0, 1)
        assert lib.rift_symbols_nearest(handle, turn * 7, 0, found, reason) in (0, 1)
        several = ffi.new("struct rift_found[]", 8)
        lib.rift_symbols_similar(handle, name, len(name), several, 8)
    lib.rift_symbols_close(handle)
