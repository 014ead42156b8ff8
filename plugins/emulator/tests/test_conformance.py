"""The emulator keeps the contract of backends."""

import pytest

from rift_core.testing.backend import BackendConformance


class TestX8664(BackendConformance):
    @pytest.fixture
    def plugin(self) -> str:
        return "emulator"

    @pytest.fixture
    def isa(self) -> str:
        return "x86_64"


class TestAarch64(BackendConformance):
    @pytest.fixture
    def plugin(self) -> str:
        return "emulator"

    @pytest.fixture
    def isa(self) -> str:
        return "aarch64"
