"""What the run loop itself costs an exit: in C, and with a Python handler. A binding of its own makes the exits.

The loop is the KVM plugin's, compiled as it is installed; the binding's ``enter`` does nothing, so no call of the
hypervisor is in the figures.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

from benchmarks.pairs import Result, compare
from benchmarks.twin import Counter, function_address, library
from rift_core import Exit, ExitHandler, ExitKind, NativeHandler, Resume, Stop, VCpu, VmSpec, open_machine
from rift_core.backend import Binding, CpuFeatures
from rift_core.dispatch import Dispatcher
from rift_kvm import KvmConfig
from rift_kvm.vm import create_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.exits import ExitResult
    from rift_kvm.vm import KvmVm

PORT = 0x10
"""Where the made-up guest reads; see twin/binding.c."""

OTHERS = range(0x100, 0x200, 0x10)
"""Ports of the other handlers, of which a machine has some: the look-up has to find the right one."""

NATIVE_EXITS = 200_000
PYTHON_EXITS = 10_000
NEVER = (1 << 64) - 1


@contextmanager
def made_up_vm() -> Iterator[KvmVm]:
    """A VM of the KVM plugin whose vCPUs never enter a guest."""
    binding = Binding("kvm", "made-up", native=library().twin_binding())
    vm = create_vm(KvmConfig(), VmSpec("made-up", binding, CpuFeatures()))
    try:
        yield vm
    finally:
        vm.close()


def handlers(native: NativeHandler | None, python: ExitHandler | None = None) -> list[ExitHandler]:
    """The one that answers, among others that do not."""
    kinds = frozenset({ExitKind.PORT_IO})
    idle = native and NativeHandler(native.address, native.context, native.owner)
    found = [
        ExitHandler(f"other at {port:#x}", kinds, range(port, port + 8), lambda vcpu, exit: None, idle)
        for port in OTHERS
    ]
    return [*found, python or ExitHandler("count", kinds, range(PORT, PORT + 1), lambda vcpu, exit: None, native)]


def plain_seconds() -> float:
    """Seconds an exit of the plain C loop around the same binding and the same kind of handler."""
    counter = Counter(0, NEVER)
    spent = library().twin_plain_loop(NATIVE_EXITS, function_address("twin_count_exit"), ctypes.byref(counter))
    if counter.count != NATIVE_EXITS:
        raise AssertionError("the plain loop did not count its exits")
    return float(spent) / 1e9 / NATIVE_EXITS


def native(pairs: int) -> Result:
    """Enter, decode, look the handler up, call it, answer: all in the KVM plugin's C loop."""
    counter = Counter()
    half = NativeHandler(function_address("twin_count_exit"), ctypes.addressof(counter), counter)
    with made_up_vm() as vm:
        for handler in handlers(half):
            vm.install(handler)
        vcpu = vm.create_vcpu(0)

        def ours() -> float:
            counter.count, counter.limit = 0, NATIVE_EXITS
            begin = time.perf_counter()
            vcpu.run()
            spent = time.perf_counter() - begin
            if vcpu.stopped is None or counter.count != NATIVE_EXITS:
                raise AssertionError("the loop did not count its exits")
            return spent / NATIVE_EXITS

        return compare(
            "dispatch", "the loop itself, native handler", ours, plain_seconds, pairs=pairs, promise="Rift <= 50 ns"
        )


def python(pairs: int) -> Result:
    """The same exits through ``Context.loop``, the dispatcher and a Python handler; no other thread is runnable."""
    count = 0
    answer = Resume(7)
    last = Stop(0, "counted")

    def handle(vcpu: VCpu, exit: Exit) -> ExitResult:
        nonlocal count
        count += 1
        return answer if count < PYTHON_EXITS else last

    wanted = ExitHandler("count", frozenset({ExitKind.PORT_IO}), range(PORT, PORT + 1), handle)
    dispatcher = Dispatcher(handlers(None, wanted))
    with made_up_vm() as vm, open_machine(code=b"\xf4", isa="x86_64", backend="kvm") as machine:
        context = machine.engine.contexts[0]
        context.vcpu, context.owner = vm.create_vcpu(0), get_ident()

        def ours() -> float:
            nonlocal count
            count = 0
            begin = time.perf_counter()
            context.loop(dispatcher)
            spent = time.perf_counter() - begin
            if count != PYTHON_EXITS:
                raise AssertionError("the loop did not count its exits")
            return spent / PYTHON_EXITS

        return compare(
            "python_exit",
            "the loop itself, Python handler",
            ours,
            plain_seconds,
            pairs=pairs,
            promise="added <= 1.5 us",
        )
