"""One VM a process, one hypervisor vCPU a thread, and what becomes of both when machines, threads and processes end."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import life
import pytest

from rift_core import open_machine
from rift_core.errors import ForkedMachineError, HypervisorError, StateError
from rift_core.exits import ExitKind
from rift_core.memory import Gpa

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import StandIn

    from rift_hvf.vcpu import HvfVCpu


def in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` on a thread of its own, to its end; what it raised is raised here."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def ended(stand_in: StandIn) -> bool:
    """Whether every VM and vCPU that was made is gone; a thread that has just ended may take a moment."""
    pairs = (("hv_vm_create", "hv_vm_destroy"), ("hv_vcpu_create", "hv_vcpu_destroy"), ("hv_vm_map", "hv_vm_unmap"))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if all(stand_in.calls(made) == stand_in.calls(gone) > 0 for made, gone in pairs):
            return True
        time.sleep(0.01)
    return False


def test_a_second_vm_is_a_clear_error_until_the_first_is_closed(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as first:
        with pytest.raises(HypervisorError, match="one virtual machine: close the other machine first"):
            life.new_vm(stand_in.path, stand_in.isa)
        assert first.sum() == life.TOTAL, "the first has not noticed"
    with life.Life(stand_in.path, stand_in.isa) as second:
        assert second.sum() == life.TOTAL
    assert ended(stand_in)


def test_the_two_isas_take_turns(x86_64: StandIn, aarch64: StandIn) -> None:
    for stand_in in (x86_64, aarch64, x86_64):
        assert life.whole(stand_in.path, stand_in.isa) == 2 * life.TOTAL


def test_several_vcpus_on_one_thread(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        other = one.vm.create_vcpu(1)
        name = "rbx" if stand_in.isa == "x86_64" else "x19"
        one.vcpu.write_registers({name: 11})
        other.write_registers({name: 22})
        for _ in range(3):
            assert one.vcpu.read_registers((name,)) == {name: 11}
            assert other.read_registers((name,)) == {name: 22}
        assert stand_in.calls("hv_vcpu_create") - stand_in.calls("hv_vcpu_destroy") == 1
    assert ended(stand_in)


def test_a_vcpu_goes_from_thread_to_thread(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        one.put(life.SUM[stand_in.isa])
        one.vcpu.park()
        assert stand_in.calls("hv_vcpu_create") == stand_in.calls("hv_vcpu_destroy"), "nothing of it is left"
        results: list[int] = []

        def elsewhere() -> None:
            one.vcpu.adopt()
            exit = one.run()
            results.append(exit.value if stand_in.isa == "aarch64" else one.register("rax"))
            one.vcpu.park()

        in_thread(elsewhere)
        assert results == [life.TOTAL]
        one.vcpu.adopt()
        assert one.run().kind in (ExitKind.HALT, ExitKind.MMIO)
    assert ended(stand_in)


def test_another_thread_may_close_it_and_the_next_machine_begins(stand_in: StandIn) -> None:
    """The hypervisor's vCPU can only be destroyed by its thread, which lives on and knows nothing."""
    go, ready, stay = threading.Event(), threading.Event(), threading.Event()
    vcpus: list[HvfVCpu] = []
    first = life.Life(stand_in.path, stand_in.isa)

    def owner() -> None:
        vcpus.append(first.vm.create_vcpu(1))
        ready.set()
        go.wait()
        stay.wait()

    thread = threading.Thread(target=owner)
    thread.start()
    ready.wait()
    first.vm.close()
    assert stand_in.calls("hv_vm_destroy") == 0, "a vCPU is left"
    assert stand_in.calls("hv_vm_map") == stand_in.calls("hv_vm_unmap"), "but no memory"
    with life.Life(stand_in.path, stand_in.isa) as second:
        assert second.sum() == life.TOTAL
        assert stand_in.calls("hv_vm_create") == 1, "the VM was used again"
    go.set()
    stay.set()
    thread.join()
    assert ended(stand_in)


def test_a_thread_that_ends_takes_its_vcpu_along(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        forgotten: list[HvfVCpu] = []
        in_thread(lambda: forgotten.append(one.vm.create_vcpu(1)))
        deadline = time.monotonic() + 5
        while stand_in.calls("hv_vcpu_destroy") < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stand_in.calls("hv_vcpu_destroy") == 1
        forgotten[0].kick()  # reaches nobody
        forgotten[0].close()
        assert one.sum() == life.TOTAL
    assert ended(stand_in)


def test_only_its_thread_may_touch_a_vcpu(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        for use in (one.vcpu.run, one.vcpu.save, one.vcpu.park, lambda: one.vcpu.read_registers(())):
            with pytest.raises(StateError, match="another thread"):
                in_thread(lambda use=use: use())  # type: ignore[misc]
        one.vcpu.kick()
        assert one.vcpu.run().kind is ExitKind.INTERRUPTED


def test_a_forked_child_has_no_machine(stand_in: StandIn) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        calls = {name: stand_in.calls(name) for name in life.functions(stand_in.path)}
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = b"wrong"
            try:
                one.vcpu.kick()
                try:
                    one.vcpu.run()
                except ForkedMachineError:
                    one.vm.close()
                    unchanged = {name: stand_in.calls(name) for name in calls} == calls
                    answer = b"right" if unchanged else b"called"
            finally:
                os.write(writer, answer)
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"right"
        os.waitpid(child, 0)
        assert one.sum() == life.TOTAL
    assert ended(stand_in)


def test_exactly_what_was_mapped_is_unmapped(stand_in: StandIn) -> None:
    """The stand-in counts a violation for anything else, which the fixture looks at."""
    with life.Life(stand_in.path, stand_in.isa) as one:
        page = life.PAGE
        memory = life.new_memory(4 * page)
        for _ in range(3):
            one.vm.map_memory(life.region(life.EXTRA, memory[: 2 * page]))
            one.vm.map_memory(life.region(life.EXTRA + 2 * page, memory[2 * page :], "r"))
            with pytest.raises(HypervisorError):
                one.vm.map_memory(life.region(life.EXTRA + page, memory[:page]))
            with pytest.raises(HypervisorError):
                one.vm.unmap_memory(Gpa(life.EXTRA + page))
            one.vm.unmap_memory(Gpa(life.EXTRA))
            one.vm.unmap_memory(Gpa(life.EXTRA + 2 * page))
        assert one.sum() == life.TOTAL
    assert ended(stand_in)


@pytest.mark.parametrize(
    ("address", "offset", "size"), [(0x20_0800, 0, 0x4000), (0x20_0000, 0x800, 0x4000), (0x20_0000, 0, 0x800)]
)
def test_misaligned_memory_never_reaches_the_framework(stand_in: StandIn, address: int, offset: int, size: int) -> None:
    with life.Life(stand_in.path, stand_in.isa) as one:
        before = stand_in.calls("hv_vm_map")
        with pytest.raises(HypervisorError, match="hv_vm_map"):
            one.vm.map_memory(life.region(address, life.new_memory(0x8000)[offset : offset + size]))
        assert stand_in.calls("hv_vm_map") == before


def test_pages_of_apple_silicon_are_16_kib(aarch64: StandIn) -> None:
    with life.Life(aarch64.path, "aarch64") as one, pytest.raises(HypervisorError, match="hv_vm_map"):
        one.vm.map_memory(life.region(life.EXTRA + 0x1000, life.new_memory(0x4000)))


def test_code_that_the_host_writes_is_made_visible(aarch64: StandIn) -> None:
    with life.Life(aarch64.path, "aarch64") as one:
        before = aarch64.calls("sys_icache_invalidate")
        one.vm.code_changed(Gpa(one.guest.code), 8)
        assert aarch64.calls("sys_icache_invalidate") == before + 1
        one.vm.code_changed(Gpa(life.DEVICE), 8)  # no memory: nothing to do
        assert aarch64.calls("sys_icache_invalidate") == before + 1


def test_the_code_of_a_machine_is_visible_before_it_runs(aarch64: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIFT_BACKEND__NAME", "hvf")
    open_machine(code=b"\x1f\x20\x03\xd5", isa="aarch64").close()  # the probe has run its guests by then
    before = aarch64.calls("sys_icache_invalidate")
    with open_machine(code=b"\x1f\x20\x03\xd5", isa="aarch64"):
        assert aarch64.calls("sys_icache_invalidate") > before
