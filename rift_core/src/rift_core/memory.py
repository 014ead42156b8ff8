"""Addresses, permissions, and the two stages of translation as plain data.

First stage: :class:`Mapping`, guest virtual to guest physical, in the guest's own page tables.
Second stage: :class:`MemoryRegion`, guest physical to bytes of this process, a slot of the hypervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

Gpa = NewType("Gpa", int)
"""A guest-physical address."""

Gva = NewType("Gva", int)
"""A guest-virtual address."""


class Permission(IntFlag):
    """What the guest may do with a page. READ is implied wherever a page is mapped at all."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4
    USER = 8

    def __str__(self) -> str:
        return _PERMISSION_WORDS[int(self) & 15]


_PERMISSION_WORDS = tuple(
    "".join(letter if bits >> at & 1 else "-" for at, letter in enumerate("rwxu")) for bits in range(16)
)
"""``r-x-`` and the like, by number."""


class Caching(IntEnum):
    """Memory type of a mapping; each ISA expresses it its own way (x86-64 PAT, AArch64 MAIR)."""

    WRITE_BACK = 0
    WRITE_THROUGH = 1
    UNCACHED = 2
    WRITE_COMBINING = 3
    DEVICE = 4


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """Guest-physical memory backed by host bytes: one slot of the second stage.

    ``host`` is page-aligned, and its length a whole number of pages; it is writable exactly when
    ``permissions`` has WRITE.
    """

    guest_address: Gpa
    host: memoryview
    permissions: Permission
    name: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.host.nbytes

    @property
    def end(self) -> int:
        """First guest-physical address behind the region."""
        return self.guest_address + self.host.nbytes


class Mapping(NamedTuple):
    """A run of guest-virtual pages onto guest-physical ones: first stage. A NamedTuple because a machine has many.

    ``virtual``, ``physical`` and ``size`` are multiples of the ISA's smallest page. The builder picks
    the largest pages that fit and are no larger than ``largest_page`` (0: no bound).
    """

    virtual: Gva
    physical: Gpa
    size: int
    permissions: Permission
    name: str = ""
    caching: Caching = Caching.WRITE_BACK
    largest_page: int = 0

    @property
    def end(self) -> int:
        """First guest-virtual address behind the mapping."""
        return self.virtual + self.size

    def __str__(self) -> str:
        label = f" ({self.name})" if self.name else ""
        return f"{self.virtual:#x}-{self.end:#x} {self.permissions}{label}"


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One table entry that a walk read: its level's name, where it stands, what it holds."""

    level: str
    entry_address: Gpa
    entry: int


@dataclass(frozen=True, slots=True)
class Walk:
    """What the page tables say of one guest-virtual address.

    ``physical`` is None when the walk fails; ``reason`` then says at which level and why, in words.
    ``permissions`` are the effective ones (every level taken together).
    """

    virtual: Gva
    physical: Gpa | None
    permissions: Permission
    page_size: int
    caching: Caching
    accessed: bool
    dirty: bool
    steps: tuple[WalkStep, ...]
    reason: str = ""


class AddressSpace(Protocol):
    """The page tables of one machine, edited and walked by the ISA's native code.

    Every edit is atomic: it is checked as a whole before the first entry is written. Callers flush
    the guest's TLBs afterwards (``Vm.flush_translations``); the address space touches memory only.
    """

    @property
    def root(self) -> Gpa:
        """Guest-physical address of the top-level table."""

    @property
    def free_tables(self) -> int:
        """Table pages that are left."""

    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Upper bound of the table pages that mapping all of ``mappings`` can take."""

    def add_tables(self, region: MemoryRegion) -> None:
        """Give the builder more memory for tables."""

    def map(self, mapping: Mapping) -> None:
        """Map a range that is not mapped yet.

        :raises MappingError: misaligned, non-canonical, overlapping, or no table memory left.
        """

    def map_all(self, mappings: Sequence[Mapping]) -> None:
        """Map several ranges, all or none.

        :raises MappingError: as :meth:`map`.
        """

    def unmap(self, virtual: Gva, size: int) -> None:
        """Remove what is mapped there; large pages are split at the edges.

        :raises MappingError: part of the range is not mapped, or no table memory is left for a split.
        """

    def protect(self, virtual: Gva, size: int, permissions: Permission) -> None:
        """Change permissions of a mapped range.

        :raises MappingError: part of the range is not mapped, or no table memory is left for a split.
        """

    def wants_pause(self, virtual: Gva, size: int) -> bool:
        """Whether CPUs must be outside the guest while :meth:`unmap` or :meth:`protect` edits this range, until the
        flush that follows.

        AArch64 wants a large page out of all TLBs before smaller ones take its place ("break-before-make").
        """

    def walk(self, virtual: Gva, root: Gpa | None = None) -> Walk:
        """Translate one address; tables that the guest has forged are no danger: a failed walk says why.

        ``root``: another top-level table than the machine's, which the guest has made (``IsaDebug.table_root``).
        """

    def accessed_dirty(self, virtual: Gva, size: int, *, clear: bool = False) -> list[tuple[Gva, int, bool, bool]]:
        """``(page, page_size, accessed, dirty)`` of each mapped page of the range; optionally clears both bits.

        What the CPU does not keep is answered with "may have been": see ``Isa.keeps_accessed``.
        """
