"""A machine's parts without a machine, for tests of an ISA: registers, placed areas, memory for page tables."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

from rift_core import doorbell
from rift_core.errors import AddressError
from rift_core.guest_memory import GuestMemory
from rift_core.isa import Area, Argument, EntryState
from rift_core.memory import Gpa, Gva, MemoryRegion, Permission
from rift_core.testing.paging_model import TABLES_AT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.isa import AreaRequest, Isa, Privilege, Vectors

ENTRY = 0x40_1000
"""Where the threads of a :class:`PlacedGuest` start; nothing is there."""


class FakeRegisters:
    """Registers that can be read and written: what an ISA needs of a vCPU."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        return {name: self.values.get(name, 0) for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        self.values.update(values)


class PlacedAreas:
    """Memory here and there, at the same virtual as physical addresses.

    :param first: address of the first area.
    :param gap: bytes between two.
    """

    def __init__(self, first: int, gap: int) -> None:
        self.placed: list[Area] = []
        self._next = first
        self._gap = gap

    def place(self, name: str, size: int) -> Area:
        """One more area, all zero."""
        area = Area(name, Gva(self._next), Gpa(self._next), memoryview(bytearray(size)))
        self._next += size + self._gap
        self.placed.append(area)
        return area

    def read_virtual(self, address: int, size: int) -> bytes:
        """Bytes inside one area.

        :raises AddressError: they are not.
        """
        return bytes(self._view(address, size))

    def write_virtual(self, address: int, data: bytes) -> None:
        """Store bytes inside one area.

        :raises AddressError: they would not be.
        """
        self._view(address, len(data))[:] = data

    def _view(self, address: int, size: int) -> memoryview:
        for area in self.placed:
            if area.virtual <= address and address + size <= area.end:
                return area.host[address - area.virtual : address - area.virtual + size]
        raise AddressError(f"{address:#x} is not mapped")


class PlacedGuest(PlacedAreas):
    """An ISA's areas of the system and of one thread, with a stack.

    :param privilege: whose areas the thread has.
    """

    def __init__(self, isa: Isa, privilege: Privilege = "supervisor", first: int = 0x10_0000) -> None:
        page = isa.page_sizes[0]
        super().__init__(first, 2 * page)
        self.isa = isa
        self.system_areas = self._place_all(isa.system_areas())
        self.system = isa.install_system(self.system_areas, doorbell.default_gva())
        self.areas = self._place_all(isa.thread_areas(privilege))
        self.areas["stack"] = self.place("stack", 4 * page)

    def _place_all(self, requests: Sequence[AreaRequest]) -> dict[str, Area]:
        return {request.name: self.place(request.name, request.size) for request in requests}

    def state(
        self,
        arguments: tuple[Argument, ...] = (),
        privilege: Privilege = "supervisor",
        vectors: Vectors | None = None,
    ) -> EntryState:
        """What a thread is to start with."""
        return EntryState(Gva(ENTRY), Gva(self.areas["stack"].end), Gpa(TABLES_AT), privilege, arguments, vectors)

    def start(self, privilege: Privilege = "supervisor", vectors: Vectors | None = None) -> dict[str, int]:
        """The registers that a thread starts with."""
        return self.isa.thread_registers(self.system, self.areas, self.state((), privilege, vectors))


class TableMemory:
    """Guest memory that holds nothing but page tables, at 2 GiB."""

    def __init__(self, size: int) -> None:
        self.at = TABLES_AT
        self.bytes = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.region = MemoryRegion(Gpa(self.at), memoryview(self.bytes), Permission.READ | Permission.WRITE, "tables")
        self.memory = GuestMemory()
        self.memory.add(self.region)

    def entry(self, address: int) -> int:
        """Eight bytes of a table."""
        return int.from_bytes(self.memory[address : address + 8], "little")

    def put_entry(self, address: int, value: int) -> None:
        """Write them."""
        self.memory[address : address + 8] = value.to_bytes(8, "little")


def integers(*values: int) -> tuple[Argument, ...]:
    """Arguments of eight bytes each."""
    return tuple(Argument("integer", 8, value) for value in values)


def double(value: float) -> Argument:
    """A floating-point argument."""
    return Argument("float", 8, struct.unpack("<Q", struct.pack("<d", value))[0])
