"""Kicks and signals: never lost, never spurious twice, harmless at any time."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kvm_bench import NOWHERE, SECONDS, SPIN, Worker
from pydantic import ValidationError

from rift_core.errors import HypervisorError, StateError
from rift_core.exits import ExitKind
from rift_core.testing.tools import only_where
from rift_kvm import KvmConfig
from rift_kvm import guest_x86_64 as g

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvm_bench import KvmBench

PORT_LOOP = b"\xe6\x10\xeb\xfc"  # again: out 0x10, al; jmp again


def run_off_main(bench: KvmBench, code: bytes, ready: threading.Event) -> Callable[[], ExitKind]:
    def own() -> ExitKind:
        vcpu = bench.start(code)
        ready.set()
        kind = vcpu.run().kind
        vcpu.park()
        return kind

    return own


def test_a_kick_before_the_run(bench: KvmBench) -> None:
    vcpu = bench.start(SPIN)
    vcpu.kick()
    vcpu.kick()
    assert vcpu.run().kind is ExitKind.INTERRUPTED
    vcpu.write_registers({"rip": g.CODE + 2})
    assert bench.go_on(vcpu).kind is ExitKind.HALT  # two kicks before one run are one


def test_a_kick_during_the_run(bench: KvmBench) -> None:
    ready = threading.Event()
    worker = Worker(run_off_main(bench, SPIN, ready))
    assert ready.wait(SECONDS)
    time.sleep(0.05)
    bench.vcpu.kick()
    assert worker.join() is ExitKind.INTERRUPTED


def test_a_kick_after_an_exit_counts_for_the_next_run(bench: KvmBench) -> None:
    vcpu = bench.start(b"\xe6\x10" + SPIN)
    assert bench.go_on(vcpu).kind is ExitKind.PORT_IO
    vcpu.kick()
    assert vcpu.run().kind is ExitKind.INTERRUPTED
    assert vcpu.read_registers(("rip",)) == {"rip": g.CODE + 2}


@pytest.mark.parametrize(("code", "registers"), [(b"\xed", {"rdx": 5}), (b"\x48\x8b\x07", {"rdi": NOWHERE})])
def test_a_kick_between_a_read_and_its_answer_loses_nothing(
    bench: KvmBench, code: bytes, registers: dict[str, int]
) -> None:
    vcpu = bench.start(code, **registers)
    bench.go_on(vcpu)
    vcpu.kick()
    assert vcpu.run(0x1234).kind is ExitKind.INTERRUPTED
    assert vcpu.read_registers(("rax", "rip")) == {"rax": 0x1234, "rip": g.CODE + len(code)}
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_kicks_at_random_moments_are_never_lost(bench: KvmBench) -> None:
    """Exits and kicks at once: each kick gives one INTERRUPTED, or joins one that was not seen yet."""
    kicks = 1000
    seen = threading.Semaphore(0)
    ready = threading.Event()

    def own() -> None:
        vcpu = bench.start(PORT_LOOP)
        ready.set()
        interrupted = 0
        while interrupted < kicks:
            if vcpu.run().kind is ExitKind.INTERRUPTED:
                interrupted += 1
                seen.release()
        vcpu.park()

    worker = Worker(own)
    assert ready.wait(SECONDS)
    choose = random.Random(1)
    for _ in range(kicks):
        deadline = time.perf_counter() + choose.random() * 100e-6
        while time.perf_counter() < deadline:
            pass
        bench.vcpu.kick()
        assert seen.acquire(timeout=SECONDS), "a kick was lost"
    worker.join()


def test_kicks_from_several_threads_while_spinning(bench: KvmBench) -> None:
    """However fast the kicks come, the owner gets out: they do not pile up as signals that it must handle."""
    ready, stop = threading.Event(), threading.Event()

    def own() -> int:
        vcpu = bench.start(SPIN)
        ready.set()
        count = 0
        while not stop.is_set():
            count += vcpu.run().kind is ExitKind.INTERRUPTED
        vcpu.park()
        return count

    worker = Worker(own)
    assert ready.wait(SECONDS)

    calm = threading.Event()

    def kick_often() -> None:
        while not calm.is_set():
            bench.vcpu.kick()

    kickers = [Worker(kick_often) for _ in range(3)]
    time.sleep(0.4)
    stop.set()  # the kickers go on
    assert worker.join() >= 1
    calm.set()
    for kicker in kickers:
        kicker.join()


def test_kick_against_close(make_bench: Callable[..., KvmBench]) -> None:
    bench = make_bench()
    stop = threading.Event()
    current = [bench.vm.create_vcpu(1)]

    def kicker() -> None:
        while not stop.is_set():
            current[0].kick()

    worker = Worker(kicker)
    for _ in range(50):
        vcpu = bench.vm.create_vcpu(1)
        current[0], old = vcpu, current[0]
        old.close()
    stop.set()
    worker.join()
    current[0].close()
    current[0].kick()


def test_a_kick_follows_the_owner(bench: KvmBench) -> None:
    vcpu = bench.start(SPIN)
    vcpu.park()
    vcpu.kick()  # parked: for the next run

    def own() -> list[ExitKind]:
        vcpu.adopt()
        kinds = [vcpu.run().kind]
        ready.set()
        kinds.append(vcpu.run().kind)
        vcpu.park()
        return kinds

    ready = threading.Event()
    worker = Worker(own)
    assert ready.wait(SECONDS)
    time.sleep(0.02)
    vcpu.kick()
    assert worker.join() == [ExitKind.INTERRUPTED, ExitKind.INTERRUPTED]


def test_an_owner_that_has_blocked_the_signal_is_kicked_all_the_same(bench: KvmBench) -> None:
    ready = threading.Event()
    own = run_off_main(bench, SPIN, ready)

    def blocked() -> ExitKind:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
        return own()

    worker = Worker(blocked)
    assert ready.wait(SECONDS)
    time.sleep(0.02)
    bench.vcpu.kick()
    assert worker.join() is ExitKind.INTERRUPTED


@only_where(threading.current_thread() is threading.main_thread(), "needs the main thread")
def test_a_signal_interrupts_the_main_thread(bench: KvmBench) -> None:
    arrived: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: arrived.append(number))
    try:
        vcpu = bench.start(SPIN)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        assert arrived == [signal.SIGUSR1]
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_other_signals_do_not_disturb_other_threads(bench: KvmBench) -> None:
    old = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        ready = threading.Event()
        worker = Worker(run_off_main(bench, SPIN, ready))
        assert ready.wait(SECONDS)
        for _ in range(20):
            signal.pthread_kill(worker._thread.ident or 0, signal.SIGUSR1)
            time.sleep(0.001)
        assert worker._thread.is_alive()
        bench.vcpu.kick()
        assert worker.join() is ExitKind.INTERRUPTED
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_signal_that_is_taken_is_refused(bench: KvmBench) -> None:
    from rift_kvm.vm import KvmVm, host_binding

    taken = signal.SIGRTMIN + 9
    old = signal.signal(taken, lambda number, frame: None)
    try:
        with pytest.raises(HypervisorError, match=r"sigaction failed: .*set kick_signal"):
            KvmVm(
                KvmConfig(kick_signal=taken),
                host_binding(),
                gpa_bits=36,
                capabilities=frozenset(),
                exit_kinds=frozenset(),
            )
    finally:
        signal.signal(taken, old)


def test_close_while_in_the_guest_is_refused(bench: KvmBench) -> None:
    ready = threading.Event()
    worker = Worker(run_off_main(bench, SPIN, ready))
    assert ready.wait(SECONDS)
    time.sleep(0.02)
    with pytest.raises(StateError, match="is in the guest"):
        bench.vcpu.close()
    with pytest.raises(StateError, match="is in the guest"):
        bench.vm.close()
    bench.vcpu.kick()
    assert worker.join() is ExitKind.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, 32])
def test_a_signal_that_nobody_can_handle_is_refused(number: int) -> None:
    with pytest.raises(ValidationError, match=f"signal {int(number)} cannot be handled"):
        KvmConfig(kick_signal=number)
