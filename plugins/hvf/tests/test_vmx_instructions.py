"""Exits of system instructions: what the backend makes of them, and what it answers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from vmx_script import (
    F_CR0,
    F_CR0_SHADOW,
    F_CR3,
    F_CR4,
    F_EFER,
    F_ENTRY,
    F_FS_BASE,
    F_INTERRUPTIBILITY,
    GP,
    LENGTH,
    R9,
    RAX,
    RBX,
    RCX,
    RDX,
    RIP,
    START,
    UD,
    XCR0,
    Script,
    event,
)

from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from pathlib import Path


# -- CPUID, XSETBV ------------------------------


def cpuid(script: Script, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    script.exit(10, length=2, rax=leaf, rcx=subleaf, rbx=~0 & 0xFFFF_FFFF, xcr0=3)
    script.run_out()
    assert script.get(RIP) == START + 2
    return script.get(RAX), script.get(RBX), script.get(RCX), script.get(RDX)


def test_cpuid_tells_of_no_hypervisor_and_of_nothing_that_is_not_there(script: Script) -> None:
    most, *name = cpuid(script, 0)
    assert 0xD <= most <= 0x1F
    assert struct.pack("<3I", name[0], name[2], name[1]) in (b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine")
    _, ebx, ecx, edx = cpuid(script, 1)
    assert ebx >> 24 == 0
    assert ebx >> 16 & 0xFF == 1, "one logical CPU"
    for bit, what in ((3, "MONITOR"), (5, "VMX"), (6, "SMX"), (21, "x2APIC"), (24, "TSC deadline"), (31, "hypervisor")):
        assert not ecx >> bit & 1, what
    for bit, what in ((7, "MCE"), (9, "APIC"), (12, "MTRR"), (14, "MCA")):
        assert not edx >> bit & 1, what
    for bit, what in ((0, "FPU"), (6, "PAE"), (24, "FXSR"), (25, "SSE"), (26, "SSE2")):
        assert edx >> bit & 1, what
    assert cpuid(script, 0xA) == (0, 0, 0, 0), "no performance counters"
    assert cpuid(script, 0x14) == (0, 0, 0, 0), "no tracing"
    assert cpuid(script, 0x4000_0000) == (0, 0, 0, 0)
    assert cpuid(script, 0x8000_0000)[0] <= 0x8000_0008
    assert cpuid(script, 0x8000_0001)[3] >> 29 & 1, "long mode"
    assert cpuid(script, 0x8000_0009) == (0, 0, 0, 0)


def test_cpuid_shows_osxsave_as_cr4_has_it(script: Script) -> None:
    assert not cpuid(script, 1)[2] >> 27 & 1
    script.vcpu.write_registers({"cr4": 0x6A0 | 1 << 18})
    assert cpuid(script, 1)[2] >> 27 & 1


def test_cpuid_sizes_of_the_extended_state_follow_xcr0(script: Script) -> None:
    host, current, most, _ = cpuid(script, 0xD)
    assert host & 3 == 3
    assert current == 576, "x87 and SSE: 512 bytes, and the header"
    assert most >= current
    for component in range(2, 64):
        size, offset, *_ = cpuid(script, 0xD, component)
        assert bool(size) == bool(host >> component & 1), component
        assert offset + size <= most


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(1, True), (3, True), (0, False), (2, False), (1 << 62 | 3, False), (1 | 4, False), (3 | 0x20, False)],
)
def test_xsetbv(script: Script, value: int, allowed: bool) -> None:
    script.vcpu.write_registers({"cr4": 0x6A0 | 1 << 18})
    script.exit(55, rax=value & 0xFFFF_FFFF, rdx=value >> 32, rcx=0, xcr0=1)
    script.run_out()
    if allowed:
        assert (script.get(XCR0), script.get(RIP), script.delivered) == (value, START + LENGTH, 0)
    else:
        assert (script.get(XCR0), script.get(RIP), script.delivered) == (1, START, event(GP, code=True))


def test_xsetbv_of_another_register_of_user_mode_and_without_osxsave(script: Script) -> None:
    script.exit(55, rax=3, rdx=0, rcx=0)
    script.run_out()
    assert script.delivered == event(UD)
    script.vcpu.write_registers({"cr4": 0x6A0 | 1 << 18})
    script.exit(55, rax=3, rdx=0, rcx=1)
    script.run_out()
    assert script.delivered == event(GP, code=True)
    script.as_user()
    script.exit(55, rax=3, rdx=0, rcx=0)
    script.run_out()
    assert script.delivered == event(GP, code=True)


# -- MSRs ------------------------------


def test_rdmsr_of_an_unknown_one_is_an_exit(script: Script) -> None:
    script.exit(31, length=2, rcx=0x1234_5678, rax=~0 & (1 << 64) - 1, rdx=7)
    exit = script.run()
    assert exit[:5] == (ExitKind.SYSTEM_REGISTER, 0x1234_5678, 8, 0, False)
    script.run_out(0x1122_3344_5566_7788)
    assert (script.get(RAX), script.get(RDX), script.get(RIP)) == (0x5566_7788, 0x1122_3344, START + 2)


def test_wrmsr_of_an_unknown_one_is_an_exit(script: Script) -> None:
    script.exit(32, length=2, rcx=0x1234_5678, rax=0xFFFF_FFFF_5566_7788, rdx=0xFFFF_FFFF_1122_3344)
    exit = script.run()
    assert exit[:5] == (ExitKind.SYSTEM_REGISTER, 0x1234_5678, 8, 0x1122_3344_5566_7788, True)
    script.run_out()
    assert script.get(RIP) == START + 2


@pytest.mark.parametrize("reason", [31, 32])
def test_a_fault_as_the_answer_is_raised_at_the_instruction(script: Script, reason: int) -> None:
    script.exit(reason, length=2, rcx=0x1234_5678)
    script.run()
    script.vcpu.inject_exception(GP, 0)
    script.run_out()
    assert (script.delivered, script.get(RIP)) == (event(GP, code=True), START)


def test_without_exits_an_unknown_msr_is_a_fault(scripted: Path) -> None:
    script = Script(scripted, frozenset())
    try:
        script.exit(31, length=2, rcx=0x1234_5678)
        script.run_out()
        assert script.delivered == event(GP, code=True)
    finally:
        script.vm.close()


def test_efer_follows_the_rules(script: Script) -> None:
    script.exit(31, length=2, rcx=0xC000_0080)
    script.run_out()
    assert script.get(RAX) == 0xD01
    script.exit(32, length=2, rcx=0xC000_0080, rax=0x501, rdx=0)  # NXE off
    script.run_out()
    assert (script.vmcs(F_EFER), script.get(RIP)) == (0x501, START + 2)
    assert script.vmcs(F_ENTRY) >> 9 & 1, "still in long mode"
    for bad in (0x1501, 0x401):  # SVME; LME off while paging
        script.exit(32, length=2, rcx=0xC000_0080, rax=bad, rdx=0)
        script.run_out()
        assert (script.vmcs(F_EFER), script.delivered) == (0x501, event(GP, code=True))


def test_known_msrs(script: Script) -> None:
    script.exit(32, length=2, rcx=0x277, rax=0x0106_0007, rdx=0x0406_0007)  # PAT: kept
    script.run_out()
    assert script.vcpu.read_registers(["pat"]) == {"pat": 0x0406_0007_0106_0007}
    script.exit(32, length=2, rcx=0x277, rax=2, rdx=0)  # 2 is no memory type
    script.run_out()
    assert script.delivered == event(GP, code=True)
    script.exit(32, length=2, rcx=0xC000_0100, rax=0x1000, rdx=0)  # FS base
    script.run_out()
    assert script.vmcs(F_FS_BASE) == 0x1000
    script.exit(32, length=2, rcx=0xC000_0100, rax=0, rdx=0x8000)  # not canonical
    script.run_out()
    assert script.vmcs(F_FS_BASE) == 0x1000


@pytest.mark.parametrize("msr", [0xC000_0082, 0xC000_0083, 0xC000_0102, 0x175, 0x176])
def test_an_msr_that_holds_an_address_takes_no_other(script: Script, msr: int) -> None:
    script.exit(32, length=2, rcx=msr, rax=0, rdx=0x8000)
    script.run_out()
    assert (script.delivered, script.get(RIP)) == (event(GP, code=True), START)
    script.exit(32, length=2, rcx=msr, rax=0x1000, rdx=0xFFFF_8000)
    script.run_out()
    assert script.get(RIP) == START + 2


@pytest.mark.parametrize("reason", [16, 51], ids=["rdtsc", "rdtscp"])
def test_the_time_stamp_counter_of_a_cpu_that_must_exit_for_it(script: Script, reason: int) -> None:
    script.vcpu.write_registers({"tsc": 0x1234_5678_9ABC, "tsc_aux": 7})
    script.exit(reason, length=2, rcx=0x99)
    script.run_out()
    assert (script.get(RAX), script.get(RDX), script.get(RIP)) == (0x5678_9ABC, 0x1234, START + 2)
    assert script.get(RCX) == (7 if reason == 51 else 0x99)


# -- control registers ------------------------------


def mov_to(number: int, general: int) -> int:
    return number | general << 8


def mov_from(number: int, general: int) -> int:
    return number | 1 << 4 | general << 8


def test_guest_never_sees_vmxe_and_what_it_wrote_for_ne(script: Script) -> None:
    assert script.vmcs(F_CR4) >> 13 & 1
    assert script.vcpu.read_registers(["cr4"]) == {"cr4": 0x6A0}
    script.exit(28, qualification=mov_from(4, 3))
    script.run_out()
    assert (script.get(RBX), script.get(RIP)) == (0x6A0, START + LENGTH)
    script.exit(28, qualification=mov_to(0, 3), rbx=0x8005_0013)  # without NE
    script.run_out()
    assert (script.vmcs(F_CR0), script.vmcs(F_CR0_SHADOW)) == (0x8005_0033, 0x8005_0013)
    assert script.vcpu.read_registers(["cr0"]) == {"cr0": 0x8005_0013}


@pytest.mark.parametrize(
    ("number", "value"),
    [(0, 0x0005_0033), (0, 0x8000_0000), (0, 0x2000_0000 | 0x8005_0033), (0, 1 << 32 | 0x8005_0033),
     (3, 1 << 52 | 0x1000), (4, 0x26A0), (4, 0x680), (4, 1 << 40 | 0x6A0), (8, 16)],
)  # fmt: skip
def test_control_register_values_that_no_cpu_takes(script: Script, number: int, value: int) -> None:
    before = script.vmcs(F_CR0), script.vmcs(F_CR4)
    script.exit(28, qualification=mov_to(number, 1), rcx=value)
    script.run_out()
    assert (script.delivered, script.get(RIP)) == (event(GP, code=True), START)
    assert (script.vmcs(F_CR0), script.vmcs(F_CR4)) == before


def test_cr3_cr8_clts_and_lmsw(script: Script) -> None:
    script.exit(28, qualification=mov_to(3, 2), rdx=1 << 63 | 0x5000)
    script.run_out()
    assert script.vmcs(F_CR3) == 0x5000
    script.exit(28, qualification=mov_to(8, 0), rax=5)
    script.exit(28, qualification=mov_from(8, 9))
    script.run_out()
    assert (script.get(R9), script.vcpu.read_registers(["cr8"])) == (5, {"cr8": 5})
    script.vcpu.write_registers({"cr0": 0x8005_003B})  # TS
    script.exit(28, qualification=2 << 4)
    script.run_out()
    assert script.vcpu.read_registers(["cr0"]) == {"cr0": 0x8005_0033}
    script.exit(28, qualification=3 << 4 | 0x000E << 16)  # LMSW: PE cannot be cleared
    script.run_out()
    assert script.vcpu.read_registers(["cr0"]) == {"cr0": 0x8005_003F}


# -- calls, halts, and what is not there ------------------------------


def test_vmcall(script: Script) -> None:
    script.exit(18, rax=0x77, rdi=1, rsi=2, rdx=3, r10=4, r8=5, r9=6)
    exit = script.run()
    assert (exit.kind, exit.address, exit.info) == (ExitKind.HYPERCALL, 0x77, (1, 2, 3, 4, 5, 6))
    script.run_out(0xABCD)
    assert (script.get(RAX), script.get(RIP)) == (0xABCD, START + LENGTH)


def test_vmcall_of_user_mode_does_not_reach_the_host(script: Script) -> None:
    script.as_user()
    script.exit(18, rax=0x77)
    script.run_out()
    assert (script.delivered, script.get(RIP)) == (event(UD), START)


@pytest.mark.parametrize("reason", [11, 19, 23, 27, 36, 39, 50, 53, 59])
def test_instructions_that_this_cpu_does_not_have(script: Script, reason: int) -> None:
    script.exit(reason)
    script.run_out()
    assert (script.delivered, script.get(RIP)) == (event(UD), START)


def test_hlt_ends_the_shadow_of_sti(script: Script) -> None:
    script.exit(12, length=1, rflags=0x202)
    script.field(F_INTERRUPTIBILITY, 1)
    exit = script.run()
    assert (exit.kind, exit.address) == (ExitKind.HALT, START)
    assert (script.get(RIP), script.vmcs(F_INTERRUPTIBILITY)) == (START + 1, 0)


@pytest.mark.parametrize("reason", [13, 14, 40, 54, 58])
def test_what_is_passed_over(script: Script, reason: int) -> None:
    script.exit(reason, length=2)
    script.run_out()
    assert script.get(RIP) == START + 2


def test_exits_for_the_host_never_move_the_guest(script: Script) -> None:
    for reason in (1, 7, 8, 43, 52):
        script.exit(reason, length=5)
    script.run_out()
    assert script.get(RIP) == START


def test_a_refused_entry(script: Script) -> None:
    script.exit(0x8000_0021)
    exit = script.run()
    assert (exit.kind, exit.address, exit.value, exit.raw_reason) == (ExitKind.FAIL_ENTRY, START, 33, 0x8000_0021)


def test_a_triple_fault(script: Script) -> None:
    script.exit(2)
    assert script.run().kind is ExitKind.SHUTDOWN
