"""Payloads' own exception vectors: the runtime's, and the layout of ``interrupt_table``."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core.errors import BinaryError
from rift_core.isa import Vectors
from rift_core.memory import Gva
from rift_x86_64.vectors import looks_like_table, make_idt

CODE_SEGMENT = 0x0020_9B00_0000_0000
TASK_SEGMENT = 0x0000_8B00_0000_0FFF
BUILTIN = 0x5000_0000


def table(entries: dict[int, tuple[int, int, int, int]], size: int = 0x2000) -> memoryview:
    """``entries``: vector to (selector, IST, type and attributes, handler)."""
    data = bytearray(size)
    for vector, (selector, stack, attributes, handler) in entries.items():
        struct.pack_into("<HHBBHQ", data, 16 * vector, 0, selector, stack, attributes, 0, handler)
    struct.pack_into("<3Q", data, 0x1000, 0, CODE_SEGMENT, TASK_SEGMENT)
    return memoryview(data)


ORIGINAL = {3: (8, 0, 0x8F, 0x20_1000), 14: (8, 0, 0x8F, 0x20_1010)}


def gates(idt: bytes) -> dict[int, tuple[int, int, int, int]]:
    result = {}
    for vector in range(256):
        low, selector, stack, attributes, middle, high, _ = struct.unpack_from("<HHBBHII", idt, 16 * vector)
        result[vector] = (selector, stack, attributes, low | middle << 16 | high << 32)
    return result


def test_runtime_vectors_are_256_stubs(guest: Any) -> None:
    vectors = Vectors("rift_vectors", Gva(0x20_0040), memoryview(bytes(0x1800)))
    registers = guest.start(vectors=vectors)
    made = gates(guest.read_virtual(registers["idtr.base"], 4096))
    assert [gate[3] for gate in made.values()] == [0x20_0040 + 16 * vector for vector in range(256)]
    assert [made[vector][1] for vector in (8, 2, 18)] == [1, 2, 3]
    assert made[3][2] == 0xEE


def test_runtime_vectors_that_end_early() -> None:
    with pytest.raises(BinaryError, match="rift_vectors at 0x200000: the segment ends after 4095 bytes"):
        make_idt(Vectors("rift_vectors", Gva(0x20_0000), memoryview(bytes(4095))), BUILTIN)


@pytest.mark.parametrize("name", ["interrupt_table", "my_table"])
def test_interrupt_table_becomes_an_idt(name: str) -> None:
    made = gates(make_idt(Vectors(name, Gva(0x60_0000), table(ORIGINAL)), BUILTIN))
    assert made[3] == (8, 0, 0x8F, 0x20_1000)
    assert made[14] == (8, 0, 0x8F, 0x20_1010)
    for vector in set(range(256)) - {3, 14}:  # a fault there is still reported
        assert made[vector][3] == BUILTIN + 16 * vector
    assert made[8][1] == 1


def test_handlers_in_the_upper_half_and_on_interrupt_stacks() -> None:
    entries = {14: (8, 1, 0x8E, 0xFFFF_8000_0020_0000), 8: (8, 0, 0x8E, 0x20_0000)}
    made = gates(make_idt(Vectors("interrupt_table", Gva(0), table(entries)), BUILTIN))
    assert made[14] == (8, 1, 0x8E, 0xFFFF_8000_0020_0000)
    assert made[8][1] == 1, "a double fault keeps its own stack"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((0x10, 0, 0x8F, 0x20_0000), "selector 0x10"),
        ((8, 4, 0x8F, 0x20_0000), "interrupt stack 4"),
        ((8, 0, 0x85, 0x20_0000), "no interrupt or trap gate"),
        ((8, 0, 0x9E, 0x20_0000), "no interrupt or trap gate"),
        ((8, 0, 0x8F, 0), "no code address"),
        ((8, 0, 0x8F, 1 << 47), "no code address"),
    ],
)
def test_wrong_entries_are_named(entry: tuple[int, int, int, int], reason: str) -> None:
    with pytest.raises(BinaryError, match=f"interrupt_table at 0x600000: entry 13 .*{reason}"):
        make_idt(Vectors("interrupt_table", Gva(0x60_0000), table({13: entry})), BUILTIN)


def test_a_short_table_is_refused() -> None:
    with pytest.raises(BinaryError, match="ends after 64 bytes"):
        make_idt(Vectors("interrupt_table", Gva(0), memoryview(bytes(64))), BUILTIN)


def test_other_symbols_must_look_like_a_table() -> None:
    for host in (table(ORIGINAL)[:0x1000], memoryview(bytes(0x2000)), memoryview(b"\xcc" * 0x2000)):
        assert not looks_like_table(host)
        with pytest.raises(BinaryError, match="no vector table that is known"):
            make_idt(Vectors("my_table", Gva(0x60_0000), host), BUILTIN)


@given(st.binary(min_size=0, max_size=64), st.integers(0, 4096), st.booleans())
def test_any_bytes_give_an_idt_or_a_binary_error(noise: bytes, at: int, named: bool) -> None:
    data = bytearray(table(ORIGINAL))
    data[at : at + len(noise)] = noise
    vectors = Vectors("interrupt_table" if named else "other", Gva(0), memoryview(data))
    try:
        made = make_idt(vectors, BUILTIN)
    except BinaryError:
        return
    assert len(made) == 4096


def test_changed_tables_are_read_again(guest: Any) -> None:
    host = table(ORIGINAL)
    vectors = Vectors("interrupt_table", Gva(0x60_0000), host)
    guest.start(vectors=vectors)
    struct.pack_into("<Q", host, 14 * 16 + 8, 0x20_2000)
    registers = guest.start(vectors=vectors)
    assert gates(guest.read_virtual(registers["idtr.base"], 4096))[14][3] == 0x20_2000
