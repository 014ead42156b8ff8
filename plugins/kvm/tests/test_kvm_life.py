"""Ownership, lifetimes, memory, saved state, fork."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

import pytest
from kvm_bench import NOWHERE, RW, SECONDS, KvmBench, Worker

from rift_core.errors import ForkedMachineError, HypervisorError, StateError
from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion
from rift_core.testing.leaks import no_leaks
from rift_kvm import guest_x86_64 as g

if TYPE_CHECKING:
    from collections.abc import Callable


def page() -> mmap.mmap:
    return mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_another_thread_is_refused(bench: KvmBench) -> None:
    vcpu = bench.start(b"")
    calls: list[Callable[[], object]] = [
        vcpu.run,
        vcpu.park,
        vcpu.adopt,
        vcpu.save,
        vcpu.set_debug,
        lambda: vcpu.restore(b""),
        lambda: vcpu.read_registers(("rip",)),
        lambda: vcpu.write_registers({"rip": 0}),
        lambda: vcpu.inject_exception(6),
    ]
    for call in calls:
        with pytest.raises(StateError, match="vCPU 0"):
            Worker(call).join()
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_park_and_adopt(bench: KvmBench) -> None:
    vcpu = bench.start(b"", rax=5)
    vcpu.park()
    with pytest.raises(StateError, match="adopt it first"):
        vcpu.run()

    def other() -> int:
        vcpu.adopt()
        assert bench.go_on(vcpu).kind is ExitKind.HALT
        vcpu.write_registers({"rax": 6})
        vcpu.park()
        return threading.get_ident()

    Worker(other).join()
    vcpu.adopt()
    vcpu.adopt()  # the owner already
    assert vcpu.read_registers(("rax", "rip")) == {"rax": 6, "rip": g.CODE + 1}


def test_two_vcpus_on_two_threads(bench: KvmBench) -> None:
    # lock inc qword [rdi]; dec ecx; jnz again; hlt
    bench.guest.store(g.CODE, bytes.fromhex("f048ff07 ffc9 75f8 f4"))

    def own(index: int) -> int:
        vcpu = bench.vm.create_vcpu(index)
        vcpu.write_registers(bench.guest.registers() | {"rcx": 2000, "rsp": g.STACK - 0x200 * index})
        while vcpu.run().kind is ExitKind.INTERRUPTED:
            pass
        count = vcpu.exit_count
        vcpu.close()
        return count

    workers = [Worker(lambda index=index: own(index)) for index in range(2)]  # type: ignore[misc]
    assert [worker.join() for worker in workers] == [1, 1]
    assert int.from_bytes(bench.guest.memory[g.DATA : g.DATA + 8], "little") == 4000


def test_the_first_vcpu_keeps_its_number_when_it_comes_second(make_bench: Callable[..., KvmBench]) -> None:
    """vCPU 0 is being made already; no other one may take the number that guests know it by."""
    for _ in range(20):
        bench = make_bench()
        other = bench.vm.create_vcpu(1)
        exit = bench.run(bytes.fromhex("b801000000 0fa2 c1eb18"))  # mov eax,1; cpuid; shr ebx,24
        assert exit.kind is ExitKind.HALT
        assert bench.vcpu.read_registers(("rbx",)) == {"rbx": 0}
        other.close()
        bench.vm.create_vcpu(1).close()  # with a number that KVM has not seen


def test_exit_count_from_another_thread(bench: KvmBench) -> None:
    vcpu = bench.start(b"\xe6\x10" * 5)
    for _ in range(5):
        bench.go_on(vcpu)
    assert Worker(lambda: vcpu.exit_count).join() == vcpu.exit_count == 5


def test_save_and_restore_into_another_machine(make_bench: Callable[..., KvmBench]) -> None:
    one, two = make_bench(), make_bench()
    vcpu = one.start(b"\xe6\x10\x48\x01\xd8", rax=40, rbx=2, xmm5=1 << 100, lstar=0x1234000, dr1=0x77)
    one.go_on(vcpu)
    state = vcpu.save()
    two.guest.memory[:] = one.guest.memory[:]
    two.vcpu.restore(state)
    assert two.go_on(two.vcpu).kind is ExitKind.HALT
    wanted = {"rax": 42, "rip": g.CODE + 6, "xmm5": 1 << 100, "lstar": 0x1234000, "dr1": 0x77, "cr3": g.PML4}
    assert two.vcpu.read_registers(tuple(wanted)) == wanted
    vcpu.write_registers({"rax": 1, "rip": g.CODE})
    vcpu.restore(state)
    assert one.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rax",)) == {"rax": 42}


def test_a_damaged_state_is_refused(bench: KvmBench) -> None:
    vcpu = bench.start(b"")
    state = vcpu.save()
    for bad in (b"", state[:-1], state + b"\0", b"\0" * len(state), state[:8] + b"\xff" + state[9:]):
        with pytest.raises(HypervisorError, match=r"restore failed: .*damaged"):
            vcpu.restore(bad)
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_regions_that_are_refused_change_nothing(bench: KvmBench) -> None:
    view = memoryview(mmap.mmap(-1, 0x3000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    bench.vm.map_memory(MemoryRegion(Gpa(0x10_0000), view, RW))
    limit = 1 << bench.result.limits.gpa_bits
    for gpa, host, text in (
        (0x20_0800, view, "Invalid"),
        (0x20_0000, view[:0x800], "Invalid"),
        (0x20_0000, view[0x800:0x1800], "Invalid"),
        (0x20_0000, view[:0], "Invalid"),
        (limit, view, "Invalid"),
        (limit - 0x2000, view, "Invalid"),
        (0x10_2000, view, "exists"),
        (0xF_E000, view, "exists"),
    ):
        where = f"KVM_SET_USER_MEMORY_REGION failed: .*{text}.*guest-physical {gpa:#x}"
        with pytest.raises(HypervisorError, match=where):
            bench.vm.map_memory(MemoryRegion(Gpa(gpa), host, RW, "bad"))
    with pytest.raises(HypervisorError, match=r"No such file.*guest-physical 0x101000"):
        bench.vm.unmap_memory(Gpa(0x10_1000))
    bench.vm.unmap_memory(Gpa(0x10_0000))
    bench.vm.map_memory(MemoryRegion(Gpa(limit - 0x3000), view, RW))  # the last pages there are
    bench.vm.flush_translations()


def test_slots_are_used_again(bench: KvmBench) -> None:
    memory = page()
    for at in range(200):
        bench.vm.map_memory(MemoryRegion(Gpa(NOWHERE + 0x1000 * (at % 3)), memoryview(memory), RW))
        bench.vm.unmap_memory(Gpa(NOWHERE + 0x1000 * (at % 3)))
    memory[:8] = b"\x2a" + bytes(7)
    bench.vm.map_memory(MemoryRegion(Gpa(NOWHERE), memoryview(memory), RW))
    vcpu = bench.start(b"\x48\x8b\x07", rdi=NOWHERE)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rax",)) == {"rax": 42}
    bench.vm.unmap_memory(Gpa(NOWHERE))
    vcpu.write_registers({"rip": g.CODE})
    assert bench.go_on(vcpu).kind is ExitKind.MMIO


def test_edited_page_tables_are_seen_after_a_flush(bench: KvmBench) -> None:
    load = b"\x48\x8b\x07"
    second = memoryview(mmap.mmap(-1, 0x20_0000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    second[g.DATA : g.DATA + 1] = b"\x07"
    bench.vm.map_memory(MemoryRegion(Gpa(0x40_0000), second, RW))
    bench.guest.store(g.DATA, b"\x05")
    flags = g.LARGE | g.PRESENT | g.WRITABLE | g.USER
    bench.guest.store(g.PD + 8, flags.to_bytes(8, "little"))  # the second 2 MiB are the first
    vcpu = bench.start(load, rdi=0x20_0000 + g.DATA)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rax",)) == {"rax": 5}
    bench.guest.store(g.PD + 8, (0x40_0000 | flags).to_bytes(8, "little"))
    bench.vm.flush_translations()
    vcpu.write_registers({"rip": g.CODE})
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rax",)) == {"rax": 7}


def test_mapped_memory_is_kept_alive(bench: KvmBench) -> None:
    memory = page()
    gone = weakref.ref(memory)
    bench.vm.map_memory(MemoryRegion(Gpa(NOWHERE), memoryview(memory), RW))
    del memory
    gc.collect()
    assert gone() is not None
    bench.vm.unmap_memory(Gpa(NOWHERE))
    gc.collect()
    assert gone() is None


def test_a_vcpu_index_can_be_used_again(bench: KvmBench) -> None:
    for _ in range(5):
        vcpu = bench.vm.create_vcpu(0)
        assert vcpu.index == 0
        vcpu.write_registers(bench.guest.registers())
        vcpu.close()
        vcpu.close()
        with pytest.raises(StateError, match="is closed"):
            vcpu.run()
        vcpu.kick()
        assert vcpu.exit_count == 0


def test_after_close(make_bench: Callable[..., KvmBench]) -> None:
    bench = make_bench()
    vcpu = bench.start(b"")
    bench.vm.close()
    bench.vm.close()
    for call in (
        bench.vm.flush_translations,
        lambda: bench.vm.create_vcpu(1),
        lambda: bench.vm.unmap_memory(Gpa(0)),
        lambda: bench.vm.map_memory(MemoryRegion(Gpa(0), memoryview(page()), RW)),
    ):
        with pytest.raises(StateError, match="the VM is closed"):
            call()
    with pytest.raises(StateError, match="vCPU 0 is closed"):
        vcpu.run()


def test_what_is_dropped_is_released(make_bench: Callable[..., KvmBench]) -> None:
    make_bench().start(b"")
    with no_leaks():
        for _ in range(20):
            KvmBench().start(b"")
            gc.collect()


def test_a_thousand_machines_leave_nothing(make_bench: Callable[..., KvmBench]) -> None:
    make_bench().start(b"")
    with no_leaks():
        for _ in range(1000):
            bench = KvmBench()
            assert bench.run(b"").kind is ExitKind.HALT
            bench.close()


def test_after_fork_the_child_holds_nothing(bench: KvmBench) -> None:
    vcpu = bench.start(b"")
    descriptors = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert any("kvm-vcpu" in name for name in descriptors)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with bench.vm.lock:
            held.set()
            release.wait(SECONDS)

    holder = Worker(hold)  # the child must not wait for a lock that another thread held
    assert held.wait(SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is the point
        child = os.fork()
    if child == 0:
        os._exit(_in_child(bench, vcpu))
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def _in_child(bench: KvmBench, vcpu: object) -> int:
    """0 if all is as it should be, else the number of the check that failed."""
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    if any("kvm" in name for name in names):
        return 1
    with open("/proc/self/maps") as file:
        if "anon_inode:kvm" in file.read():
            return 2
    calls: list[Callable[[], object]] = [
        bench.vm.flush_translations,
        lambda: bench.vm.create_vcpu(1),
        bench.vcpu.run,
        lambda: bench.vcpu.read_registers(("rip",)),
        bench.vcpu.park,
        bench.vcpu.adopt,
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except ForkedMachineError:
            continue
        except BaseException:
            return 20 + number
        return 10 + number
    bench.vcpu.kick()
    bench.vcpu.close()
    bench.vm.close()
    other = KvmBench()  # a machine of the child's own
    try:
        return 0 if other.run(b"").kind is ExitKind.HALT else 3
    finally:
        other.close()
