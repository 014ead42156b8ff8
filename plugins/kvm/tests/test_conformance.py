"""KVM keeps the contract of backends."""

import pytest

from rift_core.testing.backend import BackendConformance
from rift_kvm.host import host_isa


class TestConformance(BackendConformance):
    @pytest.fixture
    def plugin(self) -> str:
        return "kvm"

    @pytest.fixture
    def isa(self) -> str:
        return host_isa() or "x86_64"
