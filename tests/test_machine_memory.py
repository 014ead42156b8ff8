"""Guest memory and page tables of running machines."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from machine_code import CODE, NAMES

from rift_core import (
    AddressError,
    GuestError,
    GuestFaultError,
    Machine,
    MappingError,
    Permission,
    UnsupportedError,
    aligned_buffer,
)

PLACE = 0x10_0000
U64 = ctypes.c_uint64


def test_numpy_works_on_guest_memory(machine: Machine, functions: dict[str, int]) -> None:
    physical = machine.map(PLACE, 0x2000)
    array = np.frombuffer(machine.memory[physical : physical + 0x2000], dtype=np.uint64)
    machine.call(functions["store"], PLACE + 8, 0x1122334455667788, restype=None)
    assert array[1] == 0x1122334455667788
    array[2] = 99
    assert machine.call(functions["load"], PLACE + 16, restype=U64) == 99


def test_unmapped_pages_fault_and_mapped_ones_come_back_empty(machine: Machine, functions: dict[str, int]) -> None:
    for round_ in range(3):
        machine.map(PLACE, 0x1000)
        assert machine.call(functions["load"], PLACE, restype=U64) == 0
        machine.call(functions["store"], PLACE, round_ + 1, restype=None)
        assert machine.call(functions["load"], PLACE, restype=U64) == round_ + 1
        machine.unmap(PLACE, 0x1000)
        with pytest.raises(GuestFaultError, match=NAMES.abort):
            machine.call(functions["load"], PLACE)


def test_protection_takes_effect_at_once(machine: Machine, functions: dict[str, int]) -> None:
    machine.map(PLACE, 0x1000)
    machine.call(functions["store"], PLACE, 5, restype=None)
    machine.protect(PLACE, 0x1000, "r")
    with pytest.raises(GuestFaultError, match=NAMES.abort):
        machine.call(functions["store"], PLACE, 6, restype=None)
    assert machine.call(functions["load"], PLACE, restype=U64) == 5
    machine.protect(PLACE, 0x1000, "rw")
    machine.call(functions["store"], PLACE, 7, restype=None)
    assert machine.call(functions["load"], PLACE, restype=U64) == 7


def test_data_pages_do_not_execute(machine: Machine, functions: dict[str, int]) -> None:
    machine.map(PLACE, 0x1000)
    machine.write_virtual(PLACE, CODE["return"])
    with pytest.raises(GuestFaultError, match=NAMES.abort):
        machine.call(PLACE)
    machine.protect(PLACE, 0x1000, "rx")
    machine.call(PLACE, restype=None)


def test_two_addresses_of_the_same_page(machine: Machine, functions: dict[str, int]) -> None:
    physical = machine.map(PLACE, 0x1000)
    machine.map(PLACE + 0x10000, 0x1000, physical=physical)
    machine.call(functions["store"], PLACE, 123, restype=None)
    assert machine.call(functions["load"], PLACE + 0x10000, restype=U64) == 123


def test_translate_says_where_and_how_a_page_is_mapped(machine: Machine) -> None:
    physical = machine.map(PLACE, 0x2000, "rw")
    walk = machine.translate(PLACE + 0x1234)
    assert walk.physical == physical + 0x1234
    assert walk.permissions == Permission.READ | Permission.WRITE
    missing = machine.translate(PLACE + 0x2000)
    assert missing.physical is None
    assert missing.reason


def test_accessed_and_dirty_bits_are_read_and_cleared(machine: Machine, functions: dict[str, int]) -> None:
    machine.map(PLACE, 0x3000, largest_page=0x1000)
    machine.accessed_dirty(PLACE, 0x3000, clear=True)
    machine.call(functions["load"], PLACE, restype=U64)
    machine.call(functions["store"], PLACE + 0x1000, 1, restype=None)
    bits = [(accessed, dirty) for _, _, accessed, dirty in machine.accessed_dirty(PLACE, 0x3000, clear=True)]
    assert bits == [(True, False), (True, True), (False, False)]
    machine.call(functions["store"], PLACE, 1, restype=None)
    bits = [(accessed, dirty) for _, _, accessed, dirty in machine.accessed_dirty(PLACE, 0x3000)]
    assert bits == [(True, True), (False, False), (False, False)]


def test_views_are_guest_virtual_and_contiguous_only(machine: Machine) -> None:
    first = machine.map(PLACE, 0x1000)
    machine.map(PLACE + 0x2000, 0x1000)
    view = machine.view(PLACE + 0xFF0, 16)
    view[:] = b"0123456789abcdef"
    assert bytes(machine.memory[first + 0xFF0 : first + 0x1000]) == b"0123456789abcdef"
    assert machine.read_virtual(PLACE + 0xFF0, 4) == b"0123"
    with pytest.raises(AddressError, match="not mapped"):
        machine.view(PLACE + 0xFF0, 17)
    machine.map(PLACE + 0x1000, 0x1000, physical=first)
    with pytest.raises(AddressError, match="not contiguous"):
        machine.view(PLACE, 0x2000)
    assert machine.read_virtual(PLACE + 0xFF0, 0x20) == b"0123456789abcdef" + bytes(machine.view(PLACE, 16))


@pytest.mark.parametrize(
    ("address", "size", "words"),
    [
        (PLACE + 1, 0x1000, "multiples"),
        (PLACE, 0x800, "multiples"),
        (PLACE, 0, "multiples"),
        (0x40_0000, 0x1000, "mapped"),
    ],
)
def test_bad_mappings_are_refused(machine: Machine, address: int, size: int, words: str) -> None:
    with pytest.raises(MappingError, match=words):
        machine.map(address, size)


def test_the_non_canonical_hole_is_refused(machine: Machine) -> None:
    with pytest.raises(MappingError):
        machine.map(machine.isa.virtual_ranges[0].stop, 0x1000)


def test_unmapping_what_is_not_mapped_is_refused(machine: Machine) -> None:
    machine.map(PLACE, 0x1000)
    with pytest.raises(MappingError):
        machine.unmap(PLACE, 0x2000)
    assert machine.translate(PLACE).physical is not None


def test_a_large_mapping_is_split_when_a_part_of_it_goes(machine: Machine, functions: dict[str, int]) -> None:
    base = 0x4000_0000
    machine.map(base, 0x40_0000)
    assert machine.translate(base).page_size == 0x20_0000
    machine.unmap(base + 0x5000, 0x1000)
    assert machine.translate(base + 0x4000).page_size == 0x1000
    assert machine.translate(base + 0x5000).physical is None
    assert machine.translate(base + 0x20_0000).page_size == 0x20_0000
    machine.call(functions["store"], base + 0x6000, 77, restype=None)
    assert machine.call(functions["load"], base + 0x6000, restype=U64) == 77
    with pytest.raises(GuestFaultError):
        machine.call(functions["load"], base + 0x5000)


def test_memory_grows_when_the_ram_is_used_up(machine: Machine, functions: dict[str, int]) -> None:
    before = len(machine.memory.regions)
    machine.map(0x1_0000_0000, 0x400_0000)
    assert len(machine.memory.regions) > before
    machine.call(functions["store"], 0x1_0000_0000 + 0x3FF_FFF8, 5, restype=None)
    assert machine.call(functions["load"], 0x1_0000_0000 + 0x3FF_FFF8, restype=U64) == 5


def test_many_small_mappings_need_more_tables(machine: Machine, functions: dict[str, int]) -> None:
    for number in range(300):
        machine.map(0x10_0000_0000 + number * 0x4000_0000, 0x1000)
    last = 0x10_0000_0000 + 299 * 0x4000_0000
    machine.call(functions["store"], last, 9, restype=None)
    assert machine.call(functions["load"], last, restype=U64) == 9


def test_a_shared_buffer_is_seen_by_both_until_it_is_withdrawn(machine: Machine, functions: dict[str, int]) -> None:
    buffer = aligned_buffer(0x1000)
    array = np.frombuffer(buffer, dtype=np.uint64)
    array[0] = 11
    at = 0x2_0000_0000
    share = machine.share(buffer, at=at, writable=True, virtual=PLACE)
    assert machine.call(functions["load"], PLACE, restype=U64) == 11
    machine.call(functions["store"], PLACE + 8, 12, restype=None)
    assert array[1] == 12
    assert machine.memory[at : at + 1][0] == 11
    share.withdraw()
    share.withdraw()
    with pytest.raises(GuestError):
        machine.call(functions["load"], PLACE, restype=U64)
    with pytest.raises(AddressError):
        machine.memory[at : at + 1]
    array[0] = 13
    assert machine.call(functions["add"], 1, 1) == 2


def test_a_read_only_share_cannot_be_written_by_the_guest(machine: Machine, functions: dict[str, int]) -> None:
    buffer = aligned_buffer(0x1000)
    try:
        share = machine.share(buffer, at=0x2_0000_0000, virtual=PLACE)
    except UnsupportedError:
        assert "readonly_memory" not in machine.capabilities
        return
    with share:
        assert machine.call(functions["load"], PLACE, restype=U64) == 0
        with pytest.raises(GuestError):
            machine.call(functions["store"], PLACE, 12, restype=None)
        machine.protect(PLACE, 0x1000, "rw")
        with pytest.raises(GuestError):
            machine.call(functions["store"], PLACE, 12, restype=None)
    assert bytes(buffer) == bytes(0x1000)


@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (bytearray(100), "aligned_buffer"),
        (aligned_buffer(0x2000)[1:0x1001], "aligned_buffer"),
        (aligned_buffer(0x2000)[::2], "contiguous"),
        (b"", "aligned_buffer"),
        (5, "contiguous"),
    ],
)
def test_buffers_that_are_not_whole_pages_are_refused_with_the_remedy(
    machine: Machine, buffer: object, words: str
) -> None:
    with pytest.raises(MappingError, match=words):
        machine.share(buffer, at=0x2_0000_0000, writable=not isinstance(buffer, bytes))


def test_shares_cannot_cover_what_is_there(machine: Machine) -> None:
    ram = machine.memory.regions[0]
    for at in (ram.guest_address, machine.doorbell):
        with pytest.raises(MappingError):
            machine.share(aligned_buffer(0x1000), at=at, writable=True)
    with pytest.raises(MappingError, match="page size"):
        machine.share(aligned_buffer(0x1000), at=0x2_0000_0800, writable=True)
    with pytest.raises(MappingError, match="address bits"):
        machine.share(aligned_buffer(0x1000), at=1 << 60, writable=True)


def test_code_is_added_and_changed_in_a_running_machine(machine: Machine) -> None:
    place = machine.load_code(CODE["five"])
    assert machine.call(place) == 5
    machine.load_code(CODE["six"], at=place)
    assert machine.call(place) == 6
    chosen = machine.load_code(CODE["seven"], at=0x5000_1000 - max(NAMES.smallest, 3))  # across a page border
    assert machine.call(chosen) == 7
    with pytest.raises(MappingError, match="at least one byte"):
        machine.load_code(b"")
    machine.map(PLACE, 0x1000)
    with pytest.raises(MappingError, match="not executable"):
        machine.load_code(CODE["return"], at=PLACE)
    with pytest.raises(MappingError, match="in part"):
        machine.load_code(CODE["return"] * 0x1001, at=PLACE)
