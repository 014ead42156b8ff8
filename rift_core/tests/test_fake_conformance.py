"""The fake backend keeps the contract of backends."""

from __future__ import annotations

import pytest

from rift_core.testing import fakes
from rift_core.testing.backend import BackendConformance


class TestFakeConformance(BackendConformance):
    @pytest.fixture
    def plugin(self) -> object:
        return fakes
