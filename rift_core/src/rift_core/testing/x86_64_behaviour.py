"""What an x86-64 CPU does in supervisor mode, test by test, for every backend that has a binding for it::

    from rift_core.testing.x86_64_behaviour import X86_64Behaviour

    class TestBehaviour(X86_64Behaviour):
        @pytest.fixture
        def plugin(self):
            return "emulator"             # the name of an installed backend, or its module

Where a kind of machine is known to do otherwise, ``tests/expected_gaps/<machine>.toml`` names the test and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.tools import (
    expect_gap,
    names_of,
    plugin_module,
    probe_backend,
    require_backend,
    require_capability,
    skip_here,
)
from rift_core.testing.x86_64_devices import MmioTests, PortTests
from rift_core.testing.x86_64_exceptions import DebugTests, ExceptionTests, InterruptTests, PrivilegeTests
from rift_core.testing.x86_64_machine import Machine
from rift_core.testing.x86_64_paging import PagingTests

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["X86_64Behaviour"]


class X86_64Behaviour(  # noqa: N801 - the architecture's name
    PagingTests,
    ExceptionTests,
    PrivilegeTests,
    DebugTests,
    InterruptTests,
    MmioTests,
    PortTests,
):
    """Page faults, exceptions, privilege levels, debugging, interrupts, devices."""

    @pytest.fixture
    def plugin(self) -> object:
        """The backend: its name, or its module."""
        raise LookupError("a subclass of X86_64Behaviour overrides the fixture `plugin`")

    @pytest.fixture
    def machine(self, plugin: object, request: pytest.FixtureRequest) -> Iterator[Machine]:
        """A bare machine, once it is sure that the test can run with the backend."""
        probe = require_backend(plugin)
        if probe.isas and "x86_64" not in probe.isas:
            skip_here("this backend runs no x86-64 guests here")
        module = plugin_module("backend", plugin) if isinstance(plugin, str) else plugin
        name, _ = probe_backend(module)
        expect_gap(probe.machine, request.node)
        names = names_of(request.node)
        for mark in request.node.iter_markers("rift_requires"):
            for need in mark.args:
                require_capability(name, "x86_64", probe, need, names)
        machine = Machine(module)
        yield machine
        machine.close()
