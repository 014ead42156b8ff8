"""AArch64 guests behave here as on any CPU."""

import pytest

from rift_core.testing.aarch64_behaviour import Aarch64Behaviour


class TestBehaviour(Aarch64Behaviour):
    @pytest.fixture
    def plugin(self) -> str:
        return "emulator"
