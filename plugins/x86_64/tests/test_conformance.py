"""The suite that every ISA passes."""

from __future__ import annotations

from typing import Any

import pytest

import rift_x86_64
from rift_core.backend import CpuFeatures
from rift_core.testing.isa import IsaConformance


class TestX86_64(IsaConformance):  # noqa: N801
    @pytest.fixture
    def plugin(self) -> Any:
        return rift_x86_64


class TestX86_64WithLargestPages(IsaConformance):  # noqa: N801
    @pytest.fixture
    def plugin(self) -> Any:
        return rift_x86_64

    @pytest.fixture
    def features(self) -> CpuFeatures:
        return CpuFeatures(page_sizes=(0x1000, 0x20_0000, 0x4000_0000), names=frozenset({"smep", "smap"}), xcr0=7)
