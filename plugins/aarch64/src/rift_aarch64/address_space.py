"""The page tables of one machine: what AArch64's entries mean, for :class:`rift_core.page_tables.NativePageTables`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_aarch64 import paging
from rift_aarch64._native import ffi, lib
from rift_core.memory import Gpa, Gva, Permission, Walk, WalkStep
from rift_core.page_tables import NativePageTables, failed_walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_aarch64.paging import Geometry
    from rift_core.guest_memory import GuestMemory
    from rift_core.memory import Mapping


class PageTables(NativePageTables):
    """Page tables in ``memory``; the first two pages that they are given hold the top-level tables of both halves.

    Where the CPU keeps no accessed or dirty bits, every page counts as accessed, and every page that is writable, or
    was, as dirty: "may have been".
    """

    def __init__(self, geometry: Geometry, memory: GuestMemory) -> None:
        self._geometry = geometry
        native = ffi.new(
            "struct rift_aarch64_geometry *",
            {
                "page_bits": geometry.page.bit_length() - 1,
                "physical_bits": geometry.physical_bits,
                "largest_page": geometry.largest_page,
                "hardware_access": geometry.hardware_access,
                "hardware_dirty": geometry.hardware_dirty,
                "contiguous": geometry.contiguous,
            },
        )
        super().__init__(ffi, lib, "rift_aarch64", lib.rift_aarch64_tables_create(native), geometry.page, memory)

    def ordered(self, mappings: Sequence[Mapping]) -> list[Mapping]:
        """Checked and sorted by address. :raises MappingError: one is wrong by itself, or two overlap."""
        return paging.ordered(self._geometry, mappings)

    def check_range(self, virtual: int, size: int, permissions: Permission, what: str) -> None:
        """:raises MappingError: misaligned, empty, or in neither half."""
        del permissions  # every page may have all of them
        paging.check_range(self._geometry, virtual, size, what)

    def mapping_flags(self, mapping: Mapping) -> tuple[int, int]:
        """Flags of a level 3 entry, and the largest page that may be used."""
        return paging.leaf_flags(self._geometry, mapping), paging.largest_page_of(self._geometry, mapping)

    def permission_flags(self, permissions: Permission) -> int:
        """AP, DBM, PXN and UXN."""
        return paging.permission_flags(self._geometry, permissions)

    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Upper bound of the table pages that mapping all of ``mappings`` can take."""
        return paging.tables_needed(self._geometry, mappings)

    def wants_pause(self, virtual: Gva, size: int) -> bool:
        """Whether editing the range would cut a large page, or a run with the contiguous hint (Arm ARM,
        "Using break-before-make when updating translation table entries")."""
        if virtual % self._geometry.page or not 0 <= virtual <= virtual + size <= 1 << 64:
            return False
        with self._lock:
            held = self._regions()
            cuts = bool(lib.rift_aarch64_tables_splits(self._tables, virtual, size))
            del held
        return cuts

    def read_walk(self, virtual: int, walk: Any) -> Walk:
        """The native walk in Rift's words."""
        levels = walk.levels
        rows = zip(walk.entry_address[0:levels], walk.entry[0:levels], strict=True)
        steps = tuple(WalkStep(paging.LEVELS[at], Gpa(address), entry) for at, (address, entry) in enumerate(rows))
        if walk.status != lib.RIFT_AARCH64_MAPPED:
            return failed_walk(virtual, self._reason(virtual, walk.status, steps), steps, walk.page_size)
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
            caching=paging.CACHING_OF_INDEX[walk.attribute_index],
            accessed=bool(walk.accessed),
            dirty=bool(walk.dirty),
            steps=steps,
        )

    def _reason(self, virtual: int, status: int, steps: tuple[WalkStep, ...]) -> str:
        if status == lib.RIFT_AARCH64_NOT_CANONICAL:
            return f"no table translates {virtual:#x}: bits 63 to 48 differ"
        if not steps:
            return "the level 0 table itself lies outside guest memory"
        last = steps[-1]
        place = f"{last.level} entry at guest-physical {last.entry_address:#x}"
        if status == lib.RIFT_AARCH64_NOT_PRESENT:
            return f"the {place} is not valid ({last.entry:#x})"
        if status == lib.RIFT_AARCH64_TABLE_OUTSIDE:
            return f"the {place} ({last.entry:#x}) leads outside guest memory"
        if status == lib.RIFT_AARCH64_ADDRESS_SIZE:
            return f"the {place} ({last.entry:#x}) needs more than the {self._geometry.physical_bits} bits of this CPU"
        if status == lib.RIFT_AARCH64_ACCESS_FLAG:
            return f"the {place} ({last.entry:#x}) has its access flag clear, and this CPU does not set it"
        return f"the {place} ({last.entry:#x}) is no encoding of this level"
