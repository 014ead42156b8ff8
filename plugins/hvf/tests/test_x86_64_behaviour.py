"""What the CPU of the manuals does, over the stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.x86_64_behaviour import X86_64Behaviour

if TYPE_CHECKING:
    from conftest import StandIn


class TestBehaviour(X86_64Behaviour):
    @pytest.fixture
    def plugin(self, x86_64: StandIn) -> str:
        return "hvf"
