"""Exits that KVM never shows, written down one by one: what the backend makes of them, and what it answers.

RIP stands at 0x100000 at each exit, the instruction is ``LENGTH`` bytes long.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from typing import TYPE_CHECKING, Any

import pytest
import stand_in_build

from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.tools import skip_here
from rift_hvf import HvfConfig
from rift_hvf.framework import open_framework
from rift_hvf.vm import HvfVm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.exits import Exit
    from rift_hvf.vcpu import HvfVCpu

RIP, RFLAGS, RAX, RCX, RDX, RBX, RSI, RDI, RSP = range(9)
R8, R9, R10, R11 = 10, 11, 12, 13
CR2, DR0, DR6, XCR0 = 38, 41, 47, 50
F_GPA, F_CPU, F_EXC_BITMAP, F_ENTRY, F_EVENT, F_EVENT_CODE = 0x2400, 0x4002, 0x4004, 0x4012, 0x4016, 0x4018
F_IRQ_INFO, F_IDT_INFO, F_IDT_CODE, F_LENGTH, F_QUALIFICATION = 0x4404, 0x4408, 0x440A, 0x440C, 0x6400
F_SS_AR, F_INTERRUPTIBILITY, F_CR0_SHADOW, F_CR4_SHADOW = 0x4818, 0x4824, 0x6004, 0x6006
F_CR0, F_CR3, F_CR4, F_EFER, F_DR7 = 0x6800, 0x6802, 0x6804, 0x2806, 0x681A
F_FS_BASE = 0x680E
NO_MORE = 999
START, LENGTH = 0x10_0000, 3
UD, GP, PF = 6, 13, 14
RAM_SIZE = 0x20_0000
DEVICE = 0x4000_0000
TABLES, CODE, DATA = 0x1000, START, 0x18_0000


def event(vector: int, code: bool = False) -> int:
    """A hardware exception in VMENTRY_IRQ_INFO."""
    return 1 << 31 | 3 << 8 | vector | (1 << 11 if code else 0)


NUMBERS = {
    "rip": RIP, "rflags": RFLAGS, "rax": RAX, "rcx": RCX, "rdx": RDX, "rbx": RBX, "rsi": RSI, "rdi": RDI,
    "rsp": RSP, "r8": R8, "r9": R9, "r10": R10, "xcr0": XCR0,
}  # fmt: skip


class Script:
    """The scripted framework, a VM on it with one vCPU in long mode, and its memory."""

    def __init__(self, path: Path, capabilities: frozenset[str]) -> None:
        self.library = ctypes.CDLL(str(path))
        for name in ("get_field", "get_register", "delivered"):
            getattr(self.library, f"rift_script_{name}").restype = ctypes.c_uint64
        self.library.rift_stand_in_control(b"reset")
        self.library.rift_script_reset()
        self.vm = HvfVm(
            HvfConfig(framework=str(path)),
            open_framework(str(path)),
            page_size=4096,
            gpa_bits=39,
            capabilities=capabilities,
            exit_kinds=frozenset(ExitKind),
        )
        self.memory = mmap.mmap(-1, RAM_SIZE)
        everything = Permission.READ | Permission.WRITE | Permission.EXECUTE
        self.vm.map_memory(MemoryRegion(Gpa(0), memoryview(self.memory), everything))
        for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87), (0x3008, DEVICE | 0x87)):
            self.put(at, entry)  # 2 MiB of memory, then 2 MiB of device at 0x200000
        self.vcpu: HvfVCpu = self.vm.create_vcpu(0)
        self.vcpu.write_registers(
            {"cr0": 0x8005_0033, "cr3": TABLES, "cr4": 0x6A0, "efer": 0xD01, "cs.attributes": 0xA09B,
             "ss.attributes": 0xC093, "rip": START}
        )  # fmt: skip

    def put(self, address: int, value: int, size: int = 8) -> None:
        self.memory[address : address + size] = value.to_bytes(size, "little")

    def number(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.memory[address : address + size], "little")

    def exit(self, reason: int, *, qualification: int = 0, length: int = LENGTH, gpa: int = 0, **values: int) -> None:
        """Write one exit down."""
        self.library.rift_script_exit(ctypes.c_uint32(reason))
        for field, value in ((F_QUALIFICATION, qualification), (F_LENGTH, length), (F_GPA, gpa)):
            self.library.rift_script_field(field, ctypes.c_uint64(value))
        for name, value in {"rip": START, **values}.items():
            self.library.rift_script_register(NUMBERS[name], ctypes.c_uint64(value))

    def field(self, field: int, value: int) -> None:
        """Another field of the exit written down last."""
        self.library.rift_script_field(field, ctypes.c_uint64(value))

    def get(self, number: int) -> int:
        return int(self.library.rift_script_get_register(number))

    def vmcs(self, field: int) -> int:
        return int(self.library.rift_script_get_field(field))

    @property
    def delivered(self) -> int:
        """The event of the last entry that had one."""
        return int(self.library.rift_script_delivered())

    def run(self, reply: int | None = None) -> Exit:
        return self.vcpu.run(reply)

    def run_out(self, reply: int | None = None) -> None:
        """To the end of the script, without an exit before."""
        exit = self.vcpu.run(reply)
        assert (exit.kind, exit.raw_reason) == (ExitKind.UNKNOWN, NO_MORE), exit

    def as_user(self) -> None:
        self.vcpu.write_registers({"ss.attributes": 0xC0F3, "cs.attributes": 0xA0FB})


@pytest.fixture(scope="session")
def scripted(stand_in_folder: Path) -> Path:
    if platform.machine() != "x86_64":
        skip_here("CPUID, which the answers are made from, is an instruction of x86-64")
    return stand_in_build.build(stand_in_folder, "scripted", ("stand_in.c", "scripted.c"))


@pytest.fixture
def script(scripted: Path) -> Iterator[Script]:
    made = Script(scripted, frozenset({"user_msr_exit", "inject_exception", "inject_interrupt", "debug_single_step",
                                       "debug_sw_breakpoint", "debug_hw_breakpoint", "debug_watchpoint"}))  # fmt: skip
    yield made
    made.vm.close()


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


# -- ports ------------------------------


def test_string_output_comes_from_the_guests_memory(script: Script) -> None:
    script.memory[CODE : CODE + 2] = b"\xf3\x6e"  # rep outsb
    script.memory[DATA : DATA + 3] = b"abc"
    for at in range(3):
        script.exit(30, qualification=0x3F8 << 16 | 3 << 4, rsi=DATA + at, rcx=3 - at)
    for at, letter in enumerate(b"abc"):
        exit = script.run()
        assert exit[:5] == (ExitKind.PORT_IO, 0x3F8, 1, letter, True)
        assert (script.get(RSI), script.get(RCX)) == (DATA + at + 1, 2 - at)
        assert script.get(RIP) == (START + 2 if at == 2 else START)


def test_string_input_goes_to_the_guests_memory(script: Script) -> None:
    script.memory[CODE : CODE + 2] = b"\x66\x6d"  # insw, with the direction flag set
    script.exit(30, qualification=0x60 << 16 | 3 << 3 | 1, rdi=DATA, rflags=0x402)
    exit = script.run()
    assert exit[:5] == (ExitKind.PORT_IO, 0x60, 2, 0, False)
    assert script.get(RIP) == START
    script.run_out(0xBEEF)
    assert (script.number(DATA, 2), script.get(RDI), script.get(RIP)) == (0xBEEF, DATA - 2, START + 2)


def test_string_output_from_nowhere_is_a_page_fault(script: Script) -> None:
    script.memory[CODE : CODE + 1] = b"\x6e"
    script.exit(30, qualification=0x3F8 << 16 | 1 << 4, rsi=0x7F00_0000_0000)
    script.run_out()
    assert (script.delivered, script.get(CR2), script.get(RIP)) == (event(PF, code=True), 0x7F00_0000_0000, START)


def test_in_keeps_the_rest_of_rax(script: Script) -> None:
    script.exit(30, qualification=0x60 << 16 | 1 << 3, length=2, rax=0x1122_3344_5566_7788)
    assert not script.run().is_write
    script.run_out(0xFFFF_FFAA)
    assert (script.get(RAX), script.get(RIP)) == (0x1122_3344_5566_77AA, START + 2)


# -- devices ------------------------------

READ, WRITE, FETCH, LINEAR, TRANSLATED = 1, 2, 4, 1 << 7, 1 << 8
VIRTUAL = 0x20_0000  # where the guest has the device


def access(script: Script, code: str, qualification: int, offset: int = 0x10, **registers: int) -> None:
    """An EPT violation of the device by an instruction at RIP; RDI points at it."""
    machine_code = bytes.fromhex(code)
    script.memory[CODE : CODE + 16] = machine_code.ljust(16, b"\x90")
    registers = {"rdi": VIRTUAL + offset, "rflags": 2, **registers}
    script.exit(48, qualification=qualification | LINEAR | TRANSLATED, length=0, gpa=DEVICE + offset, **registers)


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [("8807", 1, 0x88), ("668907", 2, 0x7788), ("8907", 4, 0x5566_7788), ("488907", 8, 0x1122_3344_5566_7788),
     ("8827", 1, 0x77), ("c60742", 1, 0x42), ("66c7074241", 2, 0x4142), ("c70778563412", 4, 0x1234_5678),
     ("48c707ffffffff", 8, (1 << 64) - 1), ("0f9407", 1, 0), ("0f9507", 1, 1), ("480fc307", 8, 0x1122_3344_5566_7788)],
)  # fmt: skip
def test_stores_to_a_device(script: Script, code: str, size: int, value: int) -> None:
    access(script, code, WRITE, rax=0x1122_3344_5566_7788)
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, size, value, True)
    assert script.get(RIP) == START + len(bytes.fromhex(code))
    script.run_out()


@pytest.mark.parametrize(
    ("code", "size", "rax"),
    [("8a07", 1, 0x1122_3344_5566_77FE), ("8a27", 1, 0x1122_3344_5566_FE88), ("668b07", 2, 0x1122_3344_5566_DCFE),
     ("8b07", 4, 0x98BA_DCFE), ("488b07", 8, 0x1032_5476_98BA_DCFE), ("0fb607", 1, 0xFE), ("0fb707", 2, 0xDCFE),
     ("480fbe07", 1, 0xFFFF_FFFF_FFFF_FFFE), ("0fbf07", 2, 0xFFFF_DCFE), ("486307", 4, 0xFFFF_FFFF_98BA_DCFE)],
)  # fmt: skip
def test_loads_from_a_device(script: Script, code: str, size: int, rax: int) -> None:
    access(script, code, READ, rax=0x1122_3344_5566_7788)
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, size, 0, False)
    assert (script.get(RAX), script.get(RIP)) == (0x1122_3344_5566_7788, START), "nothing is done before the answer"
    script.run_out(0x1032_5476_98BA_DCFE)
    assert (script.get(RAX), script.get(RIP)) == (rax, START + len(bytes.fromhex(code)))


def test_read_modify_write_is_two_exits(script: Script) -> None:
    access(script, "f00907", READ | WRITE, rax=0x0F)  # lock or [rdi], eax
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0, False)
    exit = script.run(0x8000_00F0)
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0x8000_00FF, True)
    assert (script.get(RIP), script.get(RFLAGS)) == (START + 3, 0x2 | 0x84)  # sign and parity
    script.run_out()


def test_exchange_and_compare_exchange(script: Script) -> None:
    access(script, "8707", READ | WRITE, rax=7)  # xchg [rdi], eax
    script.run()
    assert script.run(9).value == 7
    assert script.get(RAX) == 9
    access(script, "f00fb10f", READ | WRITE, rax=5, rcx=6)  # lock cmpxchg [rdi], ecx
    script.run()
    assert script.run(5).value == 6
    assert script.get(RFLAGS) >> 6 & 1
    access(script, "f00fb10f", READ | WRITE, rax=5, rcx=6)
    script.run()
    assert script.run(8).value == 8, "the CPU writes back what it has read"
    assert (script.get(RAX), script.get(RFLAGS) >> 6 & 1) == (8, 0)


def test_comparing_with_a_device_writes_nothing(script: Script) -> None:
    access(script, "833f05", READ)  # cmp dword [rdi], 5
    assert not script.run().is_write
    script.run_out(5)
    assert (script.get(RFLAGS), script.get(RIP)) == (0x2 | 0x44, START + 3)


def test_a_kick_in_the_middle_of_a_read_modify_write(script: Script) -> None:
    access(script, "fe07", READ | WRITE)  # inc byte [rdi]
    script.run()
    script.vcpu.kick()
    exit = script.run(0x7F)
    assert (exit.is_write, exit.value) == (True, 0x80), "the store is the rest of the instruction"
    assert script.run().kind is ExitKind.INTERRUPTED


def test_string_store_and_load(script: Script) -> None:
    access(script, "f3ab", WRITE, rax=0x1234, rcx=2)  # rep stosd
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0x1234, True)
    assert (script.get(RDI), script.get(RCX), script.get(RIP)) == (VIRTUAL + 0x14, 1, START)
    access(script, "48ad", READ, rsi=VIRTUAL + 0x10)  # lodsq
    script.run()
    script.run_out(77)
    assert (script.get(RAX), script.get(RSI), script.get(RIP)) == (77, VIRTUAL + 0x18, START + 2)


def test_string_move_between_memory_and_a_device(script: Script) -> None:
    script.put(DATA, 0xCAFE_BABE, 4)
    access(script, "a5", WRITE, rsi=DATA)  # movsd
    assert script.run().value == 0xCAFE_BABE
    assert (script.get(RSI), script.get(RDI)) == (DATA + 4, VIRTUAL + 0x14)
    access(script, "a5", READ, rsi=VIRTUAL + 0x10, rdi=DATA + 8)
    assert not script.run().is_write
    script.run_out(0x1111_2222)
    assert script.number(DATA + 8, 4) == 0x1111_2222


def test_addresses_in_all_forms(script: Script) -> None:
    for code, registers in (
        ("8944b308", {"rbx": VIRTUAL, "rsi": 2}),  # mov [rbx + rsi*4 + 8], eax
        ("6467890500000000", {}),  # refused below: FS with a base that does not fit
        ("a31000200000000000", {}),  # mov [0x200010], eax
        ("890509001000", {}),  # mov [rip + 0x100009 + 6 - ...], eax
    ):
        if code == "890509001000":
            code = "8905" + struct.pack("<i", VIRTUAL + 0x10 - (START + 6)).hex()
        access(script, code, WRITE, rax=5, **registers)
        exit = script.run()
        expected = ExitKind.FAIL_ENTRY if code.startswith("64") else ExitKind.MMIO
        assert exit.kind is expected, code


@pytest.mark.parametrize("code", ["0f20c0", "ff37", "c5fc1107", "d907", "9090", "f0488907"])
def test_what_cannot_be_carried_out_is_told_with_its_bytes(script: Script, code: str) -> None:
    access(script, code, WRITE)
    exit = script.run()
    assert (exit.kind, exit.address, exit.size) == (ExitKind.FAIL_ENTRY, START, 15)
    assert b"".join(word.to_bytes(8, "little") for word in exit.info).startswith(bytes.fromhex(code))


def test_an_instruction_that_does_not_go_there_is_not_carried_out(script: Script) -> None:
    access(script, "8907", WRITE, rdi=VIRTUAL + 0x14)  # another thread has changed the code, or a register
    assert script.run().kind is ExitKind.FAIL_ENTRY
    access(script, "488907", WRITE, offset=0xFFC, rdi=VIRTUAL + 0x1FFC)  # over another two pages
    assert script.run().kind is ExitKind.FAIL_ENTRY


# -- accesses over two pages ------------------------------


def parts(script: Script, *replies: int) -> list[tuple[int, int, int, bool]]:
    """Address, size, value and direction of all parts."""
    seen = []
    exit = script.run()
    for reply in (*replies, 0):
        assert exit.kind is ExitKind.MMIO
        seen.append((exit.address, exit.size, exit.value, exit.is_write))
        exit = script.run(reply)
        if exit.kind is not ExitKind.MMIO:
            break
    assert exit.raw_reason == NO_MORE, "the end of the script"
    return seen


def test_a_store_over_two_pages(script: Script) -> None:
    access(script, "488907", WRITE, offset=0xFFD, rax=0x8877_6655_4433_2211)
    assert parts(script, 0) == [
        (DEVICE + 0xFFD, 3, 0x33_2211, True),
        (DEVICE + 0x1000, 5, 0x88_7766_5544, True),
    ]
    assert script.get(RIP) == START + 3


def test_a_load_over_two_pages(script: Script) -> None:
    access(script, "488b07", READ, offset=0xFFD, rax=0)
    assert parts(script, 0xFF33_2211, 0xFFFF_FF88_7766_5544) == [
        (DEVICE + 0xFFD, 3, 0, False),
        (DEVICE + 0x1000, 5, 0, False),
    ]
    assert (script.get(RAX), script.get(RIP)) == (0x8877_6655_4433_2211, START + 3)


def test_sixteen_bytes_over_two_pages(script: Script) -> None:
    script.vcpu.write_registers({"xmm0": int.from_bytes(bytes(range(0x10, 0x20)), "little")})
    access(script, "0f1107", WRITE, offset=0xFF7)
    seen = parts(script, 0, 0)
    assert [(address, size) for address, size, *_ in seen] == [
        (DEVICE + 0xFF7, 8), (DEVICE + 0xFFF, 1), (DEVICE + 0x1000, 7)
    ]  # fmt: skip
    assert b"".join(value.to_bytes(size, "little") for _, size, value, _ in seen) == bytes(range(0x10, 0x20))


def test_the_part_that_is_memory_is_no_exit(script: Script) -> None:
    script.put(RAM_SIZE - 8, 0)
    for offset, gpa in ((RAM_SIZE - 4, DEVICE), (RAM_SIZE - 4, RAM_SIZE - 4)):  # whatever part is told
        access(script, "488907", WRITE, rdi=offset, rax=0x8877_6655_4433_2211)
        script.field(F_GPA, gpa)
        if gpa != DEVICE:
            script.run_out()  # memory that is there: entered again
            continue
        assert parts(script) == [(DEVICE, 4, 0x8877_6655, True)]
        assert script.number(RAM_SIZE - 4, 4) == 0x4433_2211
    access(script, "488b07", READ, rdi=RAM_SIZE - 4, rax=0)
    script.field(F_GPA, DEVICE)
    assert parts(script, 0xDDCC_BBAA) == [(DEVICE, 4, 0, False)]
    assert script.get(RAX) == 0xDDCC_BBAA_4433_2211


def test_read_modify_write_over_two_pages(script: Script) -> None:
    access(script, "48ff07", READ | WRITE, offset=0xFFC, rax=0)  # inc qword [rdi]
    assert parts(script, 0xFFFF_FFFF, 0x41, 0) == [
        (DEVICE + 0xFFC, 4, 0, False),
        (DEVICE + 0x1000, 4, 0, False),
        (DEVICE + 0xFFC, 4, 0, True),
        (DEVICE + 0x1000, 4, 0x42, True),
    ]


@pytest.mark.parametrize(("code", "error"), [("488907", 2), ("488b07", 0), ("48ff07", 2), ("48aa", 2)])
def test_without_a_second_page_nothing_is_accessed(script: Script, code: str, error: int) -> None:
    """A page fault there, by an access that is a write or not; STOSB is one byte, and has none."""
    access(script, code, WRITE if error else READ, rdi=VIRTUAL + 0x1F_FFFD)
    script.field(F_GPA, DEVICE + 0x1F_FFFD)
    if code == "48aa":
        assert script.run().kind is ExitKind.MMIO
        return
    script.run_out()
    assert (script.delivered, script.vmcs(F_EVENT_CODE)) == (event(PF, code=True), error)
    assert (script.get(CR2), script.get(RIP)) == (VIRTUAL + 0x20_0000, START)


def test_code_on_a_device(script: Script) -> None:
    script.exit(48, qualification=FETCH | LINEAR | TRANSLATED, gpa=DEVICE)
    exit = script.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, DEVICE)


def test_page_tables_on_a_device(script: Script) -> None:
    script.exit(48, qualification=READ | LINEAR, gpa=DEVICE)
    assert script.run().kind is ExitKind.MEMORY_FAULT


def test_a_device_as_the_stack_of_an_exception(script: Script) -> None:
    access(script, "8907", WRITE)
    script.field(F_IDT_INFO, event(PF, code=True))
    assert script.run().kind is ExitKind.MEMORY_FAULT


def test_a_first_touch_enters_again_and_delivers_again(script: Script) -> None:
    script.exit(48, qualification=WRITE | LINEAR | TRANSLATED, gpa=DATA)
    script.field(F_IDT_INFO, event(PF, code=True) | 1 << 12)
    script.field(F_IDT_CODE, 2)
    script.run_out()
    assert (script.delivered, script.vmcs(F_EVENT_CODE), script.get(RIP)) == (event(PF, code=True), 2, START)


def test_a_first_touch_for_ever_is_told(script: Script) -> None:
    library = script.library
    for _ in range(60):
        script.exit(48, qualification=READ | LINEAR | TRANSLATED, gpa=DATA)
    script.run_out()
    assert library.rift_script_left() == 0


def test_read_only_memory(script: Script) -> None:
    page = mmap.mmap(-1, 4096)
    page[:4] = (40).to_bytes(4, "little")
    script.vm.map_memory(MemoryRegion(Gpa(DEVICE), memoryview(page), Permission.READ))
    access(script, "8307 02".replace(" ", ""), READ | WRITE, offset=0)  # add dword [rdi], 2
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE, 4, 42, True), "the memory is read where it is"
    assert page[:4] == (40).to_bytes(4, "little")
    assert script.get(RIP) == START + 3


# -- events ------------------------------


def test_an_interrupt_waits_for_the_window(script: Script) -> None:
    script.vcpu.write_registers({"rflags": 2})
    script.vcpu.inject_interrupt(0x41)
    script.exit(7, rflags=0x202)
    script.exit(1, rflags=0x202)
    assert not script.vmcs(F_CPU) >> 2 & 1
    script.run_out()
    assert script.delivered == 1 << 31 | 0x41
    assert not script.vmcs(F_CPU) >> 2 & 1, "the window is closed again"


def test_no_interrupt_in_the_shadow_of_sti(script: Script) -> None:
    script.vcpu.write_registers({"rflags": 0x202})
    script.exit(1, rflags=0x202)
    script.field(F_INTERRUPTIBILITY, 1)
    script.run_out()
    script.vcpu.inject_interrupt(0x41)
    script.exit(1)
    script.field(F_INTERRUPTIBILITY, 0)
    script.run_out()
    assert script.delivered == 1 << 31 | 0x41


def test_one_interrupt_at_a_time_and_no_exceptions_vector(script: Script) -> None:
    from rift_core.errors import HypervisorError, StateError

    with pytest.raises(HypervisorError):
        script.vcpu.inject_interrupt(31)
    with pytest.raises(HypervisorError):
        script.vcpu.inject_interrupt(256)
    script.vcpu.inject_interrupt(0x20)
    with pytest.raises(StateError, match="waits already"):
        script.vcpu.inject_interrupt(0x21)


# -- debugging ------------------------------


def test_steps_use_the_monitor_trap(script: Script) -> None:
    script.vcpu.set_debug(single_step=True)
    assert script.vmcs(F_CPU) >> 27 & 1
    script.exit(37, rip=START + 1)
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 1, 1)
    script.vcpu.set_debug()
    assert not script.vmcs(F_CPU) >> 27 & 1


def test_an_instruction_that_is_carried_out_here_is_a_step_too(script: Script) -> None:
    script.vcpu.set_debug(single_step=True)
    script.exit(10, length=2, rax=0, rcx=0)  # CPUID
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 2, 1)
    script.exit(30, qualification=0x60 << 16 | 1 << 3, length=2)
    assert script.run().kind is ExitKind.PORT_IO
    exit = script.run(1)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 2, 1)


def test_int3_stops_here_and_only_while_it_should(script: Script) -> None:
    script.vcpu.set_debug(software=True)
    assert script.vmcs(F_EXC_BITMAP) == 1 << 3
    script.exit(0, length=1)
    script.field(F_IRQ_INFO, 1 << 31 | 6 << 8 | 3)
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START, 2)
    assert script.get(RIP) == START
    script.vcpu.set_debug()
    assert script.vmcs(F_EXC_BITMAP) == 0


def test_breakpoints_and_watchpoints_keep_the_guests_registers(script: Script) -> None:
    from rift_core.backend import Watchpoint

    script.vcpu.write_registers({"dr0": 0x1111, "dr7": 0x402})
    script.vcpu.set_debug(breakpoints=[0x5000], watchpoints=[Watchpoint(0x6000, 8, "write")])
    assert (script.get(DR0), script.get(DR0 + 1)) == (0x5000, 0x6000)
    assert script.vmcs(F_DR7) == 0x400 | 2 | 8 | (1 | 2 << 2) << 20
    assert script.vcpu.read_registers(["dr0", "dr7"]) == {"dr0": 0x1111, "dr7": 0x402}
    assert script.vmcs(F_CPU) >> 23 & 1, "the guest's accesses exit"
    script.exit(0, qualification=2)
    script.field(F_IRQ_INFO, event(1))
    exit = script.run()
    assert (exit.kind, exit.info[:2]) == (ExitKind.DEBUG, (4, 0x6000))
    script.exit(29, qualification=0 | 0 << 4 | 1 << 8, rcx=0x2222)  # mov dr0, rcx
    script.exit(29, qualification=0 | 1 << 4 | 3 << 8)  # mov rbx, dr0
    script.run_out()
    assert (script.get(RBX), script.get(DR0)) == (0x2222, 0x5000)
    script.vcpu.set_debug()
    assert (script.get(DR0), script.vmcs(F_DR7)) == (0x2222, 0x402)


def test_the_guests_own_debug_exception_is_given_back(script: Script) -> None:
    script.vcpu.set_debug(breakpoints=[0x5000])
    script.exit(0, qualification=1 << 14)  # its own RFLAGS.TF
    script.field(F_IRQ_INFO, event(1))
    script.run_out()
    assert (script.delivered, script.get(DR6) >> 14 & 1) == (event(1), 1)


def test_random_exits_do_no_harm(script: Script) -> None:
    """Whatever the fields hold, the backend answers with an exit or goes on; it neither fails nor hangs."""
    import random

    rng = random.Random(6)
    reasons = [0, 1, 2, 7, 10, 12, 18, 28, 29, 30, 31, 32, 37, 48, 48, 48, 55, 60, 0x8000_0021]
    for _ in range(2000):
        script.library.rift_script_reset()
        script.memory[CODE : CODE + 16] = rng.randbytes(16)
        registers: dict[str, Any] = {
            name: rng.choice([VIRTUAL, DATA, START, rng.getrandbits(64)])
            for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")
        }
        gpa = rng.choice([DEVICE + rng.getrandbits(12), DATA, rng.getrandbits(40)])
        script.exit(rng.choice(reasons), qualification=rng.getrandbits(34), length=rng.randrange(16), gpa=gpa,
                    rflags=2 | rng.getrandbits(22), **registers)  # fmt: skip
        script.field(F_IRQ_INFO, rng.choice([0, rng.getrandbits(32)]))
        script.field(F_IDT_INFO, rng.choice([0, rng.getrandbits(32)]))
        for _ in range(4):
            exit = script.run(rng.getrandbits(64))
            if exit.raw_reason == NO_MORE:
                break
