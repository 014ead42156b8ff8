"""Turns: the vCPUs of one machine, and the host's atomic sections, one at a time; machines side by side."""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import rift_emulator
from rift_core import open_machine
from rift_core.exits import ExitKind
from rift_core.testing.backend_native import RESUME, Native
from rift_core.testing.bench import DATA, Bench, Worker
from rift_core.testing.guests import DEVICE, guests_for
from rift_core.testing.tools import require_backend
from rift_core.testing.vm import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.backend import VCpu


@pytest.fixture
def bench() -> Iterator[Bench]:
    require_backend("emulator")
    bench = Bench(rift_emulator, "x86_64", guests_for("x86_64"))
    yield bench
    bench.close()


def test_read_and_write_while_guests_add(bench: Bench) -> None:
    """What the host adds by reading and writing is lost unless nobody else is there in between."""
    g = bench.guests
    times, rounds = 20_000, 50
    lock = threading.Lock()  # the page tables of the bench have one editor
    entered = threading.Barrier(3)

    def own(index: int) -> None:
        with lock:
            vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.add(DATA, times) + g.end(), index=index)
        assert bench.run(vcpu).address == DEVICE
        entered.wait(SECONDS)
        bench.finish(vcpu)
        vcpu.close()

    workers = [Worker(lambda index=index: own(index)) for index in range(2)]  # type: ignore[misc]
    entered.wait(SECONDS)
    for _ in range(rounds):
        with bench.vm.atomic():
            bench.put(DATA, bench.number(DATA) + 1)
    for worker in workers:
        worker.join()
    assert bench.number(DATA) == 2 * times + rounds


def test_no_vcpu_runs_meanwhile(bench: Bench) -> None:
    g = bench.guests
    ready = threading.Event()
    made: list[VCpu] = []

    def own() -> ExitKind:
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.forever(g.add(DATA, 1)))
        assert bench.run(vcpu).address == DEVICE
        made.append(vcpu)
        ready.set()
        kind = vcpu.run().kind
        vcpu.close()
        return kind

    worker = Worker(own)
    assert ready.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while bench.number(DATA) == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    with bench.vm.atomic():
        before = bench.number(DATA)
        time.sleep(0.02)
        assert bench.number(DATA) == before > 0
    made[0].kick()
    assert worker.join() is ExitKind.INTERRUPTED


def test_kick_reaches_a_vcpu_that_waits(bench: Bench) -> None:
    ready = threading.Event()
    made: list[VCpu] = []

    def own() -> ExitKind:
        vcpu = bench.vcpu(bench.guests.spin())
        made.append(vcpu)
        ready.set()
        kind = vcpu.run().kind
        vcpu.close()
        return kind

    with bench.vm.atomic():
        worker = Worker(own)
        assert ready.wait(SECONDS)
        time.sleep(0.05)  # it waits, or is about to
        began = time.monotonic()
        made[0].kick()
        assert worker.join() is ExitKind.INTERRUPTED
        assert time.monotonic() - began < 0.1 * SECONDS


def test_vcpus_take_turns(bench: Bench) -> None:
    """Guests that never exit are interleaved, and get about as much each."""
    g = bench.guests
    count = 3
    lock = threading.Lock()
    made: list[VCpu] = []
    entered = threading.Barrier(count + 1)

    def own(index: int) -> ExitKind:
        with lock:
            vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.forever(g.add(DATA + 0x100 * index, 1)), index=index)
            made.append(vcpu)
        assert bench.run(vcpu).address == DEVICE
        entered.wait(SECONDS)
        kind = vcpu.run().kind
        vcpu.close()
        return kind

    workers = [Worker(lambda index=index: own(index)) for index in range(count)]  # type: ignore[misc]
    entered.wait(SECONDS)
    time.sleep(0.5)
    shares = [bench.number(DATA + 0x100 * index) for index in range(count)]
    for vcpu in made:
        vcpu.kick()
    assert [worker.join() for worker in workers] == [ExitKind.INTERRUPTED] * count
    assert min(shares) > 0.2 * max(shares), shares


def test_a_handler_that_waits_gives_the_turn_back(bench: Bench) -> None:
    """The first guest's handler waits for a word that only the second guest writes."""
    g = bench.guests
    word = DATA + 0x800
    results: list[int] = []

    def answer(host: Any, e: Any) -> int:
        h = host.contents
        place = h.memory(host, word, 4, 0)
        deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(SECONDS * 1e9)
        results.append(h.wait(host, ctypes.cast(place, ctypes.POINTER(ctypes.c_uint32)), 0, deadline))
        return RESUME

    native = Native(answer, range(DEVICE, DEVICE + 8))
    bench.vm.install(native.handler)
    lock = threading.Lock()
    waiting = threading.Event()

    def wait() -> None:
        with lock:
            vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.copy(word, DATA) + g.end(), index=0)
        waiting.set()
        bench.finish(vcpu)
        vcpu.close()

    def write() -> None:
        assert waiting.wait(SECONDS)
        with lock:
            vcpu = bench.vcpu(g.add(DATA + 0x100, 1000) + g.store(word, 4, 7) + g.end(), index=1)
        bench.finish(vcpu)
        vcpu.close()

    for worker in (Worker(wait), Worker(write)):
        worker.join()
    assert native.failures == []
    assert results == [0]
    assert bench.number(DATA) == 7


def test_a_kick_ends_the_wait_of_a_handler(bench: Bench) -> None:
    word = ctypes.c_uint32(1)
    results: list[int] = []

    def answer(host: Any, e: Any) -> int:
        results.append(host.contents.wait(host, ctypes.byref(word), 1, 0))
        return RESUME

    native = Native(answer, range(DEVICE, DEVICE + 8))
    bench.vm.install(native.handler)
    vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
    timer = threading.Timer(0.05, vcpu.kick)
    timer.start()
    assert vcpu.run().kind is ExitKind.INTERRUPTED
    timer.join()
    assert results == [-errno.EINTR]
    bench.finish(vcpu)  # the handler had answered; the store is over


def test_code_that_another_vcpu_writes_is_seen(bench: Bench) -> None:
    """Each vCPU has its own translations: what one writes over the other's code must not run on as it was."""
    g = bench.guests
    first = bench.vcpu(g.forever(g.store(DEVICE, 4, 1)), index=0)
    assert bench.run(first).value == 1
    value = bench.memory.view(first.read_registers(["rip"])["rip"] & ~0xFFF, 0x1000)
    at = bytes(value[:64]).index(b"\x48\xb8\x01\x00\x00\x00") + 2  # mov rax, 1
    assert bench.run(first).value == 1
    value[at] = 2  # the host writes; another vCPU's store is no different to this engine
    assert [bench.run(first).value for _ in range(3)][-1] == 2


def test_machines_run_side_by_side() -> None:
    """Two machines whose guests wait for each other's host thread: neither holds the other up."""
    require_backend("emulator")
    g = guests_for("x86_64")
    barrier = threading.Barrier(2)

    def own() -> list[int]:
        bench = Bench(rift_emulator, "x86_64", g)
        vcpu = bench.vcpu(g.forever(g.store(DEVICE, 4, 1)))
        values = []
        for _ in range(20):
            values.append(bench.run(vcpu).value)
            barrier.wait(SECONDS)
        bench.close()
        return values

    assert [worker.join() for worker in [Worker(own), Worker(own)]] == [[1] * 20] * 2


COUNTERS = {
    # add x1, x1, #1; ldr x3, [x0]; add x3, x3, #1; str x3, [x0]; add x4, x0, #0; ldr x4, [x4]; b .-24
    "aarch64": (
        "x1",
        struct.pack("<7I", 0x9100_0421, 0xF940_0003, 0x9100_0463, 0xF900_0003, 0x9100_0004, 0xF940_0084, 0x17FF_FFFA),
    ),
    # inc rbx; inc qword [rdi]; jmp .-6
    "x86_64": ("rbx", bytes.fromhex("48ffc3 48ff07 ebf8")),
}


@pytest.mark.parametrize("isa", COUNTERS)
def test_a_kick_leaves_no_instruction_half_done(isa: str) -> None:
    """One that changes memory is executed once, however many kicks there are."""
    register, code = COUNTERS[isa]
    with open_machine(code=code.ljust(128, b"\0"), isa=isa, backend="emulator") as machine:
        thread = machine.thread().start(0x40_0040)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            thread.kick()
            with machine.pause():
                pass
        with machine.pause():
            counted = thread.registers[register]
            stored = int.from_bytes(machine.read_virtual(0x40_0040, 8), "little")
        thread.kill()
        thread.join(10)
    assert counted > 1000
    assert counted - stored in (0, 1)  # the pause may come between the two
