"""The page tables of one machine: :class:`rift_core.memory.AddressSpace` over the native builder and walker.

One lock guards the native object, so any Python thread may call. Guest memory is looked up again when its
regions have changed; the regions in force are held for the length of each call, so that no host memory
goes away under the native code.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

from rift_core.errors import MappingError
from rift_core.memory import Caching, Gpa, Gva, Permission, Walk, WalkStep
from rift_x86_64 import paging
from rift_x86_64._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.guest_memory import GuestMemory
    from rift_core.memory import Mapping, MemoryRegion

_CHUNK = 4096  # pages that one native look at accessed and dirty bits returns


def _host_address(view: memoryview) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(view)))


class PageTables:
    """Page tables in ``memory``, with pages of at most ``largest_page`` bytes.

    Nothing can be mapped before :meth:`add_tables` has given it memory; its first page becomes the root.
    """

    def __init__(self, largest_page: int, memory: GuestMemory) -> None:
        self._largest_page = largest_page
        self._memory = memory
        self._given: list[MemoryRegion] = []  # table memory that is no region of the machine
        self._version = -1
        self._lock = threading.Lock()
        tables = lib.rift_x86_64_tables_create(largest_page)
        if tables == ffi.NULL:
            raise MemoryError
        self._tables = ffi.gc(tables, lib.rift_x86_64_tables_destroy)
        self._error = ffi.new("struct rift_error *")
        self._where = ffi.new("uint64_t *")
        self._walk = ffi.new("struct rift_x86_64_walk *")

    @property
    def root(self) -> Gpa:
        """Guest-physical address of the PML4: CR3."""
        with self._lock:
            return Gpa(lib.rift_x86_64_tables_root(self._tables))

    @property
    def free_tables(self) -> int:
        """Table pages that are left."""
        with self._lock:
            return lib.rift_x86_64_tables_free(self._tables)

    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Upper bound of the table pages that mapping all of ``mappings`` can take."""
        return paging.tables_needed(mappings, self._largest_page)

    def add_tables(self, region: MemoryRegion) -> None:
        """Give the builder more memory for tables: writable, whole pages, inside one region of the machine.

        :raises MappingError: it is misaligned, read-only, given already, or lies across regions.
        """
        with self._lock:
            inside = self._memory.find(region.guest_address) is not None
            if not inside:
                self._given.append(region)
                self._version = -1
            try:
                held = self._regions()
                status = lib.rift_x86_64_tables_add(self._tables, region.guest_address, region.size, self._error)
            except OverflowError as error:
                raise MappingError(f"table memory at {region.guest_address:#x} is out of reach") from error
            del held
            if status == 0:
                return
            if not inside:
                self._given.remove(region)
                self._version = -1
            code = self._error.code
        reason = {
            errno.EINVAL: "it must be whole pages",
            errno.EFAULT: "it does not lie inside one memory region",
            errno.EROFS: "its region is read-only",
            errno.EEXIST: "it has been given already",
        }.get(code, f"out of host memory ({errno.errorcode.get(code, code)})")
        raise MappingError(
            f"guest-physical {region.guest_address:#x}-{region.end:#x} cannot hold page tables: {reason}"
        )

    def map(self, mapping: Mapping) -> None:
        """Map a range that is not mapped yet.

        :raises MappingError: misaligned, non-canonical, overlapping, or no table memory left.
        """
        self.map_all((mapping,))

    def map_all(self, mappings: Sequence[Mapping]) -> None:
        """Map several ranges, all or none.

        :raises MappingError: as :meth:`map`.
        """
        mappings = paging.ordered(mappings)
        native = ffi.new("struct rift_x86_64_mapping[]", len(mappings))
        for at, mapping in enumerate(mappings):
            row = native[at]
            row.linear = mapping.virtual
            row.physical = mapping.physical
            row.size = mapping.size
            row.flags = paging.permission_flags(mapping.permissions) | paging.CACHING_FLAGS[mapping.caching]
            row.largest_page = paging.largest_page_of(mapping, self._largest_page)
        with self._lock:
            held = self._regions()
            status = lib.rift_x86_64_tables_map(self._tables, native, len(mappings), self._where, self._error)
            del held
            if status == 0:
                return
            code, where = self._error.code, self._where[0]
        what = str(mappings[0]) if len(mappings) == 1 else f"{len(mappings)} mappings"
        raise self._refusal(f"cannot map {what}", code, where)

    def unmap(self, virtual: Gva, size: int) -> None:
        """Remove what is mapped there; large pages are split at the edges, emptied tables become free.

        :raises MappingError: part of the range is not mapped, or no table memory is left for a split.
        """
        what = f"cannot unmap {virtual:#x}-{virtual + size:#x}"
        paging.check_range(virtual, size, Permission.NONE, what)
        with self._lock:
            held = self._regions()
            status = lib.rift_x86_64_tables_unmap(self._tables, virtual, size, self._where, self._error)
            del held
            if status == 0:
                return
            code, where = self._error.code, self._where[0]
        raise self._refusal(what, code, where)

    def protect(self, virtual: Gva, size: int, permissions: Permission) -> None:
        """Change permissions of a mapped range; caching, accessed and dirty bits stay.

        :raises MappingError: part of the range is not mapped, or no table memory is left for a split.
        """
        what = f"cannot protect {virtual:#x}-{virtual + size:#x} as {permissions}"
        paging.check_range(virtual, size, permissions, what)
        flags = paging.permission_flags(permissions)
        with self._lock:
            held = self._regions()
            status = lib.rift_x86_64_tables_protect(self._tables, virtual, size, flags, self._where, self._error)
            del held
            if status == 0:
                return
            code, where = self._error.code, self._where[0]
        raise self._refusal(what, code, where)

    def walk(self, virtual: Gva) -> Walk:
        """Translate one address; tables that the guest has forged are no danger: a failed walk says why."""
        if not 0 <= virtual < 1 << 64:
            return _failed(virtual, f"{virtual:#x} is not a 64-bit address")
        with self._lock:
            held = self._regions()
            walk = self._walk
            lib.rift_x86_64_tables_walk(self._tables, virtual, walk)
            del held
            levels, status, physical, page_size = walk.levels, walk.status, walk.physical, walk.page_size
            rows = tuple(zip(walk.entry_address[0:levels], walk.entry[0:levels], strict=True))
            writable, user, executable, memory_type = walk.writable, walk.user, walk.executable, walk.memory_type
        steps = tuple(WalkStep(paging.LEVELS[at], Gpa(address), entry) for at, (address, entry) in enumerate(rows))
        if status != lib.RIFT_X86_64_MAPPED:
            return _failed(virtual, _walk_reason(virtual, status, steps), steps, page_size)
        leaf = steps[-1].entry
        permissions = Permission.READ
        if writable:
            permissions |= Permission.WRITE
        if executable:
            permissions |= Permission.EXECUTE
        if user:
            permissions |= Permission.USER
        return Walk(
            virtual=virtual,
            physical=Gpa(physical),
            permissions=permissions,
            page_size=page_size,
            caching=paging.CACHING_OF_INDEX[memory_type],
            accessed=bool(leaf & paging.ACCESSED),
            dirty=bool(leaf & paging.DIRTY),
            steps=steps,
        )

    def accessed_dirty(self, virtual: Gva, size: int, *, clear: bool = False) -> list[tuple[Gva, int, bool, bool]]:
        """``(page, page_size, accessed, dirty)`` of each mapped page of the range; optionally clears both bits.

        :raises MappingError: the range is misaligned or not canonical, or forged tables make it look larger
            than all of guest memory several times over.
        """
        what = f"cannot list {virtual:#x}-{virtual + size:#x}"
        paging.check_range(virtual, size, Permission.NONE, what)
        end = virtual + size
        result: list[tuple[Gva, int, bool, bool]] = []
        pages = ffi.new("struct rift_x86_64_page[]", _CHUNK)
        count, following = ffi.new("size_t *"), ffi.new("uint64_t *")
        at: int = virtual
        while at < end:
            with self._lock:
                held = self._regions()
                status = lib.rift_x86_64_tables_accessed(
                    self._tables, at, end - at, clear, pages, _CHUNK, count, following, self._where, self._error
                )
                limit = 4 * sum(region.size for region in held) // paging.SMALL_PAGE + 4 * _CHUNK
                del held
                if status != 0:
                    code, where = self._error.code, self._where[0]
                    break
            result.extend(
                (Gva(page.linear), page.size, bool(page.accessed), bool(page.dirty)) for page in pages[0 : count[0]]
            )
            if len(result) > limit:
                raise self._refusal(what, errno.ELOOP, at)
            at = following[0] if following[0] > at else end
        else:
            return result
        raise self._refusal(what, code, where)

    def _regions(self) -> tuple[MemoryRegion, ...]:
        """The regions, known to the native code; the caller keeps them while it calls. Needs the lock."""
        version, held = self._memory.snapshot
        if self._given:
            held = tuple(sorted((*held, *self._given), key=lambda region: region.guest_address))
        if version != self._version:
            native: Any = ffi.new("struct rift_x86_64_region[]", len(held))
            for at, region in enumerate(held):
                row = native[at]
                row.address = region.guest_address
                row.size = region.size
                row.host = _host_address(region.host)
                row.writable = not region.host.readonly
            if lib.rift_x86_64_tables_set_regions(self._tables, native, len(held), self._error) < 0:
                raise MemoryError
            self._version = version
        return held

    def _refusal(self, what: str, code: int, where: int) -> MappingError:
        if code == errno.EEXIST:
            there = self.walk(Gva(where))
            onto = (
                f" (to guest-physical {there.physical:#x}, {there.permissions})" if there.physical is not None else ""
            )
            reason = f"{where:#x} is mapped already{onto}; unmap it first"
        elif code == errno.ENOENT:
            reason = f"nothing is mapped at {where:#x}"
        elif code == errno.ENOMEM:
            more = f"{where} more table pages are needed" if 0 < where < 1 << 32 else "table pages are needed"
            reason = f"the page tables are full: {more}; give the address space more table memory"
        elif code == errno.EFAULT:
            reason = (
                f"the guest's page tables are damaged: an entry on the way to {where:#x} leads outside guest memory"
            )
        elif code == errno.EROFS:
            reason = f"the page table for {where:#x} lies in read-only memory"
        elif code == errno.ELOOP:
            reason = f"the guest's page tables are damaged: they repeat themselves near {where:#x}"
        else:
            reason = errno.errorcode.get(code, str(code))
        return MappingError(f"{what}: {reason}")


def _failed(virtual: int, reason: str, steps: tuple[WalkStep, ...] = (), page_size: int = 0) -> Walk:
    return Walk(Gva(virtual), None, Permission.NONE, page_size, Caching.WRITE_BACK, False, False, steps, reason)


def _walk_reason(virtual: int, status: int, steps: tuple[WalkStep, ...]) -> str:
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
