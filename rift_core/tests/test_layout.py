"""The plan of memory: pure arithmetic, checked on made-up images."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core.backend import Limits
from rift_core.binary import Binary, Segment
from rift_core.errors import MappingError
from rift_core.isa import AreaRequest
from rift_core.layout import HUGE, MachinePlan, ThreadRequest, page_runs, plan
from rift_core.memory import Gva, Permission

PAGE = 0x1000
R, W, X = Permission.READ, Permission.WRITE, Permission.EXECUTE


@dataclass
class PlanningIsa:
    """What the layout asks of an ISA."""

    name: str = "made-up"
    page_sizes: tuple[int, ...] = (PAGE, HUGE)
    virtual_ranges: tuple[range, ...] = (range(0, 1 << 47), range((1 << 64) - (1 << 47), 1 << 64))
    areas: tuple[AreaRequest, ...] = field(default_factory=lambda: (AreaRequest("code", 100, R | X),))

    def tables_size(self, mappings: object) -> int:
        return 16 * PAGE

    def system_areas(self) -> tuple[AreaRequest, ...]:
        return self.areas

    def thread_areas(self, privilege: str) -> tuple[AreaRequest, ...]:
        return (AreaRequest("tables", PAGE, R | W),)


def segment(address: int, size: int, permissions: Permission, data: bytes = b"", name: str = "s") -> Segment:
    return Segment(Gva(address), size, memoryview(data), permissions, name)


def make_plan(
    *segments: Segment, limits: Limits | None = None, isa: PlanningIsa | None = None, **options: object
) -> MachinePlan:
    binary = Binary(None, "made", "made-up", Gva(segments[0].address), segments)
    threads = [ThreadRequest("main", 0x10000, "supervisor")]
    return plan(binary, isa or PlanningIsa(), limits or Limits(), threads, **options)  # type: ignore[arg-type]


def test_pages_that_two_segments_share_get_both_permissions() -> None:
    runs = page_runs([segment(0x1000, 0x1800, R | X), segment(0x2800, 0x1000, R | W)], PAGE)
    assert [(r.start, r.end, r.permissions) for r in runs] == [
        (0x1000, 0x2000, R | X),
        (0x2000, 0x3000, R | W | X),
        (0x3000, 0x4000, R | W),
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 14), st.sampled_from([R, R | W, R | X])), max_size=8
    )
)
def test_runs_cover_every_page_exactly_once(parts: list[tuple[int, int, Permission]]) -> None:
    segments = [segment(*part) for part in parts]
    pages: dict[int, Permission] = {}
    for part in segments:
        if part.memory_size:
            for page in range(part.address // PAGE, -(-(part.address + part.memory_size) // PAGE)):
                pages[page] = pages.get(page, Permission.NONE) | part.permissions
    found: dict[int, Permission] = {}
    for run in page_runs(segments, PAGE):
        for page in range(run.start // PAGE, run.end // PAGE):
            assert page not in found
            found[page] = run.permissions
    assert found == pages


def overlapping(ranges: list[tuple[int, int]]) -> bool:
    ranges = sorted(ranges)
    return any(a[1] > b[0] for a, b in itertools.pairwise(ranges))


def test_nothing_overlaps_and_everything_is_inside_ram() -> None:
    made = make_plan(segment(0x200000, 0x3000, R | X, b"x" * 10), segment(0x600000, 0x1000_0000, R | W))
    assert not overlapping([(m.virtual, m.end) for m in made.mappings])
    ram = [m for m in made.mappings if m.name not in ("doorbell", "tables")]
    physical = [(m.physical, m.physical + m.size) for m in ram]
    physical.append((made.tables.physical, made.tables.physical + made.tables.size))
    assert not overlapping(physical)
    assert all(made.ram.physical <= low and high <= made.ram.physical + made.ram.size for low, high in physical)
    assert made.heap.start >= max(high for _, high in physical)


@pytest.mark.parametrize(("guest", "host"), [(0x1000, 0x4000), (0x4000, 0x1000), (0x4000, 0x4000)])
def test_the_larger_of_both_page_sizes_counts(guest: int, host: int) -> None:
    """Tables with the 16 KiB granule, and hosts whose slots are whole pages of 16 KiB."""
    file = mmap.mmap(-1, 0x100000)
    mapped = Segment(Gva(0x40_0000), 0x10_0000, memoryview(file), R, "rodata", mappable=True)
    made = make_plan(
        segment(0x200000, 0x1800, R | X, b"x" * 10), segment(0x202000, 0x900, R | W), mapped,
        limits=Limits(page_size=host), isa=PlanningIsa(page_sizes=(guest, HUGE)),
    )  # fmt: skip
    for mapping in made.mappings:
        assert mapping.virtual % 0x4000 == mapping.physical % 0x4000 == mapping.size % 0x4000 == 0, mapping
    for region in made.regions:
        assert region.physical % 0x4000 == region.size % 0x4000 == 0, region.name
        assert region.physical >= 0x7000_4000 or region.physical + region.size <= 0x7000_0000
    assert not overlapping([(m.virtual, m.end) for m in made.mappings])
    assert made.heap.start % 0x4000 == len(made.heap) % 0x4000 == 0
    shared = next(m for m in made.mappings if m.virtual == 0x20_0000)
    assert shared.permissions == R | W | X, "where segments share a page, their permissions add up"


def test_guard_pages_stand_around_every_area() -> None:
    made = make_plan(segment(0x200000, 0x1000, R | X))
    mapped = {page for m in made.mappings for page in range(m.virtual, m.end, PAGE)}
    for area in made.areas.values():
        assert area.virtual - PAGE not in mapped, area.name
        assert area.virtual + area.size not in mapped, area.name


def test_large_extents_keep_their_place_inside_a_large_page() -> None:
    made = make_plan(segment(0x600000 + 0x5000, 3 * HUGE, R | W))
    (mapping,) = [m for m in made.mappings if m.name == "s"]
    assert mapping.virtual % HUGE == mapping.physical % HUGE


def test_ram_avoids_reserved_windows() -> None:
    limits = Limits(gpa_bits=40, reserved=(range(0x1000_0000, 0x2000_0000),))
    made = make_plan(segment(0x200000, 0x3000_0000, R | W), limits=limits)
    ram = made.ram
    assert not (ram.physical <= 0x7000_0000 < ram.physical + ram.size)
    assert not (ram.physical < 0x2000_0000 and ram.physical + ram.size > 0x1000_0000)


def test_big_file_parts_become_regions_of_their_own() -> None:
    file = mmap.mmap(-1, 0x100000)
    data = memoryview(file)
    mapped = Segment(Gva(0x400000), 0x100000, data, R, "rodata", mappable=True)
    made = make_plan(mapped, segment(0x200000, 0x1000, R | X))
    assert [(r.name, r.size, r.permissions) for r in made.regions[1:]] == [("rodata", 0x100000, R)]
    assert not any(p.segment is mapped for p in made.placements)


def test_the_copied_edges_of_a_file_part_are_complete() -> None:
    file = mmap.mmap(-1, 0x100000)
    mapped = Segment(Gva(0x400000 + 0x800), 0x90000, memoryview(file)[0x800:0x90800], R, "text", mappable=True)
    made = make_plan(mapped)
    covered = sum(p.size for p in made.placements) + sum(r.size for r in made.regions if r.segment is mapped)
    assert covered == 0x90000
    assert len(made.regions) == 2


@pytest.mark.parametrize(
    ("segments", "options", "words"),
    [
        ([segment(0x200000, 0x1000, R)], {"ram_size": 0x2000}, "memory.size"),
        ([segment(0x6FFF_F000, 0x3000, R)], {}, "memory.doorbell"),
        ([segment(1 << 47, 0x1000, R)], {}, "not inside the address space"),
        ([segment((1 << 64) - 0x1000, 0x2000, R)], {}, "not inside the address space"),
        ([segment(0x1_0000_0000, 1 << 40, R)], {"limits": Limits(gpa_bits=36)}, "guest-physical addresses"),
        ([segment(0x200000, 0x1000, R)], {"doorbell_address": 0x70000010}, "page size"),
    ],
)
def test_what_cannot_be_laid_out_is_one_clear_error(
    segments: list[Segment], options: dict[str, object], words: str
) -> None:
    with pytest.raises(MappingError, match=words):
        make_plan(*segments, **options)  # type: ignore[arg-type]


def test_user_images_are_accessible_in_user_mode_and_stacks_of_supervisors_are_not() -> None:
    made = make_plan(segment(0x200000, 0x1000, R | X), user_image=True)
    image = next(m for m in made.mappings if m.name == "s")
    stack = next(m for m in made.mappings if m.name == "main/stack")
    assert image.permissions & Permission.USER
    assert not stack.permissions & Permission.USER
