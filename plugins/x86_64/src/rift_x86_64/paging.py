"""The arithmetic of x86-64 paging: sizes, canonical addresses, entry flags, how many tables a set of mappings takes.

SDM volume 3, chapter "Paging", 4-level paging; APM volume 2, chapter 5.
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING

from rift_core.errors import MappingError
from rift_core.memory import Caching, Permission

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rift_core.memory import Mapping

SMALL_PAGE = 0x1000
PAGE_SIZES = (0x1000, 0x20_0000, 0x4000_0000)
LOWER_HALF = range(0, 1 << 47)
UPPER_HALF = range(0xFFFF_8000_0000_0000, 1 << 64)
PHYSICAL_LIMIT = 1 << 52  # the most that an entry can hold; a CPU may have less
LEVELS = ("PML4", "PDPT", "PD", "PT")  # top first
LINEAR_MASK = (1 << 48) - 1

PRESENT = 1 << 0
WRITE = 1 << 1
USER = 1 << 2
WRITE_THROUGH = 1 << 3  # PWT, bit 0 of the PAT index
CACHE_DISABLE = 1 << 4  # PCD, bit 1
ACCESSED = 1 << 5
DIRTY = 1 << 6
PAT = 1 << 7  # of a 4 KiB page, bit 2; the page table's C code moves it for large pages
NO_EXECUTE = 1 << 63

_TYPES = {"UC": 0, "WC": 1, "WT": 4, "WB": 6, "UC-": 7}  # SDM volume 3, "Memory Types That Can Be Encoded With PAT"
_PAT_ENTRIES = ("WB", "WT", "UC-", "UC", "WC", "WT", "UC-", "UC")
PAT_VALUE = sum(_TYPES[name] << (8 * index) for index, name in enumerate(_PAT_ENTRIES))
"""IA32_PAT: as after reset, so that PWT and PCD keep their old meaning, but entry 4 is write-combining."""

CACHING_FLAGS = {
    Caching.WRITE_BACK: 0,
    Caching.WRITE_THROUGH: WRITE_THROUGH,
    Caching.UNCACHED: CACHE_DISABLE,  # UC-: an MTRR may turn it into write-combining
    Caching.DEVICE: CACHE_DISABLE | WRITE_THROUGH,  # UC: nothing overrides it
    Caching.WRITE_COMBINING: PAT,
}
CACHING_OF_INDEX = (
    Caching.WRITE_BACK,
    Caching.WRITE_THROUGH,
    Caching.UNCACHED,
    Caching.DEVICE,
    Caching.WRITE_COMBINING,
    Caching.WRITE_THROUGH,
    Caching.UNCACHED,
    Caching.DEVICE,
)
"""Memory type of each PAT index, with :data:`PAT_VALUE`."""


def is_canonical(address: int) -> bool:
    """Bits 63 to 47 are all equal: the CPU takes it as a linear address."""
    return address in LOWER_HALF or address in UPPER_HALF


def _leaf_flags(permissions: Permission) -> int:
    flags = PRESENT
    if permissions & Permission.WRITE:
        flags |= WRITE
    if permissions & Permission.USER:
        flags |= USER
    if not permissions & Permission.EXECUTE:
        flags |= NO_EXECUTE
    return flags


_LEAF_FLAGS = tuple(_leaf_flags(Permission(bits)) for bits in range(16))


def permission_flags(permissions: Permission) -> int:
    """Bits of a leaf entry."""
    return _LEAF_FLAGS[int(permissions) & 15]


def check_range(virtual: int, size: int, permissions: Permission, what: str) -> None:
    """Check the virtual side of a range.

    The last page of the lower half is refused for user mode: a SYSCALL at its end leaves a return address
    that is not canonical, and SYSRET to it faults in supervisor mode on the user's stack (SDM, SYSRET).

    :raises MappingError: misaligned, empty, non-canonical or forbidden.
    """
    problem = _range_problem(virtual, size, permissions)
    if problem:
        raise MappingError(f"{what}: {problem}")


def _range_problem(virtual: int, size: int, permissions: Permission) -> str:
    if virtual % SMALL_PAGE or size % SMALL_PAGE:
        return f"address and size must be multiples of {SMALL_PAGE:#x}"
    if size <= 0:
        return "the range is empty"
    last = virtual + size - 1
    if not (virtual in LOWER_HALF and last in LOWER_HALF) and not (virtual in UPPER_HALF and last in UPPER_HALF):
        return (
            f"not canonical; x86-64 has 0x0-{LOWER_HALF.stop - 1:#x} and {UPPER_HALF.start:#x}-{UPPER_HALF.stop - 1:#x}"
        )
    if last == LOWER_HALF.stop - 1 and permissions & Permission.USER:
        return (
            f"user mode must not have the last page below {LOWER_HALF.stop:#x} "
            "(a SYSCALL at its end has no canonical return address); end the mapping one page earlier"
        )
    return ""


def check_mapping(mapping: Mapping) -> None:
    """Check one mapping by itself.

    :raises MappingError: misaligned, empty, non-canonical, out of physical reach, unknown caching or page size.
    """
    problem = _range_problem(mapping.virtual, mapping.size, mapping.permissions) or _target_problem(mapping)
    if problem:
        raise MappingError(f"mapping {mapping}: {problem}")


def _target_problem(mapping: Mapping) -> str:
    physical = mapping.physical
    if physical % SMALL_PAGE:
        return f"guest-physical {physical:#x} is not a multiple of {SMALL_PAGE:#x}"
    if physical < 0 or physical + mapping.size > PHYSICAL_LIMIT:
        return f"guest-physical {physical:#x} is beyond the 52 bits of a page-table entry"
    if 0 != mapping.largest_page < SMALL_PAGE:
        return f"largest_page {mapping.largest_page:#x} is smaller than a page"
    if mapping.caching not in CACHING_FLAGS:
        return f"unknown caching {mapping.caching!r}"
    return ""


_VIRTUAL = attrgetter("virtual")
_OFFSET = SMALL_PAGE - 1
_LAST_OF_LOWER_HALF = LOWER_HALF.stop - SMALL_PAGE
_ANY_OR_A_PAGE = (0, *PAGE_SIZES)


def ordered(mappings: Iterable[Mapping]) -> list[Mapping]:
    """Checked and sorted by address, lower half first.

    :raises MappingError: one is wrong by itself, or two overlap.
    """
    result = sorted(mappings, key=_VIRTUAL)
    previous: Mapping | None = None
    for mapping in result:
        virtual, physical, size = mapping.virtual, mapping.physical, mapping.size
        end = virtual + size
        # Most are plain; what is not gets the whole check, and its words.
        if not (
            0 <= virtual < end < _LAST_OF_LOWER_HALF
            and 0 <= physical < PHYSICAL_LIMIT - size
            and not (virtual | physical | size) & _OFFSET
            and mapping.largest_page in _ANY_OR_A_PAGE
            and mapping.caching in CACHING_FLAGS
        ):
            check_mapping(mapping)
        if previous is not None and virtual < previous.virtual + previous.size:
            raise MappingError(f"mappings overlap: {previous} and {mapping}")
        previous = mapping
    return result


def largest_page_of(mapping: Mapping, largest_page: int) -> int:
    """Largest usable page size for ``mapping`` on a CPU with pages up to ``largest_page``."""
    return _largest_page(mapping.largest_page or largest_page, largest_page)


@lru_cache(maxsize=64)
def _largest_page(wanted: int, largest_page: int) -> int:
    return max((size for size in PAGE_SIZES if size <= min(wanted, largest_page)), default=SMALL_PAGE)


def tables_needed(mappings: Sequence[Mapping], largest_page: int) -> int:
    """Table pages that an empty address space needs for ``mappings``, the top-level table not counted.

    Exact for mappings that do not overlap; malformed ones count as far as they go.
    """
    spans = []
    for mapping in mappings:
        start = mapping.virtual & LINEAR_MASK
        end = min(start + max(mapping.size, 1), 1 << 48)
        page = _largest_page(mapping.largest_page or largest_page, largest_page)
        spans.append((start, end, page, mapping.physical))
    spans.sort()
    needed = 0
    for level, shift in enumerate((21, 30, 39)):  # what a page table, a page directory and a PDPT cover
        last = -1  # of the tables counted so far
        for start, end, page, physical in spans:
            low, high = start >> shift, (end - 1) >> shift
            if low == high and (end - start) >> shift == 0:  # too short for a leaf of that size
                if low > last:
                    needed += 1
                    last = low
                continue
            for first, after in _spans(start, end, physical, page, level):
                first = max(first, last + 1)
                if after >= first:
                    needed += after - first + 1
                    last = after
    return needed


def _spans(start: int, end: int, physical: int, page: int, level: int) -> list[tuple[int, int]]:
    """Index ranges of the tables of ``level`` that [start, end) needs, ascending."""
    covers = 0x1000 << (9 * (level + 1))
    whole = (start // covers, (end - 1) // covers)
    if level == 2 or covers > page or (start - physical) % covers:
        return [whole]  # no leaf of that size can stand above
    low, high = -(-start // covers), end // covers  # what the leaves cover
    if low >= high:
        return [whole]
    head = [(whole[0], low - 1)] if low > whole[0] else []
    tail = [(high, whole[1])] if high <= whole[1] else []
    return head + tail
