"""What an x86-64 CPU does in supervisor mode, test by test, for every backend that has a binding for it::

    from rift_core.testing.x86_64_behaviour import X86_64Behaviour

    class TestBehaviour(X86_64Behaviour):
        @pytest.fixture
        def plugin(self):
            return "emulator"             # the name of an installed backend, or its module

Where a kind of machine is known to do otherwise, ``tests/expected_gaps/<machine>.toml`` names the test and why.
"""

from __future__ import annotations

from rift_core.testing.behaviour import Behaviour
from rift_core.testing.x86_64_devices import MmioTests, PortTests
from rift_core.testing.x86_64_exceptions import DebugTests, ExceptionTests, InterruptTests, PrivilegeTests
from rift_core.testing.x86_64_machine import Machine
from rift_core.testing.x86_64_paging import PagingTests

__all__ = ["X86_64Behaviour"]


class X86_64Behaviour(  # noqa: N801 - the architecture's name
    PagingTests,
    ExceptionTests,
    PrivilegeTests,
    DebugTests,
    InterruptTests,
    MmioTests,
    PortTests,
    Behaviour,
):
    """Page faults, exceptions, privilege levels, debugging, interrupts, devices."""

    machine_type = Machine
