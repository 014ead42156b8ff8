"""The arithmetic of AArch64 paging: geometry, entry flags, memory types, how many tables a set of mappings takes.

Arm ARM, "The AArch64 Virtual Memory System Architecture"; ID_AA64MMFR0_EL1 and ID_AA64MMFR1_EL1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rift_aarch64.config import PAGE_SIZES
from rift_core.errors import ConfigError, MappingError
from rift_core.memory import Caching, Permission
from rift_core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rift_aarch64.config import Aarch64Config
    from rift_core.backend import CpuFeatures
    from rift_core.memory import Mapping as GuestMapping

SIZES_OF_GRANULE = {0x1000: (0x1000, 0x20_0000, 0x4000_0000), 0x4000: (0x4000, 0x200_0000)}
"""Pages and blocks, by granule. The blocks of 512 GiB and 64 GiB that FEAT_LPA2 adds are not used."""

ADDRESS_BITS = 48
LOWER_HALF = range(0, 1 << ADDRESS_BITS)
UPPER_HALF = range((1 << 64) - (1 << ADDRESS_BITS), 1 << 64)
LINEAR_MASK = (1 << ADDRESS_BITS + 1) - 1
LEVELS = ("level 0", "level 1", "level 2", "level 3")

VALID = 1 << 0
PAGE = 1 << 1
USER = 1 << 6  # AP[1]
READ_ONLY = 1 << 7  # AP[2]
OUTER_SHAREABLE, INNER_SHAREABLE = 2 << 8, 3 << 8
ACCESSED = 1 << 10
NOT_GLOBAL = 1 << 11
WRITABLE_CLEAN = 1 << 51  # DBM
PXN = 1 << 53
UXN = 1 << 54

_NORMAL_WRITE_BACK = 0xFF  # inner and outer, not transient, allocating on reads and writes
_NORMAL_WRITE_THROUGH = 0xBB
_NORMAL_NON_CACHEABLE = 0x44
_DEVICE_NGNRE = 0x04
_ATTRIBUTES = (
    (Caching.WRITE_BACK, _NORMAL_WRITE_BACK),
    (Caching.WRITE_THROUGH, _NORMAL_WRITE_THROUGH),
    (Caching.UNCACHED, _NORMAL_NON_CACHEABLE),
    (Caching.WRITE_COMBINING, _NORMAL_NON_CACHEABLE),  # writes to non-cacheable memory may be gathered
    (Caching.DEVICE, _DEVICE_NGNRE),
)
"""Memory type and MAIR attribute, in the order of the attribute indices (Arm ARM, MAIR_EL1)."""

MAIR_VALUE = sum(attribute << 8 * index for index, (_, attribute) in enumerate(_ATTRIBUTES))
"""Indices 5 to 7 are 0: Device-nGnRnE."""

_INDEX_OF = {caching: index for index, (caching, _) in enumerate(_ATTRIBUTES)}
CACHING_OF_INDEX = tuple(caching for caching, _ in _ATTRIBUTES) + (Caching.DEVICE,) * 3
"""Memory type of each attribute index, with :data:`MAIR_VALUE`."""

_PHYSICAL_BITS = (32, 36, 40, 42, 44, 48)  # by ID_AA64MMFR0_EL1.PARange, and TCR_EL1.IPS
_ASSUMED_RANGE = 2
"""Where the backend does not tell: 40 bits, what hypervisors give a guest by default."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the page tables of one machine are like."""

    page: int  # the granule, in bytes
    largest_page: int
    physical_range: int  # for TCR_EL1.IPS
    hardware_access: bool
    hardware_dirty: bool
    contiguous: bool

    @property
    def physical_bits(self) -> int:
        """Width of a guest-physical address in a page-table entry."""
        return _PHYSICAL_BITS[self.physical_range]

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """Pages and blocks, ascending."""
        return tuple(size for size in SIZES_OF_GRANULE[self.page] if size <= self.largest_page)


def geometry(config: Aarch64Config, features: CpuFeatures) -> Geometry:
    """The page tables that ``config`` asks for, on that CPU.

    :raises ConfigError: the CPU does not have the granule.
    """
    usable = [granule for granule in SIZES_OF_GRANULE if granule in features.page_sizes]
    if not usable:
        sizes = ", ".join(format_size(size) for size in features.page_sizes)
        raise ConfigError(f"this CPU has pages of {sizes}; page tables need the 4 KiB or the 16 KiB granule")
    granule = usable[0] if config.granule == "auto" else PAGE_SIZES[config.granule]
    if granule not in usable:
        raise ConfigError(
            f"isa.granule is {config.granule}, but the CPU of this backend has only the granule "
            f"{' and '.join(format_size(size) for size in usable)}; leave isa.granule out to get it"
        )
    bound = PAGE_SIZES[config.largest_page]
    largest = max(s for s in SIZES_OF_GRANULE[granule] if s == granule or (s in features.page_sizes and s <= bound))
    hardware = _field(features.id_registers, "id_aa64mmfr1_el1", 0, 0)
    physical_range = _field(features.id_registers, "id_aa64mmfr0_el1", 0, _ASSUMED_RANGE)
    return Geometry(
        page=granule,
        largest_page=largest,
        physical_range=min(physical_range, len(_PHYSICAL_BITS) - 1),  # 52 bits need another granule or FEAT_LPA2
        hardware_access=hardware >= 1,
        hardware_dirty=hardware >= 2,
        contiguous=config.contiguous,
    )


def _field(registers: Mapping[str, int], name: str, shift: int, missing: int) -> int:
    value = registers.get(name)
    return missing if value is None else value >> shift & 0xF


def is_canonical(address: int) -> bool:
    """Bits 63 to 48 are all equal: one of the two tables translates it."""
    return address in LOWER_HALF or address in UPPER_HALF


def permission_flags(geometry: Geometry, permissions: Permission) -> int:
    """Permission bits of a leaf entry.

    Code that user mode may execute is executable for the supervisor too, unless it is writable as well: then the
    CPU itself forbids it.
    """
    flags = 0
    if not permissions & Permission.WRITE:
        flags |= READ_ONLY
    elif geometry.hardware_dirty:
        flags |= READ_ONLY | WRITABLE_CLEAN
    if permissions & Permission.USER:
        flags |= USER
    if not permissions & Permission.EXECUTE:
        flags |= PXN | UXN
    elif not permissions & Permission.USER:
        flags |= UXN
    return flags


def leaf_flags(geometry: Geometry, mapping: GuestMapping) -> int:
    """Bits of a level 3 entry, without its address.

    Pages of the lower half are not global, as an operating system has it: entries of one root never serve another
    with its own address space identifier.
    """
    flags = VALID | PAGE | permission_flags(geometry, mapping.permissions) | _INDEX_OF[mapping.caching] << 2
    cacheable = mapping.caching in (Caching.WRITE_BACK, Caching.WRITE_THROUGH)
    flags |= INNER_SHAREABLE if cacheable else OUTER_SHAREABLE
    if not geometry.hardware_access:
        flags |= ACCESSED
    if mapping.virtual in LOWER_HALF:
        flags |= NOT_GLOBAL
    return flags


def check_range(geometry: Geometry, virtual: int, size: int, what: str) -> None:
    """Check the virtual side of a range.

    :raises MappingError: misaligned, empty, or in neither half.
    """
    if virtual % geometry.page or size % geometry.page:
        raise MappingError(f"{what}: address and size must be multiples of {geometry.page:#x}, the granule")
    if size <= 0:
        raise MappingError(f"{what}: the range is empty")
    last = virtual + size - 1
    if not (virtual in LOWER_HALF and last in LOWER_HALF) and not (virtual in UPPER_HALF and last in UPPER_HALF):
        raise MappingError(
            f"{what}: no table translates it; AArch64 has 0x0-{LOWER_HALF.stop - 1:#x} "
            f"and {UPPER_HALF.start:#x}-{UPPER_HALF.stop - 1:#x}"
        )


def check_mapping(geometry: Geometry, mapping: GuestMapping) -> None:
    """Check one mapping by itself.

    :raises MappingError: misaligned, empty, in neither half, out of physical reach, unknown caching or page size.
    """
    what = f"mapping {mapping}"
    check_range(geometry, mapping.virtual, mapping.size, what)
    if mapping.physical % geometry.page:
        raise MappingError(
            f"{what}: guest-physical {mapping.physical:#x} is not a multiple of {geometry.page:#x}, the granule"
        )
    if mapping.physical < 0 or mapping.physical + mapping.size > 1 << geometry.physical_bits:
        raise MappingError(
            f"{what}: guest-physical {mapping.physical:#x} is beyond the {geometry.physical_bits} bits of this CPU"
        )
    if mapping.largest_page and mapping.largest_page < geometry.page:
        raise MappingError(
            f"{what}: largest_page {mapping.largest_page:#x} is smaller than a page of {geometry.page:#x}"
        )
    if mapping.caching not in _INDEX_OF:
        raise MappingError(f"{what}: unknown caching {mapping.caching!r}")


def ordered(geometry: Geometry, mappings: Iterable[GuestMapping]) -> list[GuestMapping]:
    """Checked and sorted by address, lower half first.

    :raises MappingError: one is wrong by itself, or two overlap.
    """
    result = sorted(mappings, key=lambda mapping: mapping.virtual)
    previous: GuestMapping | None = None
    for mapping in result:
        check_mapping(geometry, mapping)
        if previous is not None and mapping.virtual < previous.end:
            raise MappingError(f"mappings overlap: {previous} and {mapping}")
        previous = mapping
    return result


def largest_page_of(geometry: Geometry, mapping: GuestMapping) -> int:
    """Largest usable page size for ``mapping``."""
    bound = min(mapping.largest_page or geometry.largest_page, geometry.largest_page)
    return max((size for size in geometry.page_sizes if size <= bound), default=geometry.page)


def tables_needed(geometry: Geometry, mappings: Sequence[GuestMapping]) -> int:
    """Table pages that an empty address space needs for ``mappings``, the two top-level tables not counted.

    Exact for mappings that do not overlap; malformed ones count as far as they go.
    """
    bits = geometry.page.bit_length() - 4  # of an index
    covered = [geometry.page << bits * levels for levels in (1, 2, 3)]  # by one table of level 3, 2, 1
    last = [-1, -1, -1]  # of the tables counted so far, per level
    needed = 0
    for mapping in sorted(mappings, key=lambda m: m.virtual & LINEAR_MASK):
        start = mapping.virtual & LINEAR_MASK
        end = min(start + max(mapping.size, 1), LINEAR_MASK + 1)
        page = largest_page_of(geometry, mapping)
        for level, covers in enumerate(covered):
            for low, high in _spans(start, end, mapping.physical, page, covers):
                first = max(low, last[level] + 1)
                if high >= first:
                    needed += high - first + 1
                    last[level] = high
    return needed


def _spans(start: int, end: int, physical: int, page: int, covers: int) -> list[tuple[int, int]]:
    """Index ranges, ascending, of the tables that translate ``covers`` bytes each and that [start, end) needs."""
    whole = (start // covers, (end - 1) // covers)
    if covers > page or (start - physical) % covers:
        return [whole]  # no leaf of that size can stand above
    low, high = -(-start // covers), end // covers  # what the leaves cover
    if low >= high:
        return [whole]
    head = [(whole[0], low - 1)] if low > whole[0] else []
    tail = [(high, whole[1])] if high <= whole[1] else []
    return head + tail
