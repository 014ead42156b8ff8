"""What is particular to x86-64's page tables; what all ISAs share is in the conformance suite."""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.errors import MappingError
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_x86_64 import paging

if TYPE_CHECKING:
    from collections.abc import Callable

R, W, X, U = Permission.READ, Permission.WRITE, Permission.EXECUTE, Permission.USER
P, RW, US, PWT, PCD, A, D, PS, NX = 1, 2, 4, 8, 16, 32, 64, 128, 1 << 63
SMALL, LARGE, HUGE = 0x1000, 0x20_0000, 0x4000_0000


def mapped(virtual: int, physical: int, size: int, permissions: Permission = R, **more: Any) -> Mapping:
    return Mapping(Gva(virtual), Gpa(physical), size, permissions, **more)


@pytest.mark.parametrize(
    ("permissions", "bits"),
    [
        (R, P | NX),
        (R | W, P | RW | NX),
        (R | X, P),
        (R | W | X, P | RW),
        (R | U, P | US | NX),
        (R | W | X | U, P | RW | US),
    ],
)
def test_permissions_become_entry_bits(space: Any, permissions: Permission, bits: int) -> None:
    space.tables.map(mapped(0x40_0000, 0x1234_5000, SMALL, permissions))
    walk = space.tables.walk(Gva(0x40_0000))
    assert walk.steps[-1].entry == 0x1234_5000 | bits
    assert [step.level for step in walk.steps] == ["PML4", "PDPT", "PD", "PT"]
    for step in walk.steps[:-1]:  # as permissive as may be: the leaf decides
        assert step.entry & 0xFFF == P | RW | (bits & US)
        assert not step.entry & NX


@pytest.mark.parametrize(
    ("caching", "small", "large"),
    [
        (Caching.WRITE_BACK, 0, 0),
        (Caching.WRITE_THROUGH, PWT, PWT),
        (Caching.UNCACHED, PCD, PCD),
        (Caching.DEVICE, PCD | PWT, PCD | PWT),
        (Caching.WRITE_COMBINING, 1 << 7, 1 << 12),
    ],
)
def test_caching_becomes_pat_bits(space: Any, caching: Caching, small: int, large: int) -> None:
    space.tables.map(mapped(0, LARGE, LARGE, R | X, caching=caching))
    space.tables.map(mapped(LARGE, LARGE, SMALL, R | X, caching=caching))
    big, little = space.tables.walk(Gva(0)), space.tables.walk(Gva(LARGE))
    assert big.steps[-1].entry == LARGE | P | PS | large
    assert little.steps[-1].entry == LARGE | P | small
    assert big.caching == little.caching == caching


def test_pat_entry_of_each_memory_type() -> None:
    types = {Caching.WRITE_BACK: 6, Caching.WRITE_THROUGH: 4, Caching.UNCACHED: 7, Caching.DEVICE: 0,
             Caching.WRITE_COMBINING: 1}  # fmt: skip
    for index, caching in enumerate(paging.CACHING_OF_INDEX):
        assert paging.PAT_VALUE >> (8 * index) & 0xFF == types[caching]
    assert paging.PAT_VALUE & 0xFFFF_FFFF == 0x0007_0406  # as after reset


@pytest.mark.parametrize(
    ("largest", "bound", "expected"),
    [
        (HUGE, 0, HUGE),
        (LARGE, 0, LARGE),
        (SMALL, 0, SMALL),
        (HUGE, LARGE, LARGE),
        (HUGE, SMALL, SMALL),
        (LARGE, HUGE, LARGE),
    ],
)
def test_largest_page_that_cpu_and_mapping_allow(make_space: Any, largest: int, bound: int, expected: int) -> None:
    space = make_space(largest)
    space.tables.map(mapped(HUGE, 4 * HUGE, HUGE, R, largest_page=bound))
    walk = space.tables.walk(Gva(HUGE + 0x1234_5678))
    assert walk.page_size == expected
    assert walk.physical == 4 * HUGE + 0x1234_5678


def test_a_mapping_that_starts_off_a_boundary_uses_large_pages_inside(space: Any) -> None:
    space.tables.map(mapped(LARGE - SMALL, 3 * LARGE - SMALL, 2 * LARGE + 2 * SMALL))
    sizes = [space.tables.walk(Gva(at)).page_size for at in (LARGE - SMALL, LARGE, 3 * LARGE - 1, 3 * LARGE)]
    assert sizes == [SMALL, LARGE, LARGE, SMALL]
    assert space.tables.walk(Gva(3 * LARGE)).physical == 5 * LARGE


def test_user_bit_reaches_upper_levels_when_protection_changes(space: Any) -> None:
    space.tables.map(mapped(0, 0, 2 * LARGE, R | W))
    assert not space.tables.walk(Gva(0)).steps[0].entry & US
    space.tables.protect(Gva(SMALL), SMALL, R | U)
    assert space.tables.walk(Gva(SMALL)).permissions == R | U
    assert space.tables.walk(Gva(0)).permissions == R | W
    assert space.tables.walk(Gva(2 * SMALL)).permissions == R | W


def test_both_halves(space: Any) -> None:
    top = (1 << 64) - LARGE
    space.tables.map(mapped(top, 0, LARGE, R | W))
    space.tables.map(mapped((1 << 47) - LARGE, LARGE, LARGE, R))
    assert space.tables.walk(Gva((1 << 64) - 1)).physical == LARGE - 1
    assert space.tables.walk(Gva((1 << 47) - 1)).physical == 2 * LARGE - 1
    assert [row[0] for row in space.tables.accessed_dirty(Gva(top), LARGE)] == [top]
    space.tables.unmap(Gva((1 << 64) - SMALL), SMALL)
    assert space.tables.walk(Gva((1 << 64) - 1)).physical is None
    assert space.tables.walk(Gva((1 << 64) - SMALL - 1)).physical == LARGE - SMALL - 1


def test_user_mode_never_gets_the_last_page_of_the_lower_half(space: Any) -> None:
    last = (1 << 47) - SMALL
    with pytest.raises(MappingError, match="SYSCALL"):
        space.tables.map(mapped(last, 0, SMALL, R | X | U))
    space.tables.map(mapped(last, 0, SMALL, R | X))
    with pytest.raises(MappingError, match="SYSCALL"):
        space.tables.protect(Gva(last), SMALL, R | U)
    space.tables.map(mapped(last - SMALL, 0, SMALL, R | X | U))


def test_non_canonical_addresses(space: Any) -> None:
    with pytest.raises(MappingError, match="not canonical"):
        space.tables.map(mapped(1 << 47, 0, SMALL))
    with pytest.raises(MappingError, match="not canonical"):
        space.tables.map(mapped((1 << 47) - SMALL, 0, 2 * SMALL))
    assert "canonical" in space.tables.walk(Gva(1 << 47)).reason
    assert "64-bit" in space.tables.walk(Gva(1 << 64)).reason


def test_errors_name_addresses(space: Any) -> None:
    space.tables.map(mapped(0x40_0000, 0, 4 * SMALL))
    with pytest.raises(
        MappingError, match=r"0x401000-0x402000 r---.*0x401000 is mapped already.*guest-physical 0x1000"
    ):
        space.tables.map(mapped(0x40_1000, 0, SMALL))
    with pytest.raises(MappingError, match="nothing is mapped at 0x404000"):
        space.tables.unmap(Gva(0x40_0000), 5 * SMALL)
    with pytest.raises(MappingError, match=r"mappings overlap: 0x0-0x2000 r--- \(a\) and 0x1000-0x3000 r--- \(b\)"):
        space.tables.map_all([mapped(0, 0, 2 * SMALL, name="a"), mapped(SMALL, 0, 2 * SMALL, name="b")])


def test_full_tables_say_how_many_are_missing(make_space: Any) -> None:
    space = make_space(SMALL, 4 * SMALL)
    with pytest.raises(MappingError, match=r"full: 1 more table pages"):
        space.tables.map(mapped(LARGE - SMALL, 0, 2 * SMALL))
    assert space.tables.free_tables == 3
    assert not any(space.bytes[:])


def test_accessed_and_dirty_bits(space: Any) -> None:
    space.tables.map(mapped(0, 0, LARGE, R | W))
    space.tables.map(mapped(LARGE, LARGE, 2 * SMALL, R | W))
    for address, bits in ((0, A), (LARGE + SMALL, A | D)):
        step = space.tables.walk(Gva(address)).steps[-1]
        space.put_entry(step.entry_address, step.entry | bits)
    expected = [(0, LARGE, True, False), (LARGE, SMALL, False, False), (LARGE + SMALL, SMALL, True, True)]
    assert space.tables.accessed_dirty(Gva(0), 2 * LARGE) == expected
    assert space.tables.walk(Gva(LARGE + SMALL)).dirty
    assert space.tables.accessed_dirty(Gva(0), 2 * LARGE, clear=True) == expected
    assert [row[2:] for row in space.tables.accessed_dirty(Gva(0), 2 * LARGE)] == [(False, False)] * 3


def test_a_split_keeps_accessed_and_dirty_bits(space: Any) -> None:
    space.tables.map(mapped(0, 0, HUGE, R | W, caching=Caching.WRITE_COMBINING))
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry | A | D)
    space.tables.protect(Gva(SMALL), SMALL, R)
    for address in (0, SMALL, 2 * SMALL, LARGE, HUGE - SMALL):
        walk = space.tables.walk(Gva(address))
        assert (walk.physical, walk.accessed, walk.dirty) == (address, True, True)
        assert walk.caching == Caching.WRITE_COMBINING
    assert space.tables.walk(Gva(LARGE)).page_size == LARGE


def test_many_pages_are_listed_in_chunks(make_space: Any) -> None:
    space = make_space(SMALL)
    space.tables.map(mapped(LARGE, 0, 10_000 * SMALL))
    listed = space.tables.accessed_dirty(Gva(0), 64 << 20)
    assert [row[0] for row in listed] == [LARGE + number * SMALL for number in range(10_000)]


def test_emptied_tables_are_used_again_only_by_a_later_edit(make_space: Any) -> None:
    """Between an unmap and the TLB flush that follows it a CPU may still walk through the old table."""
    space = make_space(SMALL, 8 * SMALL)
    before = space.tables.free_tables
    for number in range(40):
        at = number * HUGE
        space.tables.map(mapped(at, 0, SMALL))
        tables = {step.entry_address & ~0xFFF for step in space.tables.walk(Gva(at)).steps}
        space.tables.unmap(Gva(at), SMALL)
        assert space.tables.free_tables == before
        assert len(tables) == 4


def test_forged_entries_give_a_reason(space: Any) -> None:
    space.tables.map(mapped(0, 0, SMALL))
    pml4, pdpt, pd, pt = space.tables.walk(Gva(0)).steps
    space.put_entry(pd.entry_address, 0x7000_0000_0000 | P | RW)
    walk = space.tables.walk(Gva(0))
    assert walk.physical is None
    assert "PD entry" in walk.reason
    assert "outside guest memory" in walk.reason
    with pytest.raises(MappingError, match="damaged"):
        space.tables.unmap(Gva(0), SMALL)
    space.put_entry(pd.entry_address, pd.entry)
    space.put_entry(pml4.entry_address, pml4.entry | PS)
    assert "reserved" in space.tables.walk(Gva(0)).reason
    space.put_entry(pml4.entry_address, pml4.entry)
    space.put_entry(pdpt.entry_address, HUGE | 0x2000 | PS | P)
    assert "reserved" in space.tables.walk(Gva(0)).reason
    assert pt.level == "PT"


def test_tables_that_contain_themselves_end_quickly(space: Any) -> None:
    root = space.tables.root
    for index in range(512):
        space.put_entry(root + 8 * index, root | P | RW | US)
    whole = (1 << 47) - LARGE
    edits: list[Callable[[], object]] = [
        lambda: space.tables.unmap(Gva(0), whole),
        lambda: space.tables.protect(Gva(0), whole, R),
        lambda: space.tables.accessed_dirty(Gva(0), whole, clear=True),
    ]
    for edit in edits:
        with pytest.raises(MappingError, match="repeat themselves"):
            edit()
    with pytest.raises(MappingError):
        space.tables.map(mapped(0, 0, HUGE))
    assert space.tables.walk(Gva(0)).physical == root


def test_a_huge_page_where_the_cpu_has_none_is_reserved(make_space: Any) -> None:
    space = make_space(LARGE)
    space.tables.map(mapped(0, 0, SMALL))
    space.put_entry(space.tables.walk(Gva(0)).steps[1].entry_address, P | PS)
    assert "reserved" in space.tables.walk(Gva(0)).reason


def test_tables_in_read_only_memory_are_walked_but_not_edited(space: Any) -> None:
    space.tables.map(mapped(0, 0, SMALL))
    step = space.tables.walk(Gva(0)).steps[2]
    other = mmap.mmap(-1, SMALL, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    other[:8] = (0x5000 | P).to_bytes(8, "little")
    space.memory.add(MemoryRegion(Gpa(0x1000_0000), memoryview(other).toreadonly(), R, "read-only"))
    space.put_entry(step.entry_address, 0x1000_0000 | P | RW)
    assert space.tables.walk(Gva(0)).physical == 0x5000
    edits: list[Callable[[], object]] = [
        lambda: space.tables.unmap(Gva(0), SMALL),
        lambda: space.tables.map(mapped(SMALL, 0, SMALL)),
        lambda: space.tables.accessed_dirty(Gva(0), SMALL, clear=True),
    ]
    for edit in edits:
        with pytest.raises(MappingError, match="read-only"):
            edit()
    assert space.tables.accessed_dirty(Gva(0), SMALL) == [(0, SMALL, False, False)]


def test_table_memory_is_checked(space: Any) -> None:
    with pytest.raises(MappingError, match="given already"):
        space.tables.add_tables(space.region)
    page = memoryview(mmap.mmap(-1, SMALL, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    with pytest.raises(MappingError, match="read-only"):
        space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), page.toreadonly(), R))
    with pytest.raises(MappingError, match="whole pages"):
        space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), page[:100], R))
    free = space.tables.free_tables
    space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), page, R | W))
    assert space.tables.free_tables == free + 1


def test_python_threads_may_edit_at_the_same_time(make_space: Any) -> None:
    space = make_space(SMALL)
    free = space.tables.free_tables
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(60):
                at = (number * 64 + turn % 8) * LARGE
                space.tables.map(mapped(at, 0x1000 * number, 700 * SMALL, R | W))
                assert space.tables.walk(Gva(at)).physical == 0x1000 * number
                space.tables.protect(Gva(at), 700 * SMALL, R)
                space.tables.unmap(Gva(at), 700 * SMALL)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert space.tables.free_tables == free


@pytest.mark.parametrize(
    ("mapping", "tables"),
    [
        (mapped(0, 0, SMALL), 3),
        (mapped(0, 0, HUGE), 1),
        (mapped(0, LARGE, HUGE), 2),
        (mapped(0, SMALL, HUGE), 514),
        (mapped(0, 0, HUGE, largest_page=SMALL), 514),
        (mapped(LARGE - SMALL, SMALL, 2 * SMALL), 4),
        (mapped(LARGE - SMALL, LARGE - SMALL, LARGE + 2 * SMALL), 4),
        (mapped(HUGE - SMALL, HUGE - SMALL, HUGE + 2 * SMALL), 5),
        (mapped((512 << 30) - SMALL, 0, 2 * SMALL), 6),
    ],
)
def test_tables_needed_is_exact(space: Any, mapping: Mapping, tables: int) -> None:
    assert space.tables.tables_needed([mapping]) == tables
    free = space.tables.free_tables
    space.tables.map(mapping)
    assert free - space.tables.free_tables == tables


def test_tables_are_shared_between_neighbours(space: Any) -> None:
    neighbours = [mapped(number * 4 * SMALL, 0, SMALL) for number in range(100)]
    assert space.tables.tables_needed(neighbours) == 3
    space.tables.map_all(neighbours)
    assert all(space.tables.walk(Gva(m.virtual)).physical == 0 for m in neighbours)
    assert space.tables.walk(Gva(SMALL)).physical is None
