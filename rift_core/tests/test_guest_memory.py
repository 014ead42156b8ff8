"""Guest-physical memory, free lists, host pages."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core.errors import AddressError, MappingError
from rift_core.guest_memory import GuestMemory
from rift_core.heap import PhysicalHeap
from rift_core.host_memory import PAGE_SIZE, HostMemory, aligned_buffer, buffer_address, touched
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.tools import only_where


def region(at: int, size: int) -> MemoryRegion:
    return MemoryRegion(Gpa(at), memoryview(bytearray(size)), Permission.READ | Permission.WRITE, f"at {at:#x}")


def test_a_view_is_the_guests_own_bytes() -> None:
    memory = GuestMemory()
    memory.add(region(0x1000, 0x2000))
    array = np.frombuffer(memory[0x1800:0x2000], dtype=np.uint32)
    array[0] = 0x01020304
    assert bytes(memory[0x1800:0x1804]) == b"\x04\x03\x02\x01"
    memory[0x1800:0x1802] = b"ab"
    assert array[0] == 0x01026261


@pytest.mark.parametrize("key", [slice(0x800, 0x1800), slice(0x2800, 0x3800), slice(0, 1), slice(0x1000, 0x900)])
def test_a_range_outside_one_region_is_refused(key: slice) -> None:
    memory = GuestMemory()
    memory.add(region(0x1000, 0x2000))
    with pytest.raises(AddressError):
        memory[key]


def test_open_ended_slices_are_refused() -> None:
    memory = GuestMemory()
    memory.add(region(0, 0x1000))
    for key in (slice(None, 4), slice(0, None), slice(0, 8, 2)):
        with pytest.raises(AddressError, match="both ends"):
            memory[key]


def test_overlapping_regions_are_refused_and_name_both() -> None:
    memory = GuestMemory()
    memory.add(region(0x1000, 0x2000))
    for at, size in ((0, 0x1001), (0x2FFF, 1), (0x1800, 0x10), (0, 0x10000)):
        with pytest.raises(MappingError, match="overlaps 0x1000-0x3000"):
            memory.add(region(at, size))
    assert len(memory.regions) == 1


def test_removing_changes_the_version_and_unknown_starts_are_refused() -> None:
    memory = GuestMemory()
    memory.add(region(0x1000, 0x1000))
    before = memory.version
    memory.remove(Gpa(0x1000))
    assert memory.version != before
    with pytest.raises(AddressError):
        memory.remove(Gpa(0x1000))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0x1000, 0x4000, 0x10000]), st.integers(0, 15)), max_size=30)
)
def test_the_heap_never_hands_out_a_byte_twice(wanted: list[tuple[int, int, int]]) -> None:
    heap = PhysicalHeap(0x1000)
    heap.release(0x10000, 0x100000)
    taken: list[tuple[int, int]] = []
    for pages, alignment, congruent in wanted:
        start = heap.take(pages * 0x1000, alignment, congruent * 0x1000)
        if start is None:
            continue
        assert start % alignment == congruent * 0x1000 % alignment
        assert start >= 0x10000
        assert start + pages * 0x1000 <= 0x110000
        assert all(start + pages * 0x1000 <= low or high <= start for low, high in taken)
        taken.append((start, start + pages * 0x1000))
    for low, high in taken:
        heap.release(low, high - low)
    assert heap.free_bytes == 0x100000
    assert heap.take(0x100000) == 0x10000


def test_host_memory_is_zeroed_aligned_and_outlives_its_object() -> None:
    memory = HostMemory(3 * PAGE_SIZE, "test")
    assert memory.address % PAGE_SIZE == 0
    view = memory.view
    del memory
    assert bytes(view) == bytes(3 * PAGE_SIZE)
    view[5] = 1
    assert view[5] == 1


def test_an_impossible_size_is_a_mapping_error() -> None:
    with pytest.raises(MappingError, match="host memory"):
        HostMemory(1 << 62, "huge")


def test_a_forked_child_sees_zeros_and_cannot_change_the_parents_memory() -> None:
    memory = HostMemory(PAGE_SIZE, "fork")
    memory.view[0] = 7
    child = os.fork()
    if child == 0:
        seen = memory.view[0]
        memory.view[0] = 9
        os._exit(seen)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert memory.view[0] == 7


def test_aligned_buffers_are_whole_pages() -> None:
    buffer = aligned_buffer(5)
    assert buffer.nbytes == PAGE_SIZE
    assert buffer_address(buffer) % PAGE_SIZE == 0
    with pytest.raises(MappingError):
        aligned_buffer(0)


def test_the_address_of_a_read_only_buffer_is_known_too() -> None:
    data = b"0123456789"
    assert buffer_address(memoryview(data)[3:]) == buffer_address(data) + 3


@only_where(sys.platform == "linux", "elsewhere guest memory is no file that has holes")
def test_what_was_never_touched_is_known_and_stays_so() -> None:
    memory = HostMemory(64 * PAGE_SIZE, "sparse")
    assert touched(memory.view) == []
    memory.view[5 * PAGE_SIZE + 7] = 1
    memory.view[6 * PAGE_SIZE] = 1
    memory.view[63 * PAGE_SIZE] = 1
    pages = [range(5 * PAGE_SIZE, 7 * PAGE_SIZE), range(63 * PAGE_SIZE, 64 * PAGE_SIZE)]
    assert touched(memory.view) == pages
    assert touched(memory.view[6 * PAGE_SIZE : 8 * PAGE_SIZE]) == [range(PAGE_SIZE)]
    assert touched(memory.view[7 * PAGE_SIZE : 8 * PAGE_SIZE]) == []


def test_of_other_memory_all_counts_as_touched() -> None:
    buffer = aligned_buffer(2 * PAGE_SIZE)
    assert touched(buffer) == [range(2 * PAGE_SIZE)]
