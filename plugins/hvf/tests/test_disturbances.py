"""What a hypervisor does at any time: faults of memory that is there, its own interrupts, requests that get lost."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import life
import pytest

from rift_core.exits import ExitKind
from rift_core.memory import Gpa

if TYPE_CHECKING:
    from conftest import StandIn


@pytest.mark.parametrize("words", ["spurious_ept=2", "irq=2", "spurious_ept=3 irq=5"])
def test_nobody_notices(stand_in: StandIn, words: str) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        one.sum()
        before, entries = one.vcpu.exit_count, entries_of(stand_in)
        stand_in.control(words)
        for _ in range(10):
            assert one.sum() == life.TOTAL
        assert one.vcpu.exit_count - before == 20, "two exits a round, none for nothing"
        assert entries_of(stand_in) - entries > 20
        stand_in.control("reset")


def entries_of(stand_in: StandIn) -> int:
    return sum(stand_in.calls(name) for name in ("hv_vcpu_run", "hv_vcpu_run_until"))


@pytest.mark.parametrize("words", ["", "lose_kicks", "irq=2", "spurious_ept=2"])
def test_no_kick_is_lost(stand_in: StandIn, words: str) -> None:
    """Two hundred kicks at any moment, each answered by an INTERRUPTED; two that nobody has seen are one."""
    with life.Life(stand_in.path, stand_in.isa) as one:
        one.put(life.FOREVER[stand_in.isa])
        stand_in.control(words)
        seen = threading.Semaphore(0)
        slowest = [0.0]

        def kicker() -> None:
            for number in range(200):
                if number % 3 == 0:
                    time.sleep(0.0005)  # it is in the guest, surely; else anywhere
                begun = time.monotonic()
                one.vcpu.kick()
                if not seen.acquire(timeout=20):
                    return
                slowest[0] = max(slowest[0], time.monotonic() - begun)

        thread = threading.Thread(target=kicker)
        thread.start()
        for _ in range(200):
            assert one.vcpu.run().kind is ExitKind.INTERRUPTED
            seen.release()
        thread.join()
        assert slowest[0] < 20
        one.vcpu.kick()
        one.vcpu.kick()
        assert one.vcpu.run().kind is ExitKind.INTERRUPTED
        one.put(life.SUM[stand_in.isa])
        assert one.vcpu.run().kind is not ExitKind.INTERRUPTED, "one answer for two"


def test_memory_comes_and_goes_while_the_guest_runs(stand_in: StandIn) -> None:
    """Regions beside the guest's own; flushes reach a vCPU that is in the guest, and it goes on."""
    with life.Life(stand_in.path, stand_in.isa) as one:
        one.put(life.FOREVER[stand_in.isa])
        failures: list[BaseException] = []

        def other() -> None:
            try:
                memory = life.new_memory(life.PAGE)
                for _ in range(50):
                    one.vm.map_memory(life.region(life.EXTRA, memory))
                    one.vm.flush_translations()
                    one.vm.unmap_memory(Gpa(life.EXTRA))
            except BaseException as error:
                failures.append(error)
            one.vcpu.kick()

        thread = threading.Thread(target=other)
        thread.start()
        assert one.vcpu.run().kind is ExitKind.INTERRUPTED
        thread.join()
        assert not failures
        assert one.sum() == life.TOTAL


def test_vcpus_run_in_parallel_and_are_closed_from_outside(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        one.put(life.FOREVER[stand_in.isa])
        count, running = 4, threading.Barrier(5)
        vcpus = [one.vm.create_vcpu(index) for index in range(1, count + 1)]
        for vcpu in vcpus:
            vcpu.write_registers(one.guest.registers())
            vcpu.park()
        kinds: list[ExitKind] = []

        def body(at: int) -> None:
            vcpus[at].adopt()
            running.wait()
            kinds.append(vcpus[at].run().kind)
            vcpus[at].park()

        threads = [threading.Thread(target=body, args=(at,)) for at in range(count)]
        for thread in threads:
            thread.start()
        running.wait()
        time.sleep(0.05)
        assert stand_in.calls("hv_vcpu_create") - stand_in.calls("hv_vcpu_destroy") >= count
        for vcpu in vcpus:
            vcpu.kick()
        for thread in threads:
            thread.join()
        assert kinds == [ExitKind.INTERRUPTED] * count
