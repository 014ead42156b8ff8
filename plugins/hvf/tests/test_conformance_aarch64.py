"""HVF keeps the contract of backends: AArch64 over the stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.backend import BackendConformance

if TYPE_CHECKING:
    from conftest import StandIn


class TestConformance(BackendConformance):
    @pytest.fixture
    def plugin(self, aarch64: StandIn) -> str:
        return "hvf"

    @pytest.fixture
    def isa(self) -> str:
        return "aarch64"
