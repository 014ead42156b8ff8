"""HVF keeps the contract of backends: x86-64 over the stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.backend import BackendConformance

if TYPE_CHECKING:
    from conftest import StandIn


class TestConformance(BackendConformance):
    @pytest.fixture
    def plugin(self, x86_64: StandIn) -> str:
        return "hvf"
