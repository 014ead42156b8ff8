"""What every backend must do: subclass :class:`BackendConformance` and give it the backend.

::

    from rift_core.testing.backend import BackendConformance

    class TestConformance(BackendConformance):
        @pytest.fixture
        def plugin(self):
            return "kvm"                  # the name of an installed backend, or its module

Everything else is inherited. Fixtures that may be overridden as well: ``isa`` (default "x86_64"; its plugin
and a binding must be installed) and ``guests`` (machine code, for an ISA that
:mod:`rift_core.testing.guests` does not know).

Tests that need more than every backend has say so with :func:`requires`, and are skipped with a reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.errors import HypervisorError
from rift_core.testing.backend_exits import ExitTests, SupervisorTests
from rift_core.testing.backend_memory import MemoryTests
from rift_core.testing.backend_native import NativeHandlerTests
from rift_core.testing.backend_vcpus import AtomicTests, KickTests, LifeTests, OwnershipTests, RegisterTests
from rift_core.testing.bench import UNMAPPED, Bench, Worker
from rift_core.testing.faults import CALLS, FaultInjecting
from rift_core.testing.guests import Guests, guests_for
from rift_core.testing.leaks import no_leaks
from rift_core.testing.requirements import requires
from rift_core.testing.tools import probe_backend, require_guests
from rift_core.testing.vm import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BackendConformance", "requires"]

CYCLES = 1000

_SWALLOWED = frozenset({"unmap_memory"})
"""Calls of tear-down: a machine that is being closed may go on past their failure."""

_FROM_FINALIZERS = frozenset({"park"})
"""Called when a thread ends, where nobody is left to take an error."""

_UNUSED = frozenset(
    {
        "code_changed",
        "inject_exception",
        "inject_interrupt",
        "install",
        "read_registers",
        "restore",
        "save",
        "set_debug",
        "unmap_memory",
    }
)
"""Calls that a machine without handlers and debuggers has no need of."""


class BackendConformance(
    ExitTests,
    SupervisorTests,
    MemoryTests,
    RegisterTests,
    KickTests,
    OwnershipTests,
    AtomicTests,
    NativeHandlerTests,
    LifeTests,
):
    """The contract of :mod:`rift_core.backend`, test by test."""

    @pytest.fixture
    def plugin(self) -> object:
        """The backend: its name, or its module."""
        raise LookupError("a subclass of BackendConformance overrides the fixture `plugin`")

    @pytest.fixture
    def isa(self) -> str:
        """The ISA to test with."""
        return "x86_64"

    @pytest.fixture
    def guests(self, isa: str) -> Guests:
        """Machine code of that ISA."""
        return guests_for(isa)

    @pytest.fixture
    def backend(self, plugin: object, isa: str, request: pytest.FixtureRequest) -> object:
        """The backend's module, once it is sure that the test can run with it."""
        return require_guests(plugin, isa, request.node)

    @pytest.fixture
    def bench(self, backend: object, isa: str, guests: Guests) -> Iterator[Bench]:
        """A bare VM with page tables."""
        bench = Bench(backend, isa, guests)
        yield bench
        bench.close()

    def test_probe_is_complete(self, backend: object, isa: str) -> None:
        _, whole = probe_backend(backend)
        probe = whole.for_isa(isa)
        assert probe.reason
        assert not probe.isas or isa in probe.isas
        assert probe.machine
        assert probe.limits.page_size >= 0x1000
        assert probe.limits.max_vcpus >= 2
        assert probe.features.page_sizes[0] == probe.limits.page_size or probe.features.page_sizes[0] >= 0x1000
        assert list(probe.features.page_sizes) == sorted(probe.features.page_sizes)

    def test_thousand_machines_leave_nothing(self, backend: object, isa: str, guests: Guests) -> None:
        def cycle(times: int) -> None:
            for _ in range(times):
                bench = Bench(backend, isa, guests)
                bench.finish(bench.vcpu(guests.end()))
                bench.close()

        cycle(3)
        with no_leaks():
            cycle(CYCLES)

    @pytest.mark.parametrize("call", sorted(CALLS - _FROM_FINALIZERS))
    def test_failing_call_leaves_nothing(self, backend: object, isa: str, guests: Guests, call: str) -> None:
        """Whatever call of the backend fails, the machine reports it and lets go of everything."""
        from rift_core.assembly import RAW_CODE_ADDRESS
        from rift_core.machine import open_machine

        name, probe = probe_backend(backend)
        page = max(probe.limits.page_size, 0x1000)

        def use() -> None:
            with open_machine(code=guests.add_function(), isa=isa, backend=name) as machine:
                assert machine.call(RAW_CODE_ADDRESS, 2, 3) == 5
                machine.map(UNMAPPED, page)
                machine.unmap(UNMAPPED, page)
                for _ in range(2):  # the second thread adopts what the first one parked
                    Worker(lambda: machine.call(RAW_CODE_ADDRESS, 4, 5)).join()
                machine.thread("main").start(1, 2).join(timeout=SECONDS)

        use()
        fired = 0
        with no_leaks():
            for after in range(12):
                reported = ""
                with FaultInjecting(backend, call, after) as fault:
                    try:
                        use()
                    except HypervisorError as error:
                        reported = error.operation
                assert reported == (call if fault.fired else "") or call in _SWALLOWED
                if not fault.fired:
                    break
                fired += 1
        assert fired or call in _UNUSED

    def test_call_through_the_public_interface(self, backend: object, isa: str, guests: Guests) -> None:
        from rift_core.assembly import RAW_CODE_ADDRESS
        from rift_core.machine import open_machine

        name, _ = probe_backend(backend)
        with open_machine(code=guests.add_function(), isa=isa, backend=name) as machine:
            assert machine.call(RAW_CODE_ADDRESS, 2, 3) == 5
            assert machine.call(RAW_CODE_ADDRESS, -7, 3) == -4

    def test_kill_through_the_public_interface(self, backend: object, isa: str, guests: Guests) -> None:
        from rift_core.machine import open_machine

        name, _ = probe_backend(backend)
        with open_machine(code=guests.spin(), isa=isa, backend=name) as machine:
            thread = machine.thread("main").start()
            thread.kill()
            assert thread.join(timeout=30).reason == "killed"
