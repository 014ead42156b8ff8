"""The page tables of one machine: what x86-64's entries mean, for :class:`rift_core.page_tables.NativePageTables`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.memory import Gpa, Gva, Permission, Walk, WalkStep
from rift_core.page_tables import NativePageTables, failed_walk
from rift_x86_64 import paging
from rift_x86_64._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.guest_memory import GuestMemory
    from rift_core.memory import Mapping


class PageTables(NativePageTables):
    """Page tables in ``memory``, with pages of at most ``largest_page`` bytes. The first page that they are given
    becomes the PML4: CR3.
    """

    def __init__(self, largest_page: int, memory: GuestMemory) -> None:
        self._largest_page = largest_page
        tables = lib.rift_x86_64_tables_create(largest_page)
        super().__init__(ffi, lib, "rift_x86_64", tables, paging.SMALL_PAGE, memory)

    def ordered(self, mappings: Sequence[Mapping]) -> list[Mapping]:
        """Checked and sorted by address. :raises MappingError: one is wrong by itself, or two overlap."""
        return paging.ordered(mappings)

    def check_range(self, virtual: int, size: int, permissions: Permission, what: str) -> None:
        """:raises MappingError: misaligned, empty, non-canonical or forbidden."""
        paging.check_range(virtual, size, permissions, what)

    def mapping_flags(self, mapping: Mapping) -> tuple[int, int]:
        """Flags of a 4 KiB page's entry, and the largest page that may be used."""
        flags = paging.permission_flags(mapping.permissions) | paging.CACHING_FLAGS[mapping.caching]
        return flags, paging.largest_page_of(mapping, self._largest_page)

    def permission_flags(self, permissions: Permission) -> int:
        """R/W, U/S and XD."""
        return paging.permission_flags(permissions)

    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Upper bound of the table pages that mapping all of ``mappings`` can take."""
        return paging.tables_needed(mappings, self._largest_page)

    def read_walk(self, virtual: int, walk: Any) -> Walk:
        """The native walk in Rift's words."""
        levels = walk.levels
        rows = zip(walk.entry_address[0:levels], walk.entry[0:levels], strict=True)
        steps = tuple(WalkStep(paging.LEVELS[at], Gpa(address), entry) for at, (address, entry) in enumerate(rows))
        if walk.status != lib.RIFT_X86_64_MAPPED:
            return failed_walk(virtual, _reason(virtual, walk.status, steps), steps, walk.page_size)
        leaf = steps[-1].entry
        permissions = Permission.READ
        if walk.writable:
            permissions |= Permission.WRITE
        if walk.executable:
            permissions |= Permission.EXECUTE
        if walk.user:
            permissions |= Permission.USER
        return Walk(
            virtual=Gva(virtual),
            physical=Gpa(walk.physical),
            permissions=permissions,
            page_size=walk.page_size,
            caching=paging.CACHING_OF_INDEX[walk.memory_type],
            accessed=bool(leaf & paging.ACCESSED),
            dirty=bool(leaf & paging.DIRTY),
            steps=steps,
        )


def _reason(virtual: int, status: int, steps: tuple[WalkStep, ...]) -> str:
    if status == lib.RIFT_X86_64_NOT_CANONICAL:
        return f"{virtual:#x} is not canonical: bits 63 to 47 differ"
    if not steps:
        return "the PML4 itself lies outside guest memory"
    last = steps[-1]
    place = f"{last.level} entry at guest-physical {last.entry_address:#x}"
    if status == lib.RIFT_X86_64_NOT_PRESENT:
        return f"the {place} is not present ({last.entry:#x})"
    if status == lib.RIFT_X86_64_TABLE_OUTSIDE:
        return f"the {place} ({last.entry:#x}) leads outside guest memory"
    return f"the {place} ({last.entry:#x}) has reserved bits set"
