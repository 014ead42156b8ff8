"""What an AArch64 CPU does in EL1 and EL0, test by test, for every backend that has a binding for it::

    from rift_core.testing.aarch64_behaviour import Aarch64Behaviour

    class TestBehaviour(Aarch64Behaviour):
        @pytest.fixture
        def plugin(self):
            return "emulator"             # the name of an installed backend, or its module

Where a kind of machine is known to do otherwise, ``tests/expected_gaps/<machine>.toml`` names the test and why.
"""

from __future__ import annotations

from rift_core.testing.aarch64_exceptions import DebugTests, ExceptionTests, InterruptTests
from rift_core.testing.aarch64_host import CallTests, DeviceTests
from rift_core.testing.aarch64_machine import Machine
from rift_core.testing.aarch64_paging import PagingTests
from rift_core.testing.behaviour import Behaviour

__all__ = ["Aarch64Behaviour"]


class Aarch64Behaviour(PagingTests, ExceptionTests, DebugTests, InterruptTests, CallTests, DeviceTests, Behaviour):
    """Aborts, exceptions, exception levels, debugging, interrupts, calls, devices."""

    machine_type = Machine
    needs = ("halt_exit",)
