"""The suite that every ISA passes, over both granules."""

from __future__ import annotations

from typing import Any

import pytest

import rift_aarch64
from rift_core.backend import CpuFeatures
from rift_core.testing.isa import IsaConformance

TRACKING = {"id_aa64mmfr0_el1": 0x5, "id_aa64mmfr1_el1": 0x2}
"""48 bits of physical address; the CPU keeps access flag and dirty state."""


class TestAarch64(IsaConformance):
    @pytest.fixture
    def plugin(self) -> Any:
        return rift_aarch64

    @pytest.fixture
    def features(self) -> CpuFeatures:
        return CpuFeatures(id_registers=TRACKING)


class TestAarch64WithLargestPages(TestAarch64):
    @pytest.fixture
    def features(self) -> CpuFeatures:
        return CpuFeatures(page_sizes=(0x1000, 0x20_0000, 0x4000_0000), id_registers=TRACKING)


class TestAarch64With16KiB(TestAarch64):
    @pytest.fixture
    def features(self) -> CpuFeatures:
        return CpuFeatures(page_sizes=(0x4000, 0x200_0000), id_registers=TRACKING)
