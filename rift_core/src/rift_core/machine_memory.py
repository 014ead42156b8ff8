"""A machine's memory: guest-virtual bytes for the host, and the regions and page tables that change while it runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rift_core.errors import AddressError, MappingError, UnsupportedError
from rift_core.heap import PhysicalHeap
from rift_core.host_memory import HostMemory
from rift_core.interrupts import HELD
from rift_core.isa import Area, AreaRequest
from rift_core.layout import HEAP, align_up
from rift_core.memory import Gpa, Gva, Mapping, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rift_core.backend import Limits, Vm
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa
    from rift_core.layout import MachinePlan
    from rift_core.memory import AddressSpace, Walk

_ZEROS = memoryview(bytes(1 << 20))
_RELOAD_PIECE = 0x10_0000


class Edits:
    """A reentrant lock; who holds it is not interrupted by Ctrl-C, since a change cut in half cannot be undone."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        HELD.__enter__()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
        HELD.__exit__(*exception)


class MachineMemory:
    """Memory and page tables of one machine; :class:`~rift_core.engine.Engine` adds what runs on them."""

    def __init__(self, plan: MachinePlan, isa: Isa, vm: Vm, host_limits: Limits, memory: GuestMemory) -> None:
        self.plan = plan
        self.isa = isa
        self.vm = vm
        self.host_limits = host_limits
        self.memory = memory
        self.doorbell = plan.doorbell
        self.page = max(isa.page_sizes[0], host_limits.page_size)
        self.space: AddressSpace
        self.root = Gpa(0)  # of the page tables
        self.pristine = True  # no vCPU was made and no view of RAM given out: what is free is still zero
        self.heap = PhysicalHeap(self.page)
        self.heap.release(plan.heap.start, len(plan.heap))
        self.written_at_start: list[tuple[Gva, bytes]] = []  # by the host, into the image
        self.edits = Edits()  # memory regions, page tables, the heap, the virtual window
        self._window_next = int(plan.window_next)

    # -- bytes -----------------------------------------------------------------------------------

    def view(self, address: int, size: int) -> memoryview:
        """Guest-virtual bytes as one memoryview.

        :raises AddressError: not mapped, or not contiguous inside one region.
        """
        if size <= 0:
            raise AddressError(f"a view of {size} bytes at {address:#x}: the size must be positive")
        first = None
        expected = None
        at = address
        end = address + size
        while at < end:
            walk = self.space.walk(Gva(at))
            if walk.physical is None:
                raise AddressError(f"guest-virtual {at:#x} is not mapped: {walk.reason}")
            if first is None:
                first = walk.physical
                self.memory.view(first, size)  # else a guest's own tables could make the loop long
            elif walk.physical != expected:
                raise AddressError(
                    f"guest-virtual {address:#x}-{end:#x} is not contiguous in guest-physical memory (it breaks "
                    f"at {at:#x}); take a view of each part"
                )
            step = walk.page_size - at % walk.page_size
            expected = walk.physical + step
            at += step
        return self.memory.view(first or 0, size)

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes, across pages.

        :raises AddressError: not mapped.
        """
        parts = [bytes(view) for view in self._pieces(address, size)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes, across pages, whatever the page permissions say.

        :raises AddressError: not mapped, or memory that the host shares read-only; nothing is written then.
        """
        self._write(address, data, Permission.NONE)

    def read_user(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes that user mode may read itself.

        :raises AddressError: some of them are not mapped for it.
        """
        return b"".join([bytes(view) for view in self._pieces(address, size, Permission.USER)])

    def write_user(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes that user mode may write itself: all of them, or none.

        :raises AddressError: some of them are not mapped for it, or read-only.
        """
        self._write(address, data, Permission.USER | Permission.WRITE)

    def _write(self, address: int, data: bytes, needed: Permission) -> None:
        pieces = list(self._pieces(address, len(data), needed))
        if any(piece.readonly for piece in pieces):
            raise AddressError(f"guest-virtual {address:#x}, {len(data)} bytes, is shared read-only")
        at = 0
        for piece in pieces:
            piece[:] = data[at : at + len(piece)]
            at += len(piece)

    def write_code(self, address: int, data: bytes) -> None:
        """As :meth:`write_virtual`; every vCPU then sees the new instructions.

        :raises AddressError: as there.
        """
        self.write_virtual(address, data)
        self.code_changed(address, len(data))

    def code_changed(self, address: int, size: int) -> None:
        """Instructions at a guest-virtual range have been written from the host; what is not mapped is passed over."""
        end = address + size
        while address < end:
            walk = self.space.walk(Gva(address))
            step = min((walk.page_size or self.page) - address % (walk.page_size or self.page), end - address)
            if walk.physical is not None:
                self.vm.code_changed(walk.physical, step)
            address += step

    def _pieces(self, address: int, size: int, needed: Permission = Permission.NONE) -> Iterator[memoryview]:
        end = address + size
        while address < end:
            walk = self.space.walk(Gva(address))
            if walk.physical is None:
                raise AddressError(f"guest-virtual {address:#x} is not mapped: {walk.reason}")
            if needed & ~walk.permissions:
                raise AddressError(f"guest-virtual {address:#x} is mapped {walk.permissions}, not {needed}")
            step = min(walk.page_size - address % walk.page_size, end - address)
            yield self.memory.view(walk.physical, step)
            address += step

    def translate(self, address: int) -> Walk:
        """A page walk; never raises for an address that is not mapped."""
        return self.space.walk(Gva(address))

    # -- guest-physical memory -------------------------------------------------------------------

    def take_physical(self, size: int, alignment: int = 0, congruent_to: int = 0, name: str = "memory") -> Gpa:
        """Free guest-physical RAM, zeroed; the machine grows by a region when its RAM is used up.

        :raises MappingError: no slot, address space or host memory is left.
        """
        with self.edits:
            start = self.heap.take(size, alignment, congruent_to)
            if start is None:
                self._grow(size + alignment, name)
                start = self.heap.take(size, alignment, congruent_to)
                if start is None:
                    raise MappingError(f"no room for {size:#x} bytes of guest-physical memory ({name})")
            if not self.pristine:
                view = self.memory.view(start, size)
                for at in range(0, size, len(_ZEROS)):  # in pieces: a gigabyte need not be there twice
                    piece = view[at : at + len(_ZEROS)]
                    piece[:] = _ZEROS[: len(piece)]
            return Gpa(start)

    def add_region(self, region: MemoryRegion) -> None:
        """Add guest-physical memory, for the host and for the guest.

        :raises MappingError: overlap.  :raises HypervisorError: the backend refused; nothing has changed then.
        """
        with self.edits:
            self.memory.add(region)
            try:
                self.vm.map_memory(region)
            except BaseException:
                self.memory.remove(region.guest_address)
                raise

    def remove_region(self, guest_address: Gpa) -> None:
        """Take a region from the guest; stale page-table entries then lead nowhere.

        :raises HypervisorError: the backend refused; nothing has changed then.
        """
        with self.edits:
            self.vm.unmap_memory(guest_address)
            self.memory.remove(guest_address)

    def _grow(self, size: int, name: str) -> None:
        size = align_up(max(size, HEAP), self.page)
        regions = self.memory.regions
        at = align_up(max(r.end for r in regions), HEAP)
        for window in sorted(
            [*self.host_limits.reserved, range(self.doorbell, self.doorbell + self.page)], key=lambda w: w.start
        ):
            if at < window.stop and window.start < at + size:
                at = align_up(window.stop, HEAP)
        if at + size > 1 << self.host_limits.gpa_bits:
            raise MappingError(f"no guest-physical addresses are left for {size:#x} bytes ({name})")
        if len(regions) >= self.host_limits.max_slots:
            raise MappingError(
                f"all {self.host_limits.max_slots} memory slots are in use; set memory.size higher at the start"
            )
        host = HostMemory(size, name)
        permissions = Permission.READ | Permission.WRITE | Permission.EXECUTE
        self.add_region(MemoryRegion(Gpa(at), host.view, permissions, "ram"))
        self.heap.release(at, size)

    # -- the image -------------------------------------------------------------------------------

    def reload_image(self) -> None:
        """Put the image back as it was before the first thread ran; all vCPUs are outside the guest.

        :raises UnsupportedError: parts of it are mapped from the file, where the guest's changes are the only copy.
        """
        if any(region.segment is not None for region in self.plan.regions):
            raise UnsupportedError("the image is mapped from its file (map_file): it cannot be loaded again")
        with self.edits:
            for segment in self.plan.binary.segments:
                data = segment.data.cast("B")
                for at in range(0, segment.memory_size, _RELOAD_PIECE):
                    piece = bytes(data[at : at + _RELOAD_PIECE])
                    size = min(_RELOAD_PIECE, segment.memory_size - at)
                    self.write_code(segment.address + at, piece.ljust(size, b"\0"))
            for address, content in self.written_at_start:
                self.write_virtual(address, content)

    # -- page tables -----------------------------------------------------------------------------

    def map_pages(self, *mappings: Mapping) -> None:
        """Add mappings to the page tables, all or none; the tables grow when they must.

        :raises MappingError: see ``AddressSpace.map_all``.
        """
        with self.edits:
            needed = self.space.tables_needed(mappings)
            if needed > self.space.free_tables:
                self.add_tables(needed)
            self.space.map_all(mappings)

    def add_tables(self, pages: int) -> None:
        """Room for at least ``pages`` more tables."""
        size = max(pages, 64) * self.page
        physical = self.take_physical(size, name="tables")
        region = MemoryRegion(physical, self.memory.view(physical, size), Permission.READ | Permission.WRITE, "tables")
        self.space.add_tables(region)

    def place_area(self, name: str, size: int, permissions: Permission) -> Area:
        """New memory in Rift's virtual window, with a guard page below and above."""
        return self.place_areas((AreaRequest(name, size, permissions),))[name]

    def place_areas(self, requests: Iterable[AreaRequest], owner: str = "") -> dict[str, Area]:
        """Several at once, by the names in the requests; ``owner`` stands before those in the mappings."""
        page = self.page
        sizes = [(request, align_up(request.size, page)) for request in requests]
        whole = sum(size for _, size in sizes)
        with self.edits:
            at = int(self.take_physical(whole, name=owner or sizes[0][0].name))
            virtual = self._window_next
            physical = at
            areas: dict[str, Area] = {}
            mappings = []
            for request, size in sizes:
                name = f"{owner}/{request.name}" if owner else request.name
                view = self.memory.view(physical, size)
                areas[request.name] = Area(name, Gva(virtual), Gpa(physical), view)
                mappings.append(
                    Mapping(Gva(virtual), Gpa(physical), size, request.permissions, name, largest_page=page)
                )
                physical += size
                virtual += size + page
            self._window_next = virtual
            try:
                self.map_pages(*mappings)
            except BaseException:
                self.heap.release(at, whole)
                raise
            return areas
