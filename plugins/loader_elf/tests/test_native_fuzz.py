"""The native piece called directly with made-up tables: it must answer, whatever it is given."""

from __future__ import annotations

import random
import struct
from typing import Any

import elf_writer as w
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_loader_elf._native import ffi, lib

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, 8, 24, 63, 64, 65, 0x1000, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 8]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x800),
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = w.good().build()
PIE = w.static_pie(w.rela(0x4000, 8, 0x1000) * 3, RELA=0x2000, RELASZ=72, RELAENT=24).build()


def buffer(data: bytes) -> Any:
    """Exactly so many bytes on the heap, so that AddressSanitizer sees a step beyond them."""
    array = ffi.new("uint8_t[]", len(data)) if data else ffi.new("uint8_t[1]")
    ffi.memmove(array, data, len(data))
    return array


def check(data: bytes, max_memory: int = 1 << 36) -> int:
    summary, error = ffi.new("struct rift_elf_summary *"), ffi.new("struct rift_elf_error *")
    status: int = lib.rift_elf_file_check(buffer(data), len(data), max_memory, summary, error)
    if status == 0:
        assert 0 < summary.loads <= summary.program_headers <= 1024
        assert summary.lowest < summary.highest
        assert summary.memory_size <= max_memory
        assert summary.dynamic_offset + 16 * summary.dynamic_entries <= len(data)
        assert summary.interpreter_offset + summary.interpreter_size <= len(data)
        assert summary.alignment & (summary.alignment - 1) == 0
    else:
        assert status == -1
        assert error.error.code != 0
        assert ffi.string(error.reason)
        assert ffi.string(error.error.operation)
    return status


@FUZZ
@given(st.binary(max_size=300))
def test_check_of_any_bytes(data: bytes) -> None:
    check(data)
    check(GOOD[:16] + data)


@FUZZ
@given(
    st.sampled_from([GOOD, PIE]), st.lists(st.tuples(st.integers(0, 400), NUMBERS, st.sampled_from("BHIQ")), max_size=4)
)
def test_check_of_changed_fields(base: bytes, changes: list[tuple[int, int, str]]) -> None:
    data = bytearray(base)
    for place, value, layout in changes:
        size = struct.calcsize(layout)
        place -= place % size
        struct.pack_into("<" + layout, data, place, value % (1 << 8 * size))
    check(bytes(data))
    section, error = ffi.new("struct rift_elf_section *"), ffi.new("struct rift_elf_error *")
    for kind in (0, 2, 3, 4, 8):
        if lib.rift_elf_section_find(buffer(bytes(data)), len(data), 0, kind, 0, section, error) == 1 and kind not in (
            0,
            8,
        ):
            assert section.offset + section.size <= len(data)


@pytest.mark.parametrize("base", [GOOD, PIE])
def test_check_of_every_truncation(base: bytes) -> None:
    for length in range(len(base)):
        assert check(base[:length]) == -1


TARGETS = ((0x1000, 64, 64), (0x1040, 8, 0), (0x2001, 100, 37), ((1 << 64) - 64, 63, 40))


def relocate(
    data: bytes, table: tuple[int, int], symbols: tuple[int, int], bias: int, machine: int, relr: bool
) -> None:
    """Both passes over a table, with targets of exactly the size that they claim."""
    memory = buffer(data)
    for write in (0, 1):
        targets = ffi.new("struct rift_elf_target[]", len(TARGETS))
        keep = []
        for target, (address, memory_size, size) in zip(targets, TARGETS, strict=True):
            keep.append(buffer(bytes(size)))
            target.address, target.memory_size, target.bytes, target.size = address, memory_size, keep[-1], size
        error = ffi.new("struct rift_elf_error *")
        relocator = ffi.new(
            "struct rift_elf_relocator *",
            {
                "bytes": memory,
                "size": len(data),
                "bias": bias,
                "machine": machine,
                "write": write,
                "symbols_offset": symbols[0],
                "symbols_size": symbols[1],
                "targets": targets,
                "target_count": len(TARGETS),
            },
        )
        apply = lib.rift_elf_relr_apply if relr else lib.rift_elf_rela_apply
        status = apply(relocator, *table, error)
        assert status in (0, -1)
        assert status == 0 or ffi.string(error.reason)
        for target, (_, memory_size, size) in zip(targets, TARGETS, strict=True):
            assert target.needed == 0 or size < target.needed <= memory_size
        if not write:
            assert not any(any(bytes(part)) for part in keep)


OFFSETS = st.one_of(
    st.integers(0xFF0, 0x1050), st.integers(0x1FF8, 0x2070), st.sampled_from([0, (1 << 64) - 8]), NUMBERS
)
KINDS = st.sampled_from([0, 1, 5, 6, 7, 8, 37, 256, 257, 1025, 1026, 1027, 1032])


@FUZZ
@given(
    st.lists(st.tuples(OFFSETS, KINDS, st.integers(0, 9), NUMBERS), max_size=12),
    st.binary(max_size=240),
    st.sampled_from([0, 0x1000, (1 << 64) - 0x1000, 12345]),
    st.sampled_from([62, 183, 0]),
)
def test_rela(entries: list[tuple[int, int, int, int]], symbols: bytes, bias: int, machine: int) -> None:
    table = b"".join(w.rela(offset, kind, addend, symbol) for offset, kind, symbol, addend in entries)
    relocate(symbols + table, (len(symbols), len(table)), (0, len(symbols)), bias, machine, False)


@FUZZ
@given(st.lists(st.one_of(OFFSETS, NUMBERS), max_size=12), st.sampled_from([0, 0x1000, (1 << 64) - 0x1000]))
def test_relr(words: list[int], bias: int) -> None:
    table = struct.pack(f"<{len(words)}Q", *words)
    relocate(table, (0, len(table)), (0, 0), bias, 62, True)


@FUZZ
@given(st.binary(max_size=96), NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_ranges_of_tables(data: bytes, offset: int, size: int, symbols: int, count: int, relr: bool) -> None:
    relocate(data, (offset, size), (symbols, count), 0, 62, relr)


@FUZZ
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(0, 255),
            st.sampled_from([0, 1, 2, 0xFFF1, 0xFFF2, 0xFFFF]),
            NUMBERS,
            NUMBERS,
        )
    ),
    st.binary(max_size=40),
    NUMBERS,
    st.lists(NUMBERS, max_size=5),
)
def test_symbols(entries: list[tuple[int, int, int, int, int]], names: bytes, bias: int, addresses: list[int]) -> None:
    """Look-ups agree with what a plain walk over the table says."""
    table = b"".join(
        struct.pack("<IBBHQQ", name, info, 0, section, value, size) for name, info, section, value, size in entries
    )
    names += b"\0"
    data = buffer(table + names)
    symbols = ffi.new("struct rift_elf_section *", {"type": 2, "offset": 0, "size": len(table), "entry_size": 24})
    strings = ffi.new("struct rift_elf_section *", {"type": 3, "offset": len(table), "size": len(names)})
    error, found = ffi.new("struct rift_elf_error *"), ffi.new("struct rift_found *")
    reason = ffi.new("struct rift_error *")
    handle = lib.rift_elf_symbols_open(data, len(table + names), 62, bias, symbols, strings, error)
    assert handle != ffi.NULL
    try:
        listed = []
        first = 0
        while lib.rift_symbols_next(handle, first, found, reason):
            listed.append((bytes(ffi.buffer(found.name, found.name_size)), found.address, found.size, found.index))
            first = found.index + 1
        assert lib.rift_symbols_count(handle) == len(listed)
        for name, _, _, _ in listed:
            assert lib.rift_symbols_find(handle, name, len(name), found, reason) == 1
            assert bytes(ffi.buffer(found.name, found.name_size)) == name
        assert lib.rift_symbols_find(handle, b"no such name", 12, found, reason) == 0
        for address in addresses:
            for low in (0, max(0, address - 100)):
                status = lib.rift_symbols_nearest(handle, address, low, found, reason)
                fits = [entry for entry in listed if entries[entry[3]][2] != w.ABS and entry[1] <= address]
                fits = [e for e in fits if e[1] >= low or min(e[1] + e[2], (1 << 64) - 1) > address]
                assert status == bool(fits)
                if status:
                    assert found.index in [entry[3] for entry in fits]
        several = ffi.new("struct rift_found[]", 64)
        assert 0 <= lib.rift_symbols_similar(handle, b"abc", 3, several, 64) <= min(64, len(listed))
    finally:
        lib.rift_symbols_close(handle)
    lib.rift_symbols_close(ffi.NULL)


@given(st.binary(max_size=64), NUMBERS)
def test_string_length(data: bytes, offset: int) -> None:
    length = lib.rift_elf_string_length(buffer(data), len(data), offset)
    expected = data[offset:].find(b"\0") if offset < len(data) else -1
    assert length == expected


def test_symbols_that_change_while_they_are_used() -> None:
    """A guest may write to the file's mapped bytes: look-ups then find nonsense, and nothing worse."""
    generator = random.Random(3)
    table, names = w.symbol_table([w.Sym(f"name{n}", n * 16, 16) for n in range(200)])
    data = buffer(table + names)
    symbols = ffi.new("struct rift_elf_section *", {"type": 2, "offset": 0, "size": len(table), "entry_size": 24})
    strings = ffi.new("struct rift_elf_section *", {"type": 3, "offset": len(table), "size": len(names)})
    error, found = ffi.new("struct rift_elf_error *"), ffi.new("struct rift_found *")
    reason = ffi.new("struct rift_error *")
    handle = lib.rift_elf_symbols_open(data, len(table + names), 62, 0, symbols, strings, error)
    for turn in range(500):
        for _ in range(20):
            data[generator.randrange(len(data))] = generator.randrange(256)
        name = f"name{turn % 200}".encode()
        assert lib.rift_symbols_find(handle, name, len(name), found, reason) in (0, 1)
        assert lib.rift_symbols_nearest(handle, turn * 7, 0, found, reason) in (0, 1)
        several = ffi.new("struct rift_found[]", 8)
        lib.rift_symbols_similar(handle, name, len(name), several, 8)
    lib.rift_symbols_close(handle)
