"""x86-64 guests behave here as on any CPU."""

import pytest

from rift_core.testing.x86_64_behaviour import X86_64Behaviour


class TestBehaviour(X86_64Behaviour):
    @pytest.fixture
    def plugin(self) -> str:
        return "emulator"
