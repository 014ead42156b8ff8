"""A machine's parts without a machine: placed areas, guest memory, registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.backend import CpuFeatures
from rift_core.testing.isa_parts import FakeRegisters, PlacedGuest, TableMemory
from rift_x86_64 import X86_64Config
from rift_x86_64.address_space import PageTables
from rift_x86_64.instruction_set import X86_64

if TYPE_CHECKING:
    from collections.abc import Callable


ALL_PAGES = (0x1000, 0x20_0000, 0x4000_0000)
FEATURES = CpuFeatures(ALL_PAGES, frozenset({"sse", "avx", "smep", "smap"}), 7)


class Guest(PlacedGuest):
    """One ISA object, its system areas, and one thread's."""

    def __init__(self, config: X86_64Config | None = None, features: CpuFeatures = FEATURES) -> None:
        super().__init__(X86_64(config or X86_64Config(), features))


class Space(TableMemory):
    """Page tables in 4 MiB at 2 GiB."""

    def __init__(self, largest_page: int = ALL_PAGES[-1], size: int = 4 << 20) -> None:
        super().__init__(size)
        self.tables = PageTables(largest_page, self.memory)
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
def space() -> Space:
    return Space()


@pytest.fixture
def make_space() -> Callable[..., Space]:
    return Space
