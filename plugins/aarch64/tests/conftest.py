"""A machine's parts without a machine: placed areas, guest memory, registers."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from rift_aarch64 import Aarch64Config, paging
from rift_aarch64.address_space import PageTables
from rift_aarch64.instruction_set import Aarch64
from rift_core import doorbell
from rift_core.backend import CpuFeatures
from rift_core.errors import AddressError
from rift_core.guest_memory import GuestMemory
from rift_core.isa import Area, EntryState
from rift_core.memory import Gpa, Gva, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rift_core.isa import AreaRequest, Argument, Privilege, Vectors

BOTH_GRANULES = (0x1000, 0x4000, 0x20_0000, 0x200_0000, 0x4000_0000)


def features(granule: int = 0x1000, tracking: int = 2, physical: int = 5) -> CpuFeatures:
    """A CPU with one granule; ``tracking`` and ``physical`` are HAFDBS and PARange."""
    return CpuFeatures(
        page_sizes=paging.SIZES_OF_GRANULE[granule],
        id_registers={"id_aa64mmfr0_el1": physical, "id_aa64mmfr1_el1": tracking},
    )


class Registers:
    """What an ISA needs of a vCPU, over a dict."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        return {name: self.values.get(name, 0) for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        self.values.update(values)


class Guest:
    """One ISA object, its system areas, and the areas of one thread of either privilege."""

    def __init__(self, config: Aarch64Config | None = None, cpu: CpuFeatures | None = None) -> None:
        self.isa = Aarch64(config or Aarch64Config(), cpu or features())
        self.placed: list[Area] = []
        self._next = 0x10_0000
        self.system_areas = {request.name: self.place(request) for request in self.isa.system_areas()}
        self.system = self.isa.install_system(self.system_areas, doorbell.default_gva())
        self.areas = {request.name: self.place(request) for request in self.isa.thread_areas("user")}
        self.areas["stack"] = self._area("stack", 0x4000)

    def place(self, request: AreaRequest) -> Area:
        return self._area(request.name, request.size)

    def _area(self, name: str, size: int) -> Area:
        area = Area(name, Gva(self._next), Gpa(self._next), memoryview(bytearray(size)))
        self._next += size + 0x8000
        self.placed.append(area)
        return area

    def read_virtual(self, address: int, size: int) -> bytes:
        for area in self.placed:
            if area.virtual <= address and address + size <= area.end:
                return bytes(area.host[address - area.virtual : address - area.virtual + size])
        raise AddressError(f"{address:#x} is not mapped")

    def write_virtual(self, address: int, data: bytes) -> None:
        for area in self.placed:
            if area.virtual <= address and address + len(data) <= area.end:
                area.host[address - area.virtual : address - area.virtual + len(data)] = data
                return
        raise AddressError(f"{address:#x} is not mapped")

    def state(
        self,
        arguments: tuple[Argument, ...] = (),
        privilege: Privilege = "supervisor",
        vectors: Vectors | None = None,
    ) -> EntryState:
        stack = Gva(self.areas["stack"].end)
        return EntryState(Gva(0x40_1000), stack, Gpa(0x8000_0000), privilege, arguments, vectors)

    def start(self, privilege: Privilege = "supervisor", vectors: Vectors | None = None) -> dict[str, int]:
        return self.isa.thread_registers(self.system, self.areas, self.state((), privilege, vectors))


class Space:
    """Page tables at 2 GiB."""

    def __init__(self, size: int = 8 << 20, *, config: Aarch64Config | None = None, **cpu: int) -> None:
        self.geometry = paging.geometry(config or Aarch64Config(), features(**cpu))
        self.at = 0x8000_0000
        self.bytes = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.region = MemoryRegion(Gpa(self.at), memoryview(self.bytes), Permission.READ | Permission.WRITE, "tables")
        self.memory = GuestMemory()
        self.memory.add(self.region)
        self.tables = PageTables(self.geometry, self.memory)
        self.tables.add_tables(self.region)

    def entry(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 8], "little")

    def put_entry(self, address: int, value: int) -> None:
        self.memory[address : address + 8] = value.to_bytes(8, "little")


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def make_guest() -> Callable[..., Guest]:
    return Guest


@pytest.fixture
def make_registers() -> type[Registers]:
    return Registers


@pytest.fixture
def make_features() -> Callable[..., CpuFeatures]:
    return features


@pytest.fixture(params=[0x1000, 0x4000], ids=["4KiB", "16KiB"])
def space(request: pytest.FixtureRequest) -> Space:
    return Space(granule=request.param)


@pytest.fixture
def make_space() -> Callable[..., Space]:
    return Space
