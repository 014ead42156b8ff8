"""A machine's parts without a machine: placed areas, guest memory, registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_aarch64 import Aarch64Config, paging
from rift_aarch64.address_space import PageTables
from rift_aarch64.instruction_set import Aarch64
from rift_core.backend import CpuFeatures
from rift_core.testing.isa_parts import FakeRegisters, PlacedGuest, TableMemory

if TYPE_CHECKING:
    from collections.abc import Callable


BOTH_GRANULES = (0x1000, 0x4000, 0x20_0000, 0x200_0000, 0x4000_0000)


def features(granule: int = 0x1000, tracking: int = 2, physical: int = 5) -> CpuFeatures:
    """A CPU with one granule; ``tracking`` and ``physical`` are HAFDBS and PARange."""
    return CpuFeatures(
        page_sizes=paging.SIZES_OF_GRANULE[granule],
        id_registers={"id_aa64mmfr0_el1": physical, "id_aa64mmfr1_el1": tracking},
    )


class Guest(PlacedGuest):
    """One ISA object, its system areas, and the areas of one thread of either privilege."""

    def __init__(self, config: Aarch64Config | None = None, cpu: CpuFeatures | None = None) -> None:
        super().__init__(Aarch64(config or Aarch64Config(), cpu or features()), "user")


class Space(TableMemory):
    """Page tables at 2 GiB."""

    def __init__(self, size: int = 8 << 20, *, config: Aarch64Config | None = None, **cpu: int) -> None:
        self.geometry = paging.geometry(config or Aarch64Config(), features(**cpu))
        super().__init__(size)
        self.tables = PageTables(self.geometry, self.memory)
        self.tables.add_tables(self.region)


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def make_guest() -> Callable[..., Guest]:
    return Guest


@pytest.fixture
def make_registers() -> type[FakeRegisters]:
    return FakeRegisters


@pytest.fixture
def make_features() -> Callable[..., CpuFeatures]:
    return features


@pytest.fixture(params=[0x1000, 0x4000], ids=["4KiB", "16KiB"])
def space(request: pytest.FixtureRequest) -> Space:
    return Space(granule=request.param)


@pytest.fixture
def make_space() -> Callable[..., Space]:
    return Space
