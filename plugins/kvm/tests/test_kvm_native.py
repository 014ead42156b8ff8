"""Native exit handlers in the run loop, on real exits and on those of a made-up binding."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from kvm_bench import SECONDS, Worker

from rift_core.backend import Binding
from rift_core.errors import HypervisorError, StateError
from rift_core.exits import Exit, ExitHandler, ExitKind, NativeHandler
from rift_core.memory import Gpa
from rift_kvm import guest_x86_64 as g

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvm_bench import KvmBench

PASS, RESUME, STOP = 0, 1, 2
LOOP = b"\xe4\x40\xeb\xfc"  # again: in al, 0x40; jmp again


class Native:
    """The handler of native/support.c, for ports."""

    def __init__(self, support: Any, verdict: int, where: range = range(0x40, 0x41), **fields: int) -> None:
        self.state = support.ffi.new("struct handler *", {"verdict": verdict, **fields})
        address = int(support.ffi.cast("uintptr_t", self.state))
        self.handler = ExitHandler(
            f"test {where}",
            frozenset({ExitKind.PORT_IO}),
            where,
            lambda vcpu, exit: None,
            NativeHandler(support.lib.handler_function(), address, self.state),
        )


def test_resume_answers_without_waking_python(bench: KvmBench, support: Any) -> None:
    native = Native(support, RESUME, answer=0x5A)
    bench.vm.install(native.handler)
    # mov ecx,3; again: in al,0x40; add ah,al; dec ecx; jnz again
    code = bytes.fromhex("b903000000 e440 00c4 ffc9 75f8")
    before = bench.vcpu.exit_count
    assert bench.run(code, rax=0).kind is ExitKind.HALT
    assert native.state.calls == 3
    assert bench.vcpu.exit_count - before == 4
    assert bench.vcpu.read_registers(("rax",)) == {"rax": (3 * 0x5A & 0xFF) << 8 | 0x5A}


def test_pass_gives_the_exit_to_python(bench: KvmBench, support: Any) -> None:
    native = Native(support, PASS)
    bench.vm.install(native.handler)
    exit = bench.run(b"\xe6\x40", rax=7)
    assert exit[:5] == (ExitKind.PORT_IO, 0x40, 1, 7, True)
    assert (native.state.calls, native.state.address, native.state.value, native.state.is_write) == (1, 0x40, 7, 1)
    assert bench.vcpu.stopped is None


def test_stop_ends_the_run_with_its_status(bench: KvmBench, support: Any) -> None:
    native = Native(support, STOP, answer=42)
    bench.vm.install(native.handler)
    bench.run(b"\xe6\x40")
    assert bench.vcpu.stopped == 42
    assert bench.go_on(bench.vcpu).kind is ExitKind.HALT
    assert bench.vcpu.stopped is None


@pytest.mark.parametrize(("verdict", "text"), [(-errno.ENOSPC, "No space"), (77, "not a verdict")])
def test_an_error_ends_the_run(bench: KvmBench, support: Any, verdict: int, text: str) -> None:
    bench.vm.install(Native(support, verdict).handler)
    with pytest.raises(HypervisorError, match=f"native exit handler failed: .*{text}"):
        bench.run(b"\xe6\x40")


def test_a_handler_reads_and_writes_registers_in_the_middle_of_a_read(bench: KvmBench, support: Any) -> None:
    native = Native(support, RESUME, answer=9)
    bench.vm.install(native.handler)
    assert bench.run(b"\xe4\x40", rax=0, rbx=0x1234).kind is ExitKind.HALT
    assert native.state.register_value == 0x1234
    assert bench.vcpu.read_registers(("rax", "rbx")) == {"rax": 9, "rbx": 0x1235}


def test_a_handler_sees_guest_memory_while_it_is_there(bench: KvmBench, support: Any) -> None:
    native = Native(support, RESUME, gpa=g.DATA)
    bench.vm.install(native.handler)
    bench.run(b"\xe4\x40")
    assert native.state.memory_seen == 1
    native.state.gpa = g.SIZE - 4  # 8 bytes from there leave the region
    bench.vcpu.write_registers({"rip": g.CODE})
    bench.go_on(bench.vcpu)
    assert native.state.memory_seen == 0


def test_a_waiting_handler_is_kicked_out_and_asked_again(bench: KvmBench, support: Any) -> None:
    native = Native(support, RESUME, wait=1, answer=5)
    bench.vm.install(native.handler)

    def own() -> tuple[Exit, Exit, int]:
        vcpu = bench.start(b"\xe4\x40", rax=0)
        ready.set()
        first = vcpu.run()
        native.state.word = 1
        second = vcpu.run()
        rax = vcpu.read_registers(("rax",))["rax"]
        vcpu.park()
        return first, second, rax

    ready = threading.Event()
    worker = Worker(own)
    assert ready.wait(SECONDS)
    while native.state.calls == 0:
        time.sleep(0.001)
    bench.vcpu.kick()
    first, second, rax = worker.join()
    assert first.kind is ExitKind.INTERRUPTED
    assert second.kind is ExitKind.HALT
    assert rax == 5


def test_a_wait_ends_at_its_deadline(bench: KvmBench, support: Any) -> None:
    deadline = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 5_000_000
    native = Native(support, RESUME, wait=1, deadline=deadline)
    bench.vm.install(native.handler)
    with pytest.raises(HypervisorError, match=f"errno {errno.ETIMEDOUT}"):
        bench.run(b"\xe4\x40")
    assert time.clock_gettime_ns(time.CLOCK_MONOTONIC) >= deadline


def test_memory_lives_while_a_handler_may_point_into_it(bench: KvmBench, support: Any) -> None:
    import mmap
    import weakref

    from rift_core.memory import MemoryRegion, Permission

    native = Native(support, RESUME, wait=1, gpa=0x10_0000)
    bench.vm.install(native.handler)
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    died = threading.Event()
    weakref.finalize(page, died.set)
    region = MemoryRegion(Gpa(0x10_0000), memoryview(page), Permission.READ | Permission.WRITE)
    bench.vm.map_memory(region)
    del page, region

    def own() -> None:
        vcpu = bench.start(b"\xe4\x40")
        assert bench.go_on(vcpu).kind is ExitKind.HALT
        vcpu.park()

    worker = Worker(own)
    while native.state.memory_seen == 0:
        time.sleep(0.001)
    bench.vm.unmap_memory(Gpa(0x10_0000))
    assert not died.is_set()
    native.state.word = 1
    worker.join()
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    bench.vm.map_memory(MemoryRegion(Gpa(0x10_0000), memoryview(page), Permission.READ))
    bench.vm.unmap_memory(Gpa(0x10_0000))
    assert died.is_set()


def test_handlers_are_installed_before_vcpus_and_do_not_overlap(bench: KvmBench, support: Any) -> None:
    bench.vm.install(Native(support, RESUME, range(0x40, 0x50)).handler)
    with pytest.raises(HypervisorError, match=r"rift_dispatch_add failed: File exists.*test range\(79, 90\)"):
        bench.vm.install(Native(support, RESUME, range(0x4F, 0x5A)).handler)
    with pytest.raises(HypervisorError, match="no range of addresses"):
        bench.vm.install(Native(support, RESUME, range(0x60, 0x60)).handler)
    assert bench.vcpu.index == 0
    with pytest.raises(StateError, match="before the first vCPU"):
        bench.vm.install(Native(support, RESUME, range(0x70, 0x71)).handler)


class TestMadeUpBinding:
    """The run loop with a binding from elsewhere, which makes exits without entering a guest."""

    @pytest.fixture
    def made_up(self, make_bench: Callable[..., KvmBench], support: Any) -> KvmBench:
        support.ffi.buffer(support.lib.fake())[:] = bytes(support.ffi.sizeof("struct fake"))
        support.lib.fake().period = 1000
        binding = Binding("kvm", "made-up", native=support.lib.fake_binding(), owner=support)
        return make_bench(binding=binding, guests=False)

    def test_exits_and_registers(self, made_up: KvmBench, support: Any) -> None:
        native = ExitHandler(
            "quick",
            frozenset({ExitKind.PORT_IO}),
            range(0x10, 0x11),
            lambda vcpu, exit: None,
            NativeHandler(support.lib.quick_handler(), 0, support),
        )
        made_up.vm.install(native)
        vcpu = made_up.vcpu
        assert vcpu.run()[:5] == (ExitKind.PORT_IO, 0x20, 4, 0, False)
        assert vcpu.run(77)[:3] == (ExitKind.PORT_IO, 0x20, 4)
        assert vcpu.exit_count == 2000
        assert vcpu.read_registers(("entries",)) == {"entries": 2001}  # the open read was completed first
        with pytest.raises(HypervisorError, match="no register 'rax'"):
            vcpu.read_registers(("rax",))

    @pytest.mark.parametrize("halts", [0, 1])
    def test_a_binding_hears_of_a_kick_before_it_arrives(self, made_up: KvmBench, support: Any, halts: int) -> None:
        """And what it makes of it comes first: the kick is not lost."""
        fake, vcpu = support.lib.fake(), made_up.vcpu
        fake.waits, fake.halts = 1, halts
        vcpu.kick()
        assert (vcpu.run().kind, fake.entries, fake.announced_inside) == (ExitKind.INTERRUPTED, 0, 0)
        timer = threading.Timer(0.05, vcpu.kick)
        timer.start()
        assert vcpu.run().kind is (ExitKind.HALT if halts else ExitKind.INTERRUPTED)
        timer.join()
        assert (fake.entries, fake.announced_inside) == (1, 1)
        if halts:
            assert vcpu.run().kind is ExitKind.INTERRUPTED
        assert fake.entries == 1

    def test_another_version_is_refused(self, make_bench: Callable[..., KvmBench], support: Any) -> None:
        copy = support.ffi.new("struct rift_kvm_binding *")
        support.ffi.memmove(copy, support.ffi.cast("void *", support.lib.fake_binding()), support.ffi.sizeof(copy[0]))
        copy.version += 1
        with pytest.raises(HypervisorError, match="it is of version 5"):
            make_bench(binding=Binding("kvm", "made-up", native=int(support.ffi.cast("uintptr_t", copy))), guests=False)


@pytest.mark.parametrize(
    ("before", "after", "slept"),
    [  # exits, those of WFI, waits that began awake, sleeps now
        pytest.param((7, 3, 2, 1), (7, 3, 2, 0), True, id="it was asleep"),
        pytest.param((7, 3, 2, 0), (7, 3, 3, 0), True, id="it was about to sleep"),
        pytest.param((7, 3, 2, 0), (8, 4, 2, 0), True, id="it has begun to wait since"),
        pytest.param((7, 3, 2, 0), (8, 4, 3, 0), True, id="it has begun to wait since, awake at first"),
        pytest.param((7, 3, 2, 0), (7, 3, 2, 0), False, id="it was on its way into the guest"),
        pytest.param((7, 3, 2, 0), (8, 3, 2, 0), False, id="it was in the guest"),
        pytest.param((7, 3, 2, 1), (8, 3, 2, 0), False, id="it was asleep, and something else has ended that"),
        pytest.param((7, 3, 2, 1), (9, 4, 2, 0), False, id="it has waited again, and gone on"),
    ],
)
def test_whether_an_arm_guest_slept(support: Any, before: tuple[int, ...], after: tuple[int, ...], slept: bool) -> None:
    assert bool(support.lib.arm_slept(list(before), list(after))) is slept
