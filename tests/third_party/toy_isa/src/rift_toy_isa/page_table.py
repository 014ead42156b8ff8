"""The page table: one level, a chain of pages full of entries. See the README for its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import AddressError, MappingError
from rift_core.memory import Caching, Gpa, Gva, Permission, Walk, WalkStep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rift_core.guest_memory import GuestMemory
    from rift_core.memory import Mapping, MemoryRegion

PAGE = 0x1000
ENTRY = 16
FIRST = 16
PER_PAGE = (PAGE - FIRST) // ENTRY
VIRTUAL_BITS = 48
PHYSICAL_BITS = 46
CHAIN_LIMIT = 4096
"""Pages that a walk follows: a chain that the guest has tied into a loop must end."""

VALID, WRITE, EXECUTE, USER, ACCESSED, DIRTY = 1, 2, 4, 8, 0x80, 0x100
CACHING_SHIFT = 4


def entry_of(virtual: int, permissions: Permission, caching: Caching) -> int:
    """The first word of an entry. Permission's bits 1 to 3 stand in the same places."""
    return virtual | VALID | int(permissions) & (WRITE | EXECUTE | USER) | int(caching) << CACHING_SHIFT


def permissions_of(entry: int) -> Permission:
    """What an entry allows."""
    return Permission.READ | Permission(entry & (WRITE | EXECUTE | USER))


def pages_for(entries: int) -> int:
    """Pages that a chain of so many entries takes, the root not counted."""
    return -(-entries // PER_PAGE)


class PageTable:
    """The address space: see :class:`rift_core.memory.AddressSpace`. It reads guest memory each time, since
    the guest may edit it too."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._pages: list[int] = []
        self._root = 0

    @property
    def root(self) -> Gpa:
        """Of the page that points to the chain."""
        return Gpa(self._root)

    @property
    def free_tables(self) -> int:
        """Pages that are not in the chain."""
        return len(self._free())

    def tables_needed(self, mappings: Sequence[Mapping]) -> int:
        """Pages that the entries of ``mappings`` fill, one more for those that are there already."""
        return pages_for(sum(mapping.size // PAGE for mapping in mappings))

    def add_tables(self, region: MemoryRegion) -> None:
        """The first region's first page is the root."""
        pages = range(region.guest_address, region.end - region.size % PAGE, PAGE)
        if not self._pages:
            if not pages:
                raise MappingError("the toy's page table needs at least one page")
            self._root = pages[0]
        self._pages += pages

    def map(self, mapping: Mapping) -> None:
        """As ``AddressSpace.map``."""
        self.map_all((mapping,))

    def map_all(self, mappings: Sequence[Mapping]) -> None:
        """All or none of them.

        :raises MappingError: as ``AddressSpace.map``.
        """
        entries: dict[int, tuple[int, int]] = {}
        for mapping in mappings:
            self._check(mapping.virtual, mapping.size)
            if mapping.physical % PAGE or not 0 <= mapping.physical <= (1 << PHYSICAL_BITS) - mapping.size:
                raise MappingError(f"{mapping}: guest-physical {mapping.physical:#x} is misaligned or out of reach")
            if mapping.size // PAGE > PER_PAGE * len(self._pages):
                raise MappingError(f"{mapping}: no table memory is left")
            for offset in range(0, mapping.size, PAGE):
                virtual = mapping.virtual + offset
                if virtual in entries:
                    raise MappingError(f"{mapping} overlaps another mapping at {virtual:#x}")
                entries[virtual] = (
                    entry_of(virtual, mapping.permissions, mapping.caching),
                    mapping.physical + offset,
                )
        slots = []
        for at, entry in self._slots():
            if entry & VALID and entry & ~(PAGE - 1) in entries:
                raise MappingError(f"guest-virtual {entry & ~(PAGE - 1):#x} is mapped already")
            if not entry & VALID:
                slots.append(at)
        free = self._free()
        missing = pages_for(max(0, len(entries) - len(slots)))
        if missing > len(free):
            raise MappingError(f"{len(entries)} page table entries do not fit: no table memory is left")
        chain = [self._root, *self._chain()]
        for page in free[:missing]:
            self._memory.view(page, PAGE)[:] = bytes(PAGE)
            self._write(chain[-1], page)
            chain.append(page)
            slots += range(page + FIRST, page + PAGE, ENTRY)
        for at, (entry, physical) in zip(slots, entries.values(), strict=False):
            self._write(at + 8, physical)
            self._write(at, entry)  # last: a vCPU that looks meanwhile finds the whole entry or none

    def unmap(self, virtual: Gva, size: int) -> None:
        """As ``AddressSpace.unmap``; pages of the chain that are empty then leave it."""
        for at in self._entries(virtual, size).values():
            self._write(at, 0)
        before = self._root
        for page in list(self._chain()):
            if any(self._read(at) & VALID for at in range(page + FIRST, page + PAGE, ENTRY)):
                before = page
            else:
                self._write(before, self._read(page))

    def wants_pause(self, virtual: Gva, size: int) -> bool:
        """As ``AddressSpace.wants_pause``."""
        return False

    def protect(self, virtual: Gva, size: int, permissions: Permission) -> None:
        """As ``AddressSpace.protect``."""
        for at in self._entries(virtual, size).values():
            entry = self._read(at) & ~(WRITE | EXECUTE | USER)
            self._write(at, entry | int(permissions) & (WRITE | EXECUTE | USER))

    def walk(self, virtual: Gva, root: Gpa | None = None) -> Walk:
        """As ``AddressSpace.walk``. There is no other root."""
        if root not in (None, self._root):
            return _failed(virtual, f"{root:#x} is not the root of the page table")
        try:
            for at, entry in self._slots():
                if entry & VALID and entry & ~(PAGE - 1) == virtual & ~(PAGE - 1):
                    physical = self._read(at + 8) & ~(PAGE - 1) | virtual % PAGE
                    if physical >> PHYSICAL_BITS:
                        return _failed(virtual, f"the entry's guest-physical address {physical:#x} is out of reach")
                    return Walk(
                        virtual,
                        Gpa(physical),
                        permissions_of(entry),
                        PAGE,
                        _caching(entry),
                        bool(entry & ACCESSED),
                        bool(entry & DIRTY),
                        (WalkStep("list", Gpa(at), entry),),
                    )
        except (AddressError, MappingError) as error:
            return _failed(virtual, str(error))
        return _failed(virtual, "no entry of the list names this page")

    def accessed_dirty(self, virtual: Gva, size: int, *, clear: bool = False) -> list[tuple[Gva, int, bool, bool]]:
        """As ``AddressSpace.accessed_dirty``."""
        self._check(virtual, size)
        found = []
        for at, entry in list(self._guarded_slots()):
            page = entry & ~(PAGE - 1)
            if entry & VALID and virtual <= page < virtual + size:
                found.append((Gva(page), PAGE, bool(entry & ACCESSED), bool(entry & DIRTY)))
                if clear:
                    self._write(at, entry & ~(ACCESSED | DIRTY))
        return sorted(found)

    # -- guest memory ----------------------------------------------------------------------------

    def _entries(self, virtual: int, size: int) -> dict[int, int]:
        """Where the entries of a range stand.

        :raises MappingError: one is missing.
        """
        self._check(virtual, size)
        found: dict[int, int] = {}
        for at, entry in self._guarded_slots():
            page = entry & ~(PAGE - 1)
            if entry & VALID and virtual <= page < virtual + size:
                found.setdefault(page, at)
        if len(found) != size // PAGE:
            raise MappingError(f"{virtual:#x}-{virtual + size:#x} is not mapped throughout")
        return found

    def _free(self) -> list[int]:
        try:
            used = {self._root, *self._chain()}
        except (AddressError, MappingError):
            return []  # nobody knows what the guest's chain still leads to
        return [page for page in self._pages if page not in used]

    def _guarded_slots(self) -> Iterator[tuple[int, int]]:
        try:
            yield from self._slots()
        except AddressError as error:
            raise MappingError(f"the page table cannot be read: {error}") from error

    def _slots(self) -> Iterator[tuple[int, int]]:
        """Each entry of the chain: its address and its first word."""
        for page in self._chain():
            words = self._memory.view(page, PAGE).cast("Q")
            for number in range(FIRST // 8, PAGE // 8, 2):
                yield page + number * 8, words[number]

    def _chain(self) -> Iterator[int]:
        """The chain's pages.

        :raises MappingError: the guest has made it lead in circles or to where no tables are.
        :raises AddressError: the memory is gone.
        """
        mine = set(self._pages)
        page = self._read(self._root)
        while page:
            if page not in mine or page == self._root:
                raise MappingError(f"the guest has changed its page table: {page:#x} is in the chain")
            mine.discard(page)
            yield page
            page = self._read(page)

    def _read(self, address: int) -> int:
        return int.from_bytes(self._memory.view(address, 8), "little")

    def _write(self, address: int, value: int) -> None:
        self._memory.view(address, 8).cast("Q")[0] = value

    @staticmethod
    def _check(virtual: int, size: int) -> None:
        if size <= 0 or virtual % PAGE or size % PAGE or not 0 <= virtual <= (1 << VIRTUAL_BITS) - size:
            raise MappingError(f"{virtual:#x}, {size:#x} bytes: not whole pages below {1 << VIRTUAL_BITS:#x}")


def _caching(entry: int) -> Caching:
    value = entry >> CACHING_SHIFT & 7
    return Caching(value) if value <= max(Caching) else Caching.UNCACHED


def _failed(virtual: Gva, reason: str) -> Walk:
    return Walk(virtual, None, Permission.NONE, PAGE, Caching.WRITE_BACK, False, False, (), reason)
