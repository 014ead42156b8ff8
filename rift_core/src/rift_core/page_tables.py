"""Page tables that an ISA's native code builds, edits and walks, as a :class:`rift_core.memory.AddressSpace`.

The native half follows ``rift_table_memory.h``: an opaque object, and functions ``{prefix}_tables_create``,
``_destroy``, ``_set_regions``, ``_add``, ``_root``, ``_free``, ``_map``, ``_unmap``, ``_protect``, ``_walk`` and
``_accessed`` over ``struct {prefix}_mapping``, ``_walk`` and ``_page``. A subclass says what entries mean.

One lock guards the native object, so any Python thread may call. Guest memory is looked up again when its
regions have changed; the regions in force are held for the length of each call, so that no host memory
goes away under the native code.
"""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

from rift_core.errors import MappingError
from rift_core.memory import Caching, Gpa, Gva, Permission, Walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.guest_memory import GuestMemory
    from rift_core.memory import Mapping, MemoryRegion, WalkStep

_OWN_ROOT = (1 << 64) - 1  # the top-level table that the builder has made
_CHUNK = 4096  # pages that one native look at accessed and dirty bits returns


@cache
def _functions(lib: Any, prefix: str) -> dict[str, Any]:
    names = ("set_regions", "add", "root", "free", "map", "unmap", "protect", "walk", "accessed")
    return {name: getattr(lib, f"{prefix}_tables_{name}") for name in names}


class NativePageTables(ABC):
    """Page tables in ``memory``. Nothing can be mapped before :meth:`add_tables` has given them a place.

    :param ffi, lib: of the plugin's extension module.
    :param prefix: of its functions and structs, such as ``rift_x86_64``.
    :param tables: what ``{prefix}_tables_create`` returned.
    :param page: size of a table, and of the smallest page.
    """

    def __init__(self, ffi: Any, lib: Any, prefix: str, tables: Any, page: int, memory: GuestMemory) -> None:
        if tables == ffi.NULL:
            raise MemoryError
        self._ffi = ffi
        self._functions = _functions(lib, prefix)
        self._rows = f"struct {prefix}_mapping[]"
        self._pages = f"struct {prefix}_page[]"
        self._page = page
        self._memory = memory
        self._given: list[MemoryRegion] = []  # table memory that is no region of the machine
        self._version = -1
        self._lock = threading.Lock()
        self._tables = ffi.gc(tables, getattr(lib, f"{prefix}_tables_destroy"))
        self._error = ffi.new("struct rift_error *")
        self._where = ffi.new("uint64_t *")
        self._walk = ffi.new(f"struct {prefix}_walk *")

    # -- what a subclass says ----------------------------------------------------------------------

    @abstractmethod
    def ordered(self, mappings: Sequence[Mapping]) -> list[Mapping]:
        """Checked and sorted by address. :raises MappingError: one is wrong by itself, or two overlap."""

    @abstractmethod
    def check_range(self, virtual: int, size: int, permissions: Permission, what: str) -> None:
        """Check a range that is edited. :raises MappingError: misaligned, empty, or no address of the ISA."""

    @abstractmethod
    def mapping_flags(self, mapping: Mapping) -> tuple[int, int]:
        """Flags of a smallest page's entry, and the largest page that may be used."""

    @abstractmethod
    def permission_flags(self, permissions: Permission) -> int:
        """The flags that ``protect`` replaces."""

    @abstractmethod
    def read_walk(self, virtual: int, walk: Any) -> Walk:
        """What the native walk says, in Rift's words; ``walk`` is used again afterwards."""

    @abstractmethod
    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Upper bound of the table pages that mapping all of ``mappings`` can take."""

    # -- AddressSpace ------------------------------------------------------------------------------

    @property
    def root(self) -> Gpa:
        """Guest-physical address of the top-level table."""
        with self._lock:
            return Gpa(self._functions["root"](self._tables))

    @property
    def free_tables(self) -> int:
        """Table pages that are left."""
        with self._lock:
            return int(self._functions["free"](self._tables))

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
                status = self._functions["add"](self._tables, region.guest_address, region.size, self._error)
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
            errno.EINVAL: f"it must be whole pages of {self._page:#x}",
            errno.EFAULT: "it does not lie inside one memory region",
            errno.EROFS: "its region is read-only",
            errno.EEXIST: "it has been given already",
            errno.ENOSPC: "the top-level tables do not fit",
        }.get(code, f"out of host memory ({errno.errorcode.get(code, code)})")
        raise MappingError(
            f"guest-physical {region.guest_address:#x}-{region.end:#x} cannot hold page tables: {reason}"
        )

    def map(self, mapping: Mapping) -> None:
        """Map a range that is not mapped yet.

        :raises MappingError: misaligned, not an address of the ISA, overlapping, or no table memory left.
        """
        self.map_all((mapping,))

    def map_all(self, mappings: Sequence[Mapping]) -> None:
        """Map several ranges, all or none.

        :raises MappingError: as :meth:`map`.
        """
        mappings = self.ordered(mappings)
        rows = [(m.virtual, m.physical, m.size, *self.mapping_flags(m)) for m in mappings]
        native = self._ffi.new(self._rows, rows)
        with self._lock:
            held = self._regions()
            status = self._functions["map"](self._tables, native, len(mappings), self._where, self._error)
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
        self.check_range(virtual, size, Permission.NONE, what)
        with self._lock:
            held = self._regions()
            status = self._functions["unmap"](self._tables, virtual, size, self._where, self._error)
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
        self.check_range(virtual, size, permissions, what)
        flags = self.permission_flags(permissions)
        with self._lock:
            held = self._regions()
            status = self._functions["protect"](self._tables, virtual, size, flags, self._where, self._error)
            del held
            if status == 0:
                return
            code, where = self._error.code, self._where[0]
        raise self._refusal(what, code, where)

    def wants_pause(self, virtual: Gva, size: int) -> bool:
        """No: every edit is one that CPUs may watch."""
        return False

    def walk(self, virtual: Gva, root: Gpa | None = None) -> Walk:
        """Translate one address; tables that the guest has forged are no danger: a failed walk says why.

        ``root``: another top-level table than the builder's own.
        """
        if not 0 <= virtual < 1 << 64:
            return failed_walk(virtual, f"{virtual:#x} is not a 64-bit address")
        with self._lock:
            held = self._regions()
            self._functions["walk"](self._tables, _OWN_ROOT if root is None else root, virtual, self._walk)
            del held
            return self.read_walk(virtual, self._walk)

    def accessed_dirty(self, virtual: Gva, size: int, *, clear: bool = False) -> list[tuple[Gva, int, bool, bool]]:
        """``(page, page_size, accessed, dirty)`` of each mapped page of the range; optionally clears both bits.

        :raises MappingError: the range is misaligned or no range of the ISA, or forged tables make it look larger
            than all of guest memory several times over.
        """
        what = f"cannot list {virtual:#x}-{virtual + size:#x}"
        self.check_range(virtual, size, Permission.NONE, what)
        ffi = self._ffi
        end = virtual + size
        result: list[tuple[Gva, int, bool, bool]] = []
        pages = ffi.new(self._pages, _CHUNK)
        count, following = ffi.new("size_t *"), ffi.new("uint64_t *")
        at: int = virtual
        while at < end:
            with self._lock:
                held = self._regions()
                status = self._functions["accessed"](
                    self._tables, at, end - at, clear, pages, _CHUNK, count, following, self._where, self._error
                )
                limit = 4 * sum(region.size for region in held) // self._page + 4 * _CHUNK
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
            ffi = self._ffi
            native: Any = ffi.new("struct rift_table_region[]", len(held))
            for at, region in enumerate(held):
                row = native[at]
                row.address = region.guest_address
                row.size = region.size
                row.host = int(ffi.cast("uintptr_t", ffi.from_buffer(region.host)))
                row.writable = not region.host.readonly
            if self._functions["set_regions"](self._tables, native, len(held), self._error) < 0:
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


def failed_walk(virtual: int, reason: str, steps: tuple[WalkStep, ...] = (), page_size: int = 0) -> Walk:
    """A walk that leads nowhere."""
    return Walk(Gva(virtual), None, Permission.NONE, page_size, Caching.WRITE_BACK, False, False, steps, reason)
