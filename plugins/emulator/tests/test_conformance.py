"""The emulator keeps the contract of backends."""

import pytest

from rift_core.testing.backend import BackendConformance


class TestConformance(BackendConformance):
    @pytest.fixture
    def plugin(self) -> str:
        return "emulator"
