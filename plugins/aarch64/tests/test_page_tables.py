"""What is particular to AArch64's page tables; what all ISAs share is in the conformance suite."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import pytest

from rift_aarch64 import Aarch64Config, paging
from rift_core.backend import CpuFeatures
from rift_core.errors import ConfigError, MappingError
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Callable

R, W, X, U = Permission.READ, Permission.WRITE, Permission.EXECUTE, Permission.USER
VALID, TABLE, EL0, RO, AF, NG = 1 << 0, 1 << 1, 1 << 6, 1 << 7, 1 << 10, 1 << 11
DBM, CONTIGUOUS, PXN, UXN, WAS_DIRTY = (1 << bit for bit in (51, 52, 53, 54, 55))
INNER, OUTER = 3 << 8, 2 << 8
SMALL, LARGE, HUGE = 0x1000, 0x20_0000, 0x4000_0000
SMALL16, LARGE16 = 0x4000, 0x200_0000
UPPER = 0xFFFF_0000_0000_0000


def mapped(virtual: int, physical: int, size: int, permissions: Permission = R, **more: Any) -> Mapping:
    return Mapping(Gva(virtual), Gpa(physical), size, permissions, **more)


@pytest.mark.parametrize(
    ("permissions", "bits"),
    [
        (R, RO | PXN | UXN),
        (R | W, RO | DBM | PXN | UXN),
        (R | X, RO | UXN),
        (R | W | X, RO | DBM | UXN),
        (R | U, EL0 | RO | PXN | UXN),
        (R | X | U, EL0 | RO),
        (R | W | X | U, EL0 | RO | DBM),
    ],
)
def test_permissions_become_descriptor_bits(space: Any, permissions: Permission, bits: int) -> None:
    page = space.geometry.page
    space.tables.map(mapped(8 * page, 0x1234 * page, page, permissions))
    walk = space.tables.walk(Gva(8 * page))
    assert walk.steps[-1].entry == 0x1234 * page | bits | VALID | TABLE | INNER | NG
    assert [step.level for step in walk.steps] == ["level 0", "level 1", "level 2", "level 3"]
    for step in walk.steps[:-1]:  # no limits: the leaf decides
        assert step.entry & ~0xFFFF_FFFF_F000 == VALID | TABLE
    assert walk.permissions == permissions


@pytest.mark.parametrize(("tracking", "bits"), [(0, AF), (1, 0), (2, RO | DBM)])
def test_what_the_cpu_keeps_decides_how_a_writable_page_starts(make_space: Any, tracking: int, bits: int) -> None:
    space = make_space(tracking=tracking)
    space.tables.map(mapped(0, 0, SMALL, R | W))
    walk = space.tables.walk(Gva(0))
    assert walk.steps[-1].entry == bits | VALID | TABLE | INNER | NG | PXN | UXN
    assert (walk.accessed, walk.dirty) == (tracking < 1, tracking < 2)


@pytest.mark.parametrize(
    ("caching", "index", "shareability", "attribute"),
    [
        (Caching.WRITE_BACK, 0, INNER, 0xFF),
        (Caching.WRITE_THROUGH, 1, INNER, 0xBB),
        (Caching.UNCACHED, 2, OUTER, 0x44),
        (Caching.WRITE_COMBINING, 3, OUTER, 0x44),
        (Caching.DEVICE, 4, OUTER, 0x04),
    ],
)
def test_caching_becomes_an_attribute_index(
    space: Any, caching: Caching, index: int, shareability: int, attribute: int
) -> None:
    page, large = space.geometry.page_sizes[:2]
    space.tables.map(mapped(0, large, large, caching=caching))
    space.tables.map(mapped(large, large, page, caching=caching))
    for address, kind in ((0, 0), (large, TABLE)):
        walk = space.tables.walk(Gva(address))
        assert walk.steps[-1].entry == large | index << 2 | shareability | VALID | kind | RO | PXN | UXN | NG
        assert walk.caching == caching
    assert paging.MAIR_VALUE >> 8 * index & 0xFF == attribute


def test_the_halves_have_their_own_tables(space: Any) -> None:
    page, large = space.geometry.page_sizes[:2]
    space.tables.map(mapped(UPPER, 0, page, R | W))
    space.tables.map(mapped((1 << 64) - large, large, large, R | X))
    space.tables.map(mapped((1 << 48) - large, 2 * large, large, R))
    root = space.tables.root
    for address, physical, table in (
        (UPPER + 5, 5, root + page),
        ((1 << 64) - 1, 2 * large - 1, root + page),
        ((1 << 48) - 1, 3 * large - 1, root),
    ):
        walk = space.tables.walk(Gva(address))
        assert walk.physical == physical
        assert walk.steps[0].entry_address // page * page == table
        assert bool(walk.steps[-1].entry & NG) == (table == root)
    assert [row[0] for row in space.tables.accessed_dirty(Gva(UPPER), page)] == [UPPER]
    assert space.tables.walk(Gva(0)).physical is None
    space.tables.unmap(Gva((1 << 64) - page), page)
    assert space.tables.walk(Gva((1 << 64) - 1)).physical is None
    assert space.tables.walk(Gva((1 << 64) - page - 1)).physical == 2 * large - page - 1


def test_addresses_in_neither_half(space: Any) -> None:
    page = space.geometry.page
    with pytest.raises(MappingError, match="no table translates"):
        space.tables.map(mapped(1 << 48, 0, page))
    with pytest.raises(MappingError, match="no table translates"):
        space.tables.map(mapped((1 << 48) - page, 0, 2 * page))
    with pytest.raises(MappingError, match="no table translates"):
        space.tables.map(mapped(UPPER - page, 0, page))
    assert "bits 63 to 48" in space.tables.walk(Gva(1 << 48)).reason
    assert "64-bit" in space.tables.walk(Gva(1 << 64)).reason


def test_addresses_are_multiples_of_the_granule(make_space: Any) -> None:
    space = make_space(granule=SMALL16)
    with pytest.raises(MappingError, match="0x4000, the granule"):
        space.tables.map(mapped(SMALL, 0, SMALL16))
    with pytest.raises(MappingError, match="0x4000, the granule"):
        space.tables.map(mapped(0, SMALL, SMALL16))
    with pytest.raises(MappingError, match="smaller than a page"):
        space.tables.map(mapped(0, 0, SMALL16, largest_page=SMALL))


def test_physical_addresses_end_where_the_cpu_says(make_space: Any) -> None:
    space = make_space(physical=1)
    last = (1 << 36) - SMALL
    space.tables.map(mapped(0, last, SMALL))
    with pytest.raises(MappingError, match="beyond the 36 bits"):
        space.tables.map(mapped(SMALL, last, 2 * SMALL))
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry | 1 << 40)
    assert "36 bits" in space.tables.walk(Gva(0)).reason


@pytest.mark.parametrize(
    ("granule", "setting", "bound", "expected"),
    [
        (SMALL, "1GiB", 0, HUGE),
        (SMALL, "32MiB", 0, LARGE),
        (SMALL, "2MiB", 0, LARGE),
        (SMALL, "4KiB", 0, SMALL),
        (SMALL, "1GiB", LARGE, LARGE),
        (SMALL, "1GiB", 2 * SMALL, SMALL),
        (SMALL16, "1GiB", 0, LARGE16),
        (SMALL16, "2MiB", 0, SMALL16),
        (SMALL16, "4KiB", 0, SMALL16),
        (SMALL16, "1GiB", LARGE, SMALL16),
    ],
)
def test_largest_page_that_granule_setting_and_mapping_allow(
    make_space: Any, granule: int, setting: Any, bound: int, expected: int
) -> None:
    space = make_space(granule=granule, config=Aarch64Config(largest_page=setting))
    space.tables.map(mapped(HUGE, 4 * HUGE, HUGE, R, largest_page=bound))
    walk = space.tables.walk(Gva(HUGE + 0x1234_5678))
    assert walk.page_size == expected
    assert walk.physical == 4 * HUGE + 0x1234_5678


def test_granules_and_cpus() -> None:
    both = CpuFeatures(page_sizes=(0x1000, 0x4000, 0x20_0000, 0x200_0000, 0x4000_0000))
    assert paging.geometry(Aarch64Config(), both).page_sizes == (SMALL, LARGE, HUGE)
    assert paging.geometry(Aarch64Config(granule="16KiB"), both).page_sizes == (SMALL16, LARGE16)
    only = CpuFeatures(page_sizes=(0x4000, 0x200_0000))
    assert paging.geometry(Aarch64Config(), only).page == SMALL16
    with pytest.raises(ConfigError, match=r"isa.granule is 4KiB.*only the granule 16 KiB"):
        paging.geometry(Aarch64Config(granule="4KiB"), only)
    with pytest.raises(ConfigError, match="64 KiB"):
        paging.geometry(Aarch64Config(), CpuFeatures(page_sizes=(0x1_0000,)))
    assert paging.geometry(Aarch64Config(), CpuFeatures()).physical_bits == 40, "where the backend does not tell"
    wide = CpuFeatures(id_registers={"id_aa64mmfr0_el1": 6})
    assert paging.geometry(Aarch64Config(), wide).physical_bits == 48, "52 bits need FEAT_LPA2"


def test_protection_keeps_dirty_state(make_space: Any) -> None:
    space = make_space()
    space.tables.map(mapped(0, 0, SMALL, R | W))
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry & ~RO | AF)  # the CPU wrote
    assert space.tables.walk(Gva(0)).dirty
    space.tables.protect(Gva(0), SMALL, R)
    entry = space.entry(step.entry_address)
    assert entry & (RO | DBM | WAS_DIRTY) == RO | WAS_DIRTY, "read-only for the CPU, and still known as dirty"
    assert space.tables.walk(Gva(0)).dirty
    space.tables.protect(Gva(0), SMALL, R | W)
    assert space.entry(step.entry_address) & (RO | DBM | WAS_DIRTY) == DBM
    assert space.tables.accessed_dirty(Gva(0), SMALL, clear=True) == [(0, SMALL, True, True)]
    assert space.entry(step.entry_address) & (RO | DBM | AF) == RO | DBM
    assert space.tables.accessed_dirty(Gva(0), SMALL) == [(0, SMALL, False, False)]
    assert space.tables.walk(Gva(0)).permissions == R | W


def test_without_a_cpu_that_keeps_marks_clearing_changes_nothing(make_space: Any) -> None:
    space = make_space(tracking=0)
    space.tables.map(mapped(0, 0, SMALL, R | W))
    space.tables.map(mapped(SMALL, SMALL, SMALL, R))
    for _ in range(2):
        assert space.tables.accessed_dirty(Gva(0), LARGE, clear=True) == [
            (0, SMALL, True, True),
            (SMALL, SMALL, True, False),
        ]
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry & ~AF)
    assert "access flag clear" in space.tables.walk(Gva(0)).reason


def test_a_split_keeps_marks_and_attributes(make_space: Any) -> None:
    space = make_space()
    space.tables.map(mapped(0, 0, HUGE, R | W | U, caching=Caching.WRITE_THROUGH))
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry & ~RO | AF)
    assert space.tables.wants_pause(Gva(SMALL), SMALL)
    assert not space.tables.wants_pause(Gva(0), HUGE)
    space.tables.protect(Gva(SMALL), SMALL, R)
    for address in (0, SMALL, 2 * SMALL, LARGE, HUGE - SMALL):
        walk = space.tables.walk(Gva(address))
        assert (walk.physical, walk.accessed, walk.dirty) == (address, True, True)
        assert walk.caching == Caching.WRITE_THROUGH
        assert walk.permissions == (R if address == SMALL else R | W | U)
    assert space.tables.walk(Gva(LARGE)).page_size == LARGE
    assert not space.tables.wants_pause(Gva(2 * SMALL), SMALL)


@pytest.mark.parametrize(("granule", "page", "run"), [(SMALL, SMALL, 16), (SMALL16, SMALL16, 128)])
def test_a_contiguous_run_is_marked_and_dissolved(make_space: Any, granule: int, page: int, run: int) -> None:
    space = make_space(granule=granule, config=Aarch64Config(contiguous=True))
    space.tables.map(mapped(0, run * page, (2 * run + 1) * page, R | W))

    def hints() -> list[bool]:
        entries = (space.tables.walk(Gva(at * page)).steps[-1].entry for at in range(2 * run + 1))
        return [bool(entry & CONTIGUOUS) for entry in entries]

    assert hints() == [True] * 2 * run + [False]
    step = space.tables.walk(Gva(3 * page)).steps[-1]
    space.put_entry(step.entry_address, step.entry & ~RO | AF)
    marks = [row[2:] for row in space.tables.accessed_dirty(Gva(0), 2 * run * page)]
    assert marks == [(True, True)] * run + [(False, False)] * run, "any page speaks for its run"
    assert space.tables.wants_pause(Gva(5 * page), page)
    assert not space.tables.wants_pause(Gva(0), run * page)
    space.tables.protect(Gva(5 * page), page, R)
    assert hints() == [False] * run + [True] * run + [False]
    marks = [row[2:] for row in space.tables.accessed_dirty(Gva(0), 2 * run * page)]
    assert marks == [(True, True)] * run + [(False, False)] * run
    assert space.tables.accessed_dirty(Gva(0), 2 * run * page, clear=True) == [
        (at * page, page, at < run, at < run) for at in range(2 * run)
    ]
    assert not any(any(row[2:]) for row in space.tables.accessed_dirty(Gva(0), 2 * run * page))


def test_clearing_the_marks_of_a_run_clears_each_once(make_space: Any) -> None:
    space = make_space(config=Aarch64Config(contiguous=True))
    space.tables.map(mapped(0, 0, 16 * SMALL, R | W))
    step = space.tables.walk(Gva(0)).steps[-1]
    space.put_entry(step.entry_address, step.entry & ~RO | AF)
    assert [row[2:] for row in space.tables.accessed_dirty(Gva(0), 16 * SMALL, clear=True)] == [(True, True)] * 16
    assert [row[2:] for row in space.tables.accessed_dirty(Gva(0), 16 * SMALL)] == [(False, False)] * 16


def test_limits_of_a_table_descriptor_count(make_space: Any) -> None:
    space = make_space()
    space.tables.map(mapped(0, 0, 2 * SMALL, R | W | X | U))
    steps = space.tables.walk(Gva(0)).steps
    for level, bit, left in ((0, 62, R | X | U), (1, 61, R | W | X), (2, 60, R | W | U), (2, 59, R | W | X | U)):
        step = steps[level]
        space.put_entry(step.entry_address, step.entry | 1 << bit)
        assert space.tables.walk(Gva(0)).permissions == left
        space.put_entry(step.entry_address, step.entry)
    space.put_entry(steps[0].entry_address, steps[0].entry | 1 << 62)
    space.tables.protect(Gva(0), SMALL, R | W)
    assert space.tables.walk(Gva(0)).permissions == R | W, "an edit takes limits away"


def test_forged_entries_give_a_reason(make_space: Any) -> None:
    space = make_space()
    space.tables.map(mapped(0, 0, SMALL))
    zero, _, two, three = space.tables.walk(Gva(0)).steps

    def reason(step: Any, entry: int) -> str:
        space.put_entry(step.entry_address, entry)
        walk = space.tables.walk(Gva(0))
        space.put_entry(step.entry_address, step.entry)
        assert walk.physical is None
        return str(walk.reason)

    assert "outside guest memory" in reason(two, 0x7000_0000_0000 | VALID | TABLE)
    assert "not valid" in reason(two, 0)
    assert "no encoding" in reason(three, 0x1000 | VALID)
    assert "no encoding" in reason(zero, VALID)
    space.put_entry(two.entry_address, 0x7000_0000_0000 | VALID | TABLE)
    with pytest.raises(MappingError, match="damaged"):
        space.tables.unmap(Gva(0), SMALL)


def test_tables_that_contain_themselves_end_quickly(space: Any) -> None:
    root = space.tables.root
    page = space.geometry.page
    for index in range(page // 8):
        space.put_entry(root + 8 * index, root | VALID | TABLE | AF)
    whole = (1 << 48) - page
    edits: list[Callable[[], object]] = [
        lambda: space.tables.unmap(Gva(0), whole),
        lambda: space.tables.protect(Gva(0), whole, R),
        lambda: space.tables.accessed_dirty(Gva(0), whole, clear=True),
    ]
    for edit in edits:
        with pytest.raises(MappingError, match="repeat themselves"):
            edit()
    assert space.tables.walk(Gva(0)).physical == root
    space.tables.wants_pause(Gva(0), whole)


def test_table_memory_is_checked(space: Any) -> None:
    page = space.geometry.page
    with pytest.raises(MappingError, match="given already"):
        space.tables.add_tables(space.region)
    view = memoryview(mmap.mmap(-1, page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    with pytest.raises(MappingError, match="read-only"):
        space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), view.toreadonly(), R))
    with pytest.raises(MappingError, match="whole pages"):
        space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), view[:100], R))
    free = space.tables.free_tables
    space.tables.add_tables(MemoryRegion(Gpa(0x9000_0000), view, R | W))
    assert space.tables.free_tables == free + 1


def test_both_top_level_tables_need_room(make_space: Any) -> None:
    with pytest.raises(MappingError, match="top-level tables do not fit"):
        make_space(SMALL)
    assert make_space(2 * SMALL).tables.free_tables == 0


@pytest.mark.parametrize(
    ("granule", "mapping", "tables"),
    [
        (SMALL, mapped(0, 0, SMALL), 3),
        (SMALL, mapped(0, 0, HUGE), 1),
        (SMALL, mapped(0, LARGE, HUGE), 2),
        (SMALL, mapped(0, 0, HUGE, largest_page=SMALL), 514),
        (SMALL, mapped(LARGE - SMALL, SMALL, 2 * SMALL), 4),
        (SMALL, mapped(HUGE - SMALL, HUGE - SMALL, HUGE + 2 * SMALL), 5),
        (SMALL, mapped((512 << 30) - SMALL, 0, 2 * SMALL), 6),
        (SMALL, mapped(UPPER, 0, SMALL), 3),
        (SMALL16, mapped(0, 0, SMALL16), 3),
        (SMALL16, mapped(0, 0, LARGE16), 2),
        (SMALL16, mapped(0, 0, LARGE16, largest_page=SMALL16), 3),
        (SMALL16, mapped(LARGE16 - SMALL16, 0, 2 * SMALL16), 4),
        (SMALL16, mapped((64 << 30) - SMALL16, 0, 2 * SMALL16), 5),
        (SMALL16, mapped((1 << 47) - SMALL16, 0, 2 * SMALL16), 6),
    ],
)
def test_tables_needed_is_exact(make_space: Any, granule: int, mapping: Mapping, tables: int) -> None:
    space = make_space(granule=granule)
    assert space.tables.tables_needed([mapping]) == tables
    free = space.tables.free_tables
    space.tables.map(mapping)
    assert free - space.tables.free_tables == tables


def test_errors_name_addresses(make_space: Any) -> None:
    space = make_space()
    space.tables.map(mapped(0x40_0000, 0, 4 * SMALL))
    with pytest.raises(
        MappingError, match=r"0x401000-0x402000 r---.*0x401000 is mapped already.*guest-physical 0x1000"
    ):
        space.tables.map(mapped(0x40_1000, 0, SMALL))
    with pytest.raises(MappingError, match="nothing is mapped at 0x404000"):
        space.tables.unmap(Gva(0x40_0000), 5 * SMALL)
