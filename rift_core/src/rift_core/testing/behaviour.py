"""What a CPU does, test by test: what the suites of the instruction sets share.

A suite is a subclass of :class:`Behaviour` and of the tests; see :mod:`rift_core.testing.x86_64_behaviour` and
:mod:`rift_core.testing.aarch64_behaviour`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from rift_core.testing.tools import require_backend, require_guests, skip_here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.testing.bare_machine import BareMachine


class Behaviour:
    """The fixtures: a backend, and a bare machine on it."""

    machine_type: ClassVar[type[BareMachine]]
    needs: ClassVar[tuple[str, ...]] = ()
    """Capabilities that every test of the suite needs."""

    @pytest.fixture
    def plugin(self) -> object:
        """The backend: its name, or its module."""
        raise LookupError(f"{type(self).__name__} must override the fixture `plugin`")

    @pytest.fixture
    def machine(self, plugin: object, request: pytest.FixtureRequest) -> Iterator[BareMachine]:
        """A bare machine, once it is sure that the test can run with the backend."""
        isa = self.machine_type.isa
        isas = require_backend(plugin).isas
        if isas and isa not in isas:
            skip_here(f"this backend runs no {isa} guests here")
        module = require_guests(plugin, isa, request.node, self.needs)
        machine = self.machine_type(module)
        yield machine
        machine.close()
