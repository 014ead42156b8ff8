"""Guest-physical memory as the host sees it: regions, and checked views into them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from rift_core.errors import AddressError, MappingError

if TYPE_CHECKING:
    from rift_core.memory import Gpa, MemoryRegion


class GuestMemory:
    """The regions of one machine, sorted by guest-physical address.

    ``memory[gpa : gpa + n]`` is a memoryview of the guest's own bytes: no copy, inside one region.
    ``version`` changes with every added or removed region, so that native walkers know when to look again.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[MemoryRegion] = []
        self.version = 0
        self._snapshot: tuple[int, tuple[MemoryRegion, ...]] = (0, ())

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """All regions, ascending."""
        return self._snapshot[1]

    @property
    def snapshot(self) -> tuple[int, tuple[MemoryRegion, ...]]:
        """``version`` and ``regions`` of one moment: what belongs together although other threads add and remove."""
        return self._snapshot

    def add(self, region: MemoryRegion) -> None:
        """Add a region.

        :raises MappingError: it overlaps another one.
        """
        at = bisect_right(self._starts, region.guest_address)
        for neighbour in self._regions[max(at - 1, 0) : at + 1]:
            if neighbour.guest_address < region.end and region.guest_address < neighbour.end:
                raise MappingError(
                    f"guest-physical {region.guest_address:#x}-{region.end:#x} ({region.name or 'new region'}) "
                    f"overlaps {neighbour.guest_address:#x}-{neighbour.end:#x} ({neighbour.name or 'a region'})"
                )
        self._starts.insert(at, region.guest_address)
        self._regions.insert(at, region)
        self._changed()

    def remove(self, guest_address: Gpa) -> MemoryRegion:
        """Remove the region that starts at ``guest_address`` and return it.

        :raises AddressError: none starts there.
        """
        at = bisect_right(self._starts, guest_address) - 1
        if at < 0 or self._starts[at] != guest_address:
            raise AddressError(f"no memory region starts at guest-physical {guest_address:#x}")
        del self._starts[at]
        region = self._regions.pop(at)
        self._changed()
        return region

    def _changed(self) -> None:
        self.version += 1
        self._snapshot = (self.version, tuple(self._regions))

    def find(self, guest_address: int) -> MemoryRegion | None:
        """The region that contains ``guest_address``."""
        at = bisect_right(self._starts, guest_address) - 1
        if at < 0 or guest_address >= self._regions[at].end:
            return None
        return self._regions[at]

    def view(self, guest_address: int, size: int) -> memoryview:
        """``size`` bytes from ``guest_address`` on.

        :raises AddressError: they are not all inside one region.
        """
        region = self.find(guest_address)
        if size < 0 or region is None or guest_address + size > region.end:
            raise AddressError(self._outside(guest_address, size))
        offset = guest_address - region.guest_address
        return region.host[offset : offset + size]

    def __getitem__(self, key: slice | int) -> memoryview:
        if isinstance(key, int):
            return self.view(key, 1)
        if key.step not in (None, 1) or key.start is None or key.stop is None:
            raise AddressError("guest memory takes memory[gpa] and memory[start:stop], both ends given, without a step")
        return self.view(key.start, key.stop - key.start)

    def __setitem__(self, key: slice | int, data: bytes | bytearray | memoryview | int) -> None:
        if isinstance(key, int):
            self.view(key, 1)[0] = data  # type: ignore[assignment]
        else:
            self[key][:] = data  # type: ignore[assignment]

    def _outside(self, guest_address: int, size: int) -> str:
        known = ", ".join(f"{r.guest_address:#x}-{r.end:#x}" for r in self._regions) or "none"
        return f"guest-physical {guest_address:#x}, {size} bytes, is not inside one region (regions: {known})"
