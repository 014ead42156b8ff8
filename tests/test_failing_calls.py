"""Every call of the hypervisor fails once in the life of a machine: an error, and nothing stays open."""

from __future__ import annotations

import ctypes
import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest
from machine_code import CODE, ISA, X86_64

from rift_core import HypervisorError, Machine, aligned_buffer, open_machine
from rift_core.testing import fakes
from rift_core.testing.faults import CALLS, FaultInjecting
from rift_core.testing.leaks import no_leaks
from rift_core.testing.tools import plugin_module, require_backend, require_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA, SHARED = 0x1000_0000, 0x2000_0000


def life(backend: str) -> None:
    """A machine from its making to its end, with every kind of call in between."""
    isa, code = ("x86_64", X86_64) if backend == "fake" else (ISA, CODE)
    with open_machine(code=code["add"], isa=isa, backend=backend) as machine:
        use(machine, code["add"])


def use(machine: Machine, add: bytes) -> None:
    assert machine.call(0x40_0000, 20, 22) == 42
    machine.map(DATA, 0x40_0000, "rw")
    machine.protect(DATA, 0x1000, "r")
    machine.unmap(DATA, 0x1000)
    with machine.share(aligned_buffer(0x1000), at=SHARED, writable=True):
        machine.load_code(add)
    thread = machine.thread().start(1, 2)
    assert thread.join(20).status == 3
    assert thread.registers[machine.isa.program_counter] != 0
    other = threading.Thread(target=machine.call, args=(0x40_0000, 1, 1))  # a vCPU of its own, or a parked one
    other.start()
    other.join()


@pytest.fixture
def quiet_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a helper thread raises is expected here."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)


@pytest.mark.usefixtures("quiet_threads")
@pytest.mark.parametrize("backend", ["kvm", "fake"])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_method_of_the_backend_that_fails(backend: str, call: str) -> None:
    require_backend(backend)
    module = fakes if backend == "fake" else plugin_module("backend", backend)
    life(backend)
    with no_leaks():
        for after in range(200):
            with FaultInjecting(module, fail_at=call, after=after) as fault:
                try:
                    life(backend)
                    failure = None
                except HypervisorError as error:
                    failure = error
            if not fault.fired:
                break
            # A helper thread may have met it; and a park that fails when its thread ends has nobody to tell.
            assert failure is None or "injected" in str(failure)
    assert not fault.fired


class Faulty:
    """ioctl(2), the ``at``-th call of which fails."""

    def __init__(self) -> None:
        self.at = 0
        self.calls = 0
        self.failed = 0  # the request
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, use_errno=True)

        def call(descriptor: int, request: int, argument: int | None) -> int:
            self.calls += 1
            if self.calls == self.at:
                self.failed = request
                ctypes.set_errno(errno.ENOBUFS)
                return -1
            result: int = libc.ioctl(descriptor, request, argument)
            return result

        self._keep = kind(call)
        self.address: int = ctypes.cast(self._keep, ctypes.c_void_p).value or 0

    def arm(self, at: int) -> None:
        self.at, self.calls, self.failed = at, 0, 0


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Every VM of KVM is made with it."""
    require_machine(lambda: open_machine(code=CODE["add"], isa=ISA, backend="kvm")).close()
    import rift_kvm.vm

    made = Faulty()
    original: Callable[..., Any] = rift_kvm.vm.KvmVm.__init__

    def initialise(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **(options | {"ioctl": made.address}))

    monkeypatch.setattr(rift_kvm.vm.KvmVm, "__init__", initialise)
    yield made
    made.arm(0)


@pytest.mark.usefixtures("quiet_threads")
def test_every_call_of_kvm_that_fails(faulty: Faulty) -> None:
    faulty.arm(0)
    life("kvm")
    total = faulty.calls
    assert total > 30
    requests = set()
    with no_leaks():
        for at in range(1, total + 1):
            faulty.arm(at)
            try:
                life("kvm")
                failure = None
            except HypervisorError as error:
                failure = error
            requests.add(faulty.failed)
            assert failure is None or "No buffer space available (errno 105)" in str(failure)
    assert len(requests) > 5
