"""Guest-physical memory of the fake backend, as an interpreter reads and writes it."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from rift_core.errors import HypervisorError, MappingError
from rift_core.guest_memory import GuestMemory
from rift_core.host_memory import buffer_address
from rift_core.memory import Permission

if TYPE_CHECKING:
    from rift_core.memory import Gpa, MemoryRegion

PAGE_SIZE = 0x1000
_PAGE_MASK = PAGE_SIZE - 1


class PhysicalMemory:
    """The regions of one VM: the ``memory`` argument of :class:`rift_core.testing.fakes.FakeBinding`.

    ``lock`` is for instructions that are atomic for other vCPUs: an interpreter holds it from their read to
    their write.
    """

    def __init__(self, gpa_bits: int, max_slots: int) -> None:
        self.lock = threading.Lock()
        self.gpa_bits = gpa_bits
        self._max_slots = max_slots
        self._edit = threading.Lock()  # held for every look into _regions
        self._regions = GuestMemory()
        self._pages: dict[int, tuple[memoryview, int, bool]] = {}  # page number -> bytes, offset, writable

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """What is mapped, ascending."""
        return self._regions.regions

    def read(self, address: int, size: int) -> int | None:
        """A little-endian number of ``size`` bytes, or None where no memory is.

        Never crosses a page: a caller splits such an access.
        """
        page = self._pages.get(address >> 12) or self._find(address)
        if page is None:
            return None
        start = page[1] + (address & _PAGE_MASK)
        return int.from_bytes(page[0][start : start + size], "little")

    def write(self, address: int, size: int, value: int) -> bool:
        """Store a little-endian number; False where no memory is or it is read-only: the access is an exit then."""
        page = self._pages.get(address >> 12) or self._find(address)
        if page is None or not page[2]:
            return False
        start = page[1] + (address & _PAGE_MASK)
        page[0][start : start + size] = value.to_bytes(size, "little")
        return True

    def view(self, address: int, size: int, writable: bool) -> memoryview | None:
        """The bytes themselves if they lie in one region that allows the access."""
        with self._edit:
            region = self._regions.find(address)
        if region is None or size < 0 or address + size > region.end:
            return None
        if writable and not region.permissions & Permission.WRITE:
            return None
        offset = address - region.guest_address
        return region.host[offset : offset + size]

    def add(self, region: MemoryRegion) -> None:
        """Map a region.

        :raises HypervisorError: EINVAL (misaligned, out of reach, a read-only buffer for a writable region),
            EEXIST (overlap), E2BIG (no slot left); nothing has changed then.
        """
        host = region.host
        if host.nbytes == 0 or (region.guest_address | host.nbytes) & _PAGE_MASK:
            raise self._invalid(f"{region.guest_address:#x}, {host.nbytes:#x} bytes: not whole pages")
        if not host.contiguous or buffer_address(host) & _PAGE_MASK:
            raise self._invalid("the host buffer does not start on a page")
        if region.guest_address < 0 or region.end > 1 << self.gpa_bits:
            raise self._invalid(f"{region.end:#x} is beyond {self.gpa_bits} address bits")
        if region.permissions & Permission.WRITE and host.readonly:
            raise self._invalid("the region is writable but the host buffer is not")
        if len(self._regions.regions) >= self._max_slots:
            raise HypervisorError("map_memory", errno.E2BIG, f"all {self._max_slots} slots are in use")
        try:
            with self._edit:
                self._regions.add(region)
        except MappingError as error:
            raise HypervisorError("map_memory", errno.EEXIST, str(error)) from error

    def remove(self, guest_address: Gpa) -> None:
        """Unmap the region that starts there.

        :raises AddressError: none does.
        """
        with self._edit:
            self._regions.remove(guest_address)
            self._pages = {}  # replaced, not emptied: another thread may be reading it

    def clear(self) -> None:
        """Forget all regions."""
        with self._edit:
            self._regions = GuestMemory()
            self._pages = {}

    def _find(self, address: int) -> tuple[memoryview, int, bool] | None:
        with self._edit:
            pages = self._pages
            region = self._regions.find(address)
        if region is None:
            return None
        host = region.host if region.host.format == "B" and region.host.ndim == 1 else region.host.cast("B")
        offset = (address & ~_PAGE_MASK) - region.guest_address
        page = (host, offset, bool(region.permissions & Permission.WRITE))
        pages[address >> 12] = page
        return page

    @staticmethod
    def _invalid(text: str) -> HypervisorError:
        return HypervisorError("map_memory", errno.EINVAL, text)
