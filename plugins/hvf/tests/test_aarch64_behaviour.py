"""What the CPU of the manuals does, over the stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.aarch64_behaviour import Aarch64Behaviour

if TYPE_CHECKING:
    from conftest import StandIn


class TestBehaviour(Aarch64Behaviour):
    @pytest.fixture
    def plugin(self, aarch64: StandIn) -> str:
        return "hvf"
