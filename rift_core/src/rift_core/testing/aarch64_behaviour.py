"""What an AArch64 CPU does in EL1 and EL0, test by test, for every backend that has a binding for it::

    from rift_core.testing.aarch64_behaviour import Aarch64Behaviour

    class TestBehaviour(Aarch64Behaviour):
        @pytest.fixture
        def plugin(self):
            return "emulator"             # the name of an installed backend, or its module

Where a kind of machine is known to do otherwise, ``tests/expected_gaps/<machine>.toml`` names the test and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.aarch64_exceptions import DebugTests, ExceptionTests, InterruptTests, PagingTests
from rift_core.testing.aarch64_host import CallTests, DeviceTests
from rift_core.testing.aarch64_machine import Machine
from rift_core.testing.tools import (
    expect_gap,
    names_of,
    plugin_module,
    probe_backend,
    require_backend,
    require_capability,
    skip_here,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Aarch64Behaviour"]


class Aarch64Behaviour(PagingTests, ExceptionTests, DebugTests, InterruptTests, CallTests, DeviceTests):
    """Aborts, exceptions, exception levels, debugging, interrupts, calls, devices."""

    @pytest.fixture
    def plugin(self) -> object:
        """The backend: its name, or its module."""
        raise LookupError("a subclass of Aarch64Behaviour overrides the fixture `plugin`")

    @pytest.fixture
    def machine(self, plugin: object, request: pytest.FixtureRequest) -> Iterator[Machine]:
        """A bare machine, once it is sure that the test can run with the backend."""
        whole = require_backend(plugin)
        if whole.isas and "aarch64" not in whole.isas:
            skip_here("this backend runs no AArch64 guests here")
        probe = whole.for_isa("aarch64")
        module = plugin_module("backend", plugin) if isinstance(plugin, str) else plugin
        name, _ = probe_backend(module)
        expect_gap(probe.machine, request.node)
        names = names_of(request.node)
        require_capability(name, "aarch64", probe, "halt_exit", names)
        for mark in request.node.iter_markers("rift_requires"):
            for need in mark.args:
                require_capability(name, "aarch64", probe, need, names)
        machine = Machine(module)
        yield machine
        machine.close()
