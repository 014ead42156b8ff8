"""Where everything goes: a pure plan of guest-physical regions and guest-virtual mappings.

The plan is the whole of what ``rift check`` shows; making a machine only carries it out. Guest RAM is
one region; big page-aligned parts of a mapped file become regions of their own, without a copy.

Guest-physical space, from below: RAM at the lowest address that avoids the doorbell and the windows that
the hypervisor reserves, then file regions. Guest-virtual space: the segments where the file wants them,
the doorbell at its fixed address, and a window of Rift's own for stacks and tables.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from rift_core import doorbell
from rift_core.errors import MappingError
from rift_core.host_memory import buffer_address
from rift_core.memory import Caching, Gpa, Gva, Mapping, Permission

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rift_core.backend import Limits
    from rift_core.binary import Binary, Segment
    from rift_core.isa import AreaRequest, Isa, Privilege

WINDOW = 0x6000_0000_0000
"""Where Rift's own virtual window starts unless the image stands there: in the lower half on every ISA."""

WINDOW_STEP = 0x100_0000_0000
"""How far the window moves on when it is taken."""

WINDOW_SIZE = 0x80_0000_0000

HUGE = 0x20_0000
"""Extents of at least this size keep their position inside a 2 MiB page, so that large pages fit."""

MAPPED_MINIMUM = 0x4_0000
"""A part of a mapped file smaller than this is copied: a slot costs more than the copy."""

SPARE_TABLES = 0x8_0000
"""Bytes of page tables beyond what the plan needs: for threads made later, and for Machine.map."""

HEAP = 0x100_0000
"""Bytes of RAM beyond what the plan needs, when the configuration sets no size; host pages come on first use."""


class Placement(NamedTuple):
    """``size`` bytes of a segment's data, from ``offset`` on, copied to ``physical`` when the machine is made."""

    segment: Segment
    offset: int
    size: int
    physical: Gpa


@dataclass(frozen=True, slots=True)
class PlannedRegion:
    """A region of guest-physical memory; ``segment`` is set for one that shows file pages."""

    physical: Gpa
    size: int
    permissions: Permission
    name: str
    segment: Segment | None = None
    offset: int = 0


class PlannedArea(NamedTuple):
    """An area of the ISA or a stack: virtual and physical place."""

    name: str
    virtual: Gva
    physical: Gpa
    size: int
    permissions: Permission


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """The whole layout. ``heap`` is RAM that nothing uses yet; ``areas`` are keyed ``system/...``, ``NAME/...``."""

    binary: Binary
    ram: PlannedRegion
    regions: tuple[PlannedRegion, ...]
    mappings: tuple[Mapping, ...]
    placements: tuple[Placement, ...]
    areas: dict[str, PlannedArea]
    tables: PlannedArea
    heap: range
    window: Gva
    window_next: Gva
    doorbell: Gpa


@dataclass(frozen=True, slots=True)
class ThreadRequest:
    """What the layout must know of a configured thread."""

    name: str
    stack: int
    privilege: Privilege


def align_up(value: int, alignment: int) -> int:
    """The next multiple of ``alignment``, or ``value`` itself."""
    return -(-value // alignment) * alignment


@dataclass(slots=True)
class _Run:
    """A run of pages with the same permissions; ``segments`` touch it."""

    start: int
    end: int
    permissions: Permission
    segments: list[Segment]


def page_runs(segments: Iterable[Segment], page: int) -> list[_Run]:
    """Cut the segments' pages into runs: where segments share pages, their permissions add up.

    Works on boundaries, never page by page: a segment may be terabytes long.
    """
    spans = [
        (s.address // page * page, align_up(s.address + s.memory_size, page), s) for s in segments if s.memory_size > 0
    ]
    spans.sort(key=lambda span: span[0])
    if all(one[1] <= other[0] for one, other in itertools.pairwise(spans)):
        return [_Run(start, end, segment.permissions, [segment]) for start, end, segment in spans]
    cuts = sorted({edge for start, end, _ in spans for edge in (start, end)})
    runs: list[_Run] = []
    for start, end in itertools.pairwise(cuts):
        touching = [s for low, high, s in spans if low < end and start < high]
        if not touching:
            continue
        permissions = Permission.NONE
        for segment in touching:
            permissions |= segment.permissions
        runs.append(_Run(start, end, permissions, touching))
    return runs


class _RamBuilder:
    """Hands out guest-physical RAM from one growing region."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.next = base

    def take(self, size: int, alignment: int, congruent_to: int = 0) -> int:
        """``size`` bytes at an address that is congruent to ``congruent_to`` modulo ``alignment``."""
        offset = congruent_to % alignment
        start = align_up(self.next - offset, alignment) + offset
        self.next = start + size
        return start


def _mapped_part(run: _Run, page: int) -> tuple[Segment, int, int] | None:
    """The part of a run that can show file pages: (segment, first address, end address)."""
    if len(run.segments) != 1 or not run.segments[0].mappable:
        return None
    segment = run.segments[0]
    data_end = segment.address + segment.data.nbytes
    start = max(run.start, align_up(segment.address, page))
    end = min(run.end, data_end // page * page)
    if end - start < MAPPED_MINIMUM:
        return None
    if (buffer_address(segment.data) + start - segment.address) % page:
        return None
    return segment, start, end


def plan(
    binary: Binary,
    isa: Isa,
    limits: Limits,
    threads: Sequence[ThreadRequest],
    *,
    ram_size: int | None = None,
    spare_tables: int = SPARE_TABLES,
    doorbell_address: int = doorbell.DEFAULT_ADDRESS,
    user_image: bool = False,
) -> MachinePlan:
    """Plan the machine's memory.

    :param ram_size: bytes of RAM; None gives what the image needs and :data:`HEAP` more.
    :param user_image: the image's pages are accessible in user mode.
    :raises MappingError: overlaps, addresses that are out of reach, or too little memory; the message names
        the parts and the configuration key.
    """
    page = max(isa.page_sizes[0], limits.page_size)
    _check_segments(binary, isa, page, doorbell_address)
    runs = page_runs(binary.segments, page)
    areas_wanted = _areas_wanted(isa, threads, page)
    window = _free_window(runs, doorbell_address)

    # Virtual places first: they do not depend on the size of anything physical.
    virtual_next = window + page
    virtual: dict[str, int] = {}
    for key, request in areas_wanted:
        virtual[key] = virtual_next
        virtual_next += align_up(request.size, page) + page

    # RAM: its base depends on its size, its contents do not depend on the base but for alignment.
    gap = _first_gap(0, 0, limits, doorbell_address)
    for _ in range(2):
        ram = _RamBuilder(gap)
        mappings: list[Mapping] = []
        placements: list[Placement] = []
        file_parts: list[tuple[Segment, int, int, Permission]] = []
        _place_image(runs, ram, page, user_image, mappings, placements, file_parts)
        areas: dict[str, PlannedArea] = {}
        for key, request in areas_wanted:
            size = align_up(request.size, page)
            physical = ram.take(size, page)
            areas[key] = PlannedArea(key, Gva(virtual[key]), Gpa(physical), size, request.permissions)
            mappings.append(
                Mapping(Gva(virtual[key]), Gpa(physical), size, request.permissions, key, largest_page=page)
            )
        file_mappings = [
            Mapping(Gva(start), Gpa(0), end - start, permissions, segment.name)
            for segment, start, end, permissions in file_parts
        ]
        tables_size = align_up(isa.tables_size([*mappings, *file_mappings]) + spare_tables, page)
        # The tables are mapped for the supervisor too, and that mapping needs tables itself.
        tables_size += 4 * page + align_up(tables_size // 256, page)
        tables_at = ram.take(tables_size, page)
        needed = ram.next - ram.base
        size = align_up(needed + HEAP, page) if ram_size is None else ram_size // page * page
        if size < needed:
            raise MappingError(
                f"memory.size is {ram_size:#x} bytes, but image, stacks and page tables need "
                f"{align_up(needed, page):#x}; raise memory.size, or leave it out to get what the image needs"
            )
        base = _first_gap(size, 0, limits, doorbell_address)
        if base == gap:
            break
        gap = base
    tables_virtual = Gva(virtual_next)
    tables = PlannedArea("tables", tables_virtual, Gpa(tables_at), tables_size, Permission.READ | Permission.WRITE)
    mappings.append(
        Mapping(tables_virtual, Gpa(tables_at), tables_size, tables.permissions, "tables", largest_page=page)
    )
    virtual_next += tables_size + page
    regions = [PlannedRegion(Gpa(ram.base), size, Permission.READ | Permission.WRITE | Permission.EXECUTE, "ram")]
    above = ram.base + size
    for segment, start, end, permissions in file_parts:
        alignment = HUGE if end - start >= HUGE else page
        at = _first_gap(end - start, above, limits, doorbell_address, alignment, start)
        offset = start - segment.address
        regions.append(PlannedRegion(Gpa(at), end - start, segment.permissions, segment.name, segment, offset))
        mappings.append(Mapping(Gva(start), Gpa(at), end - start, permissions, segment.name))
        above = at + end - start
    if above > 1 << limits.gpa_bits:
        asked = f" with memory.size = {ram_size:#x}" if ram_size is not None else ""
        raise MappingError(
            f"the image{asked} needs guest-physical addresses up to {above:#x}; this hypervisor ends at "
            f"{1 << limits.gpa_bits:#x}"
        )
    if len(regions) > limits.max_slots:
        raise MappingError(f"the image needs {len(regions)} memory slots; this hypervisor has {limits.max_slots}")
    mappings.append(
        Mapping(
            Gva(doorbell_address),
            Gpa(doorbell_address),
            page,
            Permission.READ | Permission.WRITE,
            "doorbell",
            Caching.DEVICE,
            page,
        )
    )
    return MachinePlan(
        binary=binary,
        ram=regions[0],
        regions=tuple(regions),
        mappings=tuple(mappings),
        placements=tuple(placements),
        areas=areas,
        tables=tables,
        heap=range(tables_at + tables_size, ram.base + size),
        window=Gva(window),
        window_next=Gva(virtual_next),
        doorbell=Gpa(doorbell_address),
    )


@lru_cache(maxsize=16)
def stack_request(size: int, privilege: Privilege) -> AreaRequest:
    """The request for a thread's stack."""
    from rift_core.isa import AreaRequest

    permissions = Permission.READ | Permission.WRITE
    if privilege == "user":
        permissions |= Permission.USER
    return AreaRequest("stack", size, permissions)


def _areas_wanted(isa: Isa, threads: Sequence[ThreadRequest], page: int) -> list[tuple[str, AreaRequest]]:
    wanted = [(f"system/{request.name}", request) for request in isa.system_areas()]
    for thread in threads:
        wanted += [(f"{thread.name}/{request.name}", request) for request in isa.thread_areas(thread.privilege)]
        wanted.append((f"{thread.name}/stack", stack_request(align_up(thread.stack, page), thread.privilege)))
    return wanted


def _check_segments(binary: Binary, isa: Isa, page: int, doorbell_address: int) -> None:
    if doorbell_address % page:
        raise MappingError(f"memory.doorbell {doorbell_address:#x} is not a multiple of the page size {page:#x}")
    for segment in binary.segments:
        end = segment.address + segment.memory_size
        if not any(half.start <= segment.address and end <= half.stop for half in isa.virtual_ranges):
            raise MappingError(
                f"segment {segment.name or '?'} {segment.address:#x}-{end:#x} is not inside the address space of "
                f"{isa.name}"
            )
        if segment.address < doorbell_address + page and doorbell_address < end:
            raise MappingError(
                f"segment {segment.name or '?'} {segment.address:#x}-{end:#x} covers the doorbell page at "
                f"{doorbell_address:#x}; set memory.doorbell to a free page (and build the guest with "
                "-DRIFT_DOORBELL=...)"
            )


def _place_image(
    runs: list[_Run],
    ram: _RamBuilder,
    page: int,
    user_image: bool,
    mappings: list[Mapping],
    placements: list[Placement],
    file_parts: list[tuple[Segment, int, int, Permission]],
) -> None:
    """Give every run RAM, or leave it to a file region, and note what must be copied where."""
    extent_end, extent_physical_end = -1, -1
    for run in runs:
        if len(run.segments) == 1:
            name = run.segments[0].name
        else:
            name = "+".join(dict.fromkeys(s.name for s in run.segments if s.name))
        permissions = run.permissions | Permission.USER if user_image else run.permissions
        pieces: list[tuple[int, int]] = [(run.start, run.end)]
        mapped = _mapped_part(run, page)
        if mapped is not None:
            segment, start, end = mapped
            file_parts.append((segment, start, end, permissions))
            pieces = [(low, high) for low, high in ((run.start, start), (end, run.end)) if low < high]
        for start, end in pieces:
            size = end - start
            if start == extent_end and ram.next == extent_physical_end:
                physical = ram.take(size, page)  # goes on where the run before ended: large pages may span both
            else:
                alignment = HUGE if size >= HUGE else page
                physical = ram.take(size, alignment, start)
            extent_end, extent_physical_end = end, physical + size
            mappings.append(Mapping(Gva(start), Gpa(physical), size, permissions, name))
            for segment in run.segments:
                low = max(start, segment.address)
                high = min(end, segment.address + segment.data.nbytes)
                if low < high:
                    placements.append(
                        Placement(segment, low - segment.address, high - low, Gpa(physical + low - start))
                    )


def _free_window(runs: list[_Run], doorbell_address: int) -> int:
    window = WINDOW
    while any(r.start < window + WINDOW_SIZE and window < r.end for r in runs) or (
        window <= doorbell_address < window + WINDOW_SIZE
    ):
        window += WINDOW_STEP
        if window + WINDOW_SIZE > 1 << 47:
            raise MappingError("the image leaves no 512 GiB of the lower half free for stacks and tables")
    return window


def _first_gap(
    size: int, above: int, limits: Limits, doorbell_address: int, alignment: int = 1, congruent_to: int = 0
) -> int:
    """The lowest guest-physical address >= ``above`` with ``size`` bytes free of reserved windows."""
    windows = sorted(
        [*((w.start, w.stop) for w in limits.reserved), (doorbell_address, doorbell_address + doorbell.SIZE)]
    )
    offset = congruent_to % alignment
    at = align_up(above - offset, alignment) + offset
    for start, stop in windows:
        if at + size > start and at < stop:
            at = align_up(align_up(stop, HUGE) - offset, alignment) + offset
    return at
