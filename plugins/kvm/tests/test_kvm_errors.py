"""Every hypervisor call fails once: the error names it, and nothing stays open."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from kvm_bench import KvmBench

from rift_core.errors import HypervisorError
from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.leaks import no_leaks
from rift_kvm import KvmConfig
from rift_kvm import guest_x86_64 as g

if TYPE_CHECKING:
    from collections.abc import Callable

LIFE = {
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_GET_API_VERSION",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_CREATE_VM",
    "KVM_CHECK_EXTENSION",
    "KVM_ENABLE_CAP",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_CREATE_VCPU",
    "KVM_SET_CPUID2",
    "KVM_GET_REGS",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_GET_XSAVE",
    "KVM_SET_XSAVE",
    "KVM_GET_MSRS",
    "KVM_SET_MSRS",
    "KVM_GET_DEBUGREGS",
    "KVM_SET_DEBUGREGS",
    "KVM_GET_XCRS",
    "KVM_SET_XCRS",
    "KVM_SET_REGS",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_GET_MP_STATE",
    "KVM_SET_MP_STATE",
    "KVM_SET_GUEST_DEBUG",
    "KVM_RUN",
}
"""Every call that a machine can make on x86-64."""


def life(ioctl: int) -> None:
    """A machine from its making to its end, with every kind of call in between."""
    bench = KvmBench(ioctl=ioctl)
    try:
        vcpu = bench.start(b"\xed\x90", xmm1=1, lstar=0x1000, dr0=1, xcr0=1, rdx=5)
        assert bench.go_on(vcpu).kind is ExitKind.PORT_IO
        vcpu.read_registers(("rip",))
        vcpu.restore(vcpu.save())
        vcpu.inject_exception(6)
        vcpu.set_debug()
        assert bench.go_on(vcpu).kind is ExitKind.HALT
        bench.vm.flush_translations()
        bench.vm.unmap_memory(Gpa(0))
    finally:
        bench.close()


def test_every_call_that_fails_is_named_and_leaves_nothing_open(support: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    life(0)
    monkeypatch.setattr("rift_kvm.vm._shared", {})  # what is asked once a process is asked again
    plan = support.lib.fault_plan()
    address = support.lib.faulty_ioctl()
    plan.at = plan.calls = 0
    life(address)
    total = plan.calls
    seen = set()
    with no_leaks():
        for at in range(1, total + 1):
            plan.at, plan.calls, plan.code = at, 0, errno.ENOBUFS
            with pytest.raises(HypervisorError, match=r"No buffer space available \(errno 105\)") as caught:
                life(address)
            seen.add(caught.value.operation)
    plan.at = 0
    expected = LIFE - (set() if "user_msr_exit" in capabilities() else {"KVM_ENABLE_CAP"})
    assert seen == expected


def capabilities() -> frozenset[str]:
    from rift_kvm.probe import probe

    return probe(KvmConfig()).capabilities


def test_a_failed_run_can_be_repeated(make_bench: Callable[..., KvmBench], support: Any) -> None:
    plan = support.lib.fault_plan()
    plan.at = 0
    bench = make_bench(ioctl=support.lib.faulty_ioctl())
    vcpu = bench.start(b"\x90", rax=7)
    vcpu.kick()
    plan.at, plan.calls, plan.code = 1, 0, errno.ENOBUFS
    assert vcpu.run().kind is ExitKind.INTERRUPTED  # no call was made
    with pytest.raises(HypervisorError, match="KVM_RUN"):
        vcpu.run()
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rax",)) == {"rax": 7}


def test_memory_that_the_host_takes_away(bench: KvmBench, support: Any) -> None:
    plan = support.lib.fault_plan()
    plan.at = 0
    other = KvmBench(ioctl=support.lib.faulty_ioctl())
    try:
        vcpu = other.start(b"\x90")
        plan.at, plan.calls, plan.code = 1, 0, errno.EFAULT
        exit = vcpu.run()
        assert exit.kind is ExitKind.MEMORY_FAULT
        assert other.go_on(vcpu).kind is ExitKind.HALT
    finally:
        plan.at = 0
        other.close()


def test_no_more_slots_is_an_error_not_a_crash(bench: KvmBench) -> None:
    import mmap

    view = memoryview(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    limit = min(bench.result.limits.max_slots, 600)
    for at in range(1, limit):
        bench.vm.map_memory(MemoryRegion(Gpa(0x10_0000 + 0x1000 * at), view, Permission.READ))
    if limit == bench.result.limits.max_slots:
        with pytest.raises(HypervisorError, match="No space"):
            bench.vm.map_memory(MemoryRegion(Gpa(0x10_0000), view, Permission.READ))
    bench.vm.flush_translations()
    assert bench.run(b"").kind is ExitKind.HALT
    assert g.SIZE < 0x10_0000
