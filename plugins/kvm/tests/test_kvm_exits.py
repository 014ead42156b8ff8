"""Exits: what they say, how they are answered, and registers in the middle of one."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import pytest
from kvm_bench import HLT, NOWHERE, SPIN

from rift_core.errors import HypervisorError, UnsupportedError
from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.tools import require_capability, skip_here
from rift_kvm import guest_x86_64 as g

if TYPE_CHECKING:
    from kvm_bench import KvmBench

VALUE = 0x8877_6655_4433_2211
OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
STORE = {1: b"\x88\x07", 2: b"\x66\x89\x07", 4: b"\x89\x07", 8: b"\x48\x89\x07"}  # mov [rdi], rax
LOAD = {1: b"\x8a\x07", 2: b"\x66\x8b\x07", 4: b"\x8b\x07", 8: b"\x48\x8b\x07"}  # mov rax, [rdi]


def mask(size: int) -> int:
    return (1 << 8 * size) - 1


def loaded(size: int, old: int, new: int) -> int:
    """RAX after a load of ``size`` bytes: 4 zero-extend, 1 and 2 leave the rest."""
    return new & mask(size) if size >= 4 else old & ~mask(size) | new & mask(size)


@pytest.mark.parametrize("size", OUT)
def test_port_write(bench: KvmBench, size: int) -> None:
    exit = bench.run(OUT[size], rax=VALUE, rdx=0x1234)
    assert exit == (ExitKind.PORT_IO, 0x1234, size, VALUE & mask(size), True, 2, ())
    assert bench.vcpu.read_registers(("rip",))["rip"] == g.CODE + len(OUT[size])
    assert bench.go_on(bench.vcpu).kind is ExitKind.HALT


@pytest.mark.parametrize("size", IN)
def test_port_read(bench: KvmBench, size: int) -> None:
    exit = bench.run(IN[size], rax=VALUE, rdx=0x1234)
    assert exit == (ExitKind.PORT_IO, 0x1234, size, 0, False, 2, ())
    assert bench.go_on(bench.vcpu, 0xAABB_CCDD_EEFF_0011).kind is ExitKind.HALT
    assert bench.vcpu.read_registers(("rax",))["rax"] == loaded(size, VALUE, 0xEEFF_0011)


@pytest.mark.parametrize("size", STORE)
def test_mmio_write(bench: KvmBench, size: int) -> None:
    exit = bench.run(STORE[size], rax=VALUE, rdi=NOWHERE)
    assert exit[:5] == (ExitKind.MMIO, NOWHERE, size, VALUE & mask(size), True)
    assert bench.vcpu.read_registers(("rip",))["rip"] == g.CODE + len(STORE[size])
    assert bench.go_on(bench.vcpu).kind is ExitKind.HALT


@pytest.mark.parametrize("size", LOAD)
def test_mmio_read(bench: KvmBench, size: int) -> None:
    exit = bench.run(LOAD[size], rax=VALUE, rdi=NOWHERE + 1)
    assert exit[:5] == (ExitKind.MMIO, NOWHERE + 1, size, 0, False)
    assert bench.go_on(bench.vcpu, 0xAABB_CCDD_EEFF_0011).kind is ExitKind.HALT
    assert bench.vcpu.read_registers(("rax",))["rax"] == loaded(size, VALUE, 0xAABB_CCDD_EEFF_0011)


@pytest.mark.parametrize(("code", "registers"), [(IN[4], {"rdx": 5}), (LOAD[8], {"rdi": NOWHERE})])
def test_a_read_without_an_answer_reads_zero(bench: KvmBench, code: bytes, registers: dict[str, int]) -> None:
    bench.run(code, rax=VALUE, **registers)
    assert bench.go_on(bench.vcpu).kind is ExitKind.HALT
    assert bench.vcpu.read_registers(("rax",)) == {"rax": 0}


@pytest.mark.parametrize(("code", "registers"), [(IN[4], {"rdx": 5}), (LOAD[8], {"rdi": NOWHERE})])
def test_reading_registers_completes_an_open_access(bench: KvmBench, code: bytes, registers: dict[str, int]) -> None:
    bench.run(code, rax=VALUE, **registers)
    assert bench.vcpu.read_registers(("rip", "rax")) == {"rip": g.CODE + len(code), "rax": 0}
    assert bench.go_on(bench.vcpu, 99).kind is ExitKind.HALT  # too late
    assert bench.vcpu.read_registers(("rax",)) == {"rax": 0}


@pytest.mark.parametrize(
    ("code", "registers"), [(IN[4], {"rdx": 5}), (LOAD[8], {"rdi": NOWHERE}), (OUT[4], {"rdx": 5})]
)
def test_written_registers_stand_after_an_open_access(bench: KvmBench, code: bytes, registers: dict[str, int]) -> None:
    bench.run(code, rax=VALUE, **registers)
    bench.guest.store(g.CODE + 0x100, HLT)
    bench.vcpu.write_registers({"rax": 1, "rip": g.CODE + 0x100})
    assert bench.go_on(bench.vcpu, 99).kind is ExitKind.HALT
    assert bench.vcpu.read_registers(("rip", "rax")) == {"rip": g.CODE + 0x101, "rax": 1}


@pytest.mark.parametrize(("size", "code"), [(1, b"\xf3\x6e"), (2, b"\xf3\x66\x6f"), (4, b"\xf3\x6f")])
def test_string_output_comes_one_by_one(bench: KvmBench, size: int, code: bytes) -> None:
    data = bytes(range(1, 41))
    bench.guest.store(g.DATA, data)
    vcpu = bench.start(code, rsi=g.DATA, rcx=40 // size, rdx=0x77)
    for at in range(0, 40, size):
        value = int.from_bytes(data[at : at + size], "little")
        assert bench.go_on(vcpu)[:5] == (ExitKind.PORT_IO, 0x77, size, value, True)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rcx", "rsi")) == {"rcx": 0, "rsi": g.DATA + 40}


@pytest.mark.parametrize(("size", "code"), [(1, b"\xf3\x6c"), (2, b"\xf3\x66\x6d"), (4, b"\xf3\x6d")])
def test_string_input_comes_one_by_one(bench: KvmBench, size: int, code: bytes) -> None:
    vcpu = bench.start(code, rdi=g.DATA, rcx=40 // size, rdx=0x77)
    exit = bench.go_on(vcpu)
    sent = b""
    while exit.kind is not ExitKind.HALT:
        assert exit[:5] == (ExitKind.PORT_IO, 0x77, size, 0, False)
        piece = bytes((len(sent) + at) % 251 for at in range(size))
        sent += piece
        exit = bench.go_on(vcpu, int.from_bytes(piece, "little"))
    assert len(sent) == 40
    assert bytes(bench.guest.memory[g.DATA : g.DATA + 40]) == sent
    assert vcpu.read_registers(("rcx", "rdi")) == {"rcx": 0, "rdi": g.DATA + 40}


def test_registers_can_be_read_in_the_middle_of_a_string_input(bench: KvmBench) -> None:
    vcpu = bench.start(b"\xf3\x6c", rdi=g.DATA, rcx=16, rdx=0x77)
    bench.go_on(vcpu)
    for at in range(15):
        vcpu.read_registers(("rip", "rcx"))
        assert bench.go_on(vcpu, at + 1).kind is ExitKind.PORT_IO
    assert bench.go_on(vcpu, 16).kind is ExitKind.HALT
    assert bytes(bench.guest.memory[g.DATA : g.DATA + 16]) == bytes(range(1, 17))


def test_a_kick_in_the_middle_of_a_string_input_comes_after_it(bench: KvmBench) -> None:
    vcpu = bench.start(b"\xf3\x6c", rdi=g.DATA, rcx=16, rdx=0x77)
    exit = vcpu.run()
    vcpu.kick()
    sent = 0
    kinds = [exit.kind]
    while kinds[-1] is not ExitKind.HALT:
        sent += kinds[-1] is ExitKind.PORT_IO
        kinds.append(vcpu.run(sent).kind)
        if kinds[-1] is ExitKind.INTERRUPTED:
            assert bytes(bench.guest.memory[g.DATA : g.DATA + sent]) == bytes(range(1, sent + 1))
    assert sent == 16
    assert kinds[0] is ExitKind.PORT_IO
    assert ExitKind.INTERRUPTED in kinds
    assert bytes(bench.guest.memory[g.DATA : g.DATA + 16]) == bytes(range(1, 17))


def test_a_wide_store_comes_in_parts(bench: KvmBench) -> None:
    vcpu = bench.start(b"\x0f\x11\x07", rdi=NOWHERE, xmm0=VALUE << 64 | 0x1122)  # movups [rdi], xmm0
    assert bench.go_on(vcpu)[:5] == (ExitKind.MMIO, NOWHERE, 8, 0x1122, True)
    assert vcpu.read_registers(("rip",)) == {"rip": g.CODE + 3}
    assert bench.go_on(vcpu)[:5] == (ExitKind.MMIO, NOWHERE + 8, 8, VALUE, True)
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_a_wide_load_comes_in_parts(bench: KvmBench) -> None:
    vcpu = bench.start(b"\x0f\x10\x07", rdi=NOWHERE)  # movups xmm0, [rdi]
    assert bench.go_on(vcpu)[:5] == (ExitKind.MMIO, NOWHERE, 8, 0, False)
    assert bench.go_on(vcpu, 5)[:5] == (ExitKind.MMIO, NOWHERE + 8, 8, 0, False)
    vcpu.kick()
    assert vcpu.run(6).kind is ExitKind.INTERRUPTED
    assert vcpu.read_registers(("xmm0", "rip")) == {"xmm0": 6 << 64 | 5, "rip": g.CODE + 3}
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_reading_registers_in_the_middle_of_a_wide_load_loses_no_exit(bench: KvmBench) -> None:
    vcpu = bench.start(b"\x0f\x10\x07", rdi=NOWHERE)
    bench.go_on(vcpu)
    vcpu.read_registers(("rip",))
    vcpu.read_registers(("rip",))
    assert bench.go_on(vcpu)[:5] == (ExitKind.MMIO, NOWHERE + 8, 8, 0, False)
    assert bench.go_on(vcpu, 6).kind is ExitKind.HALT
    assert vcpu.read_registers(("xmm0",)) == {"xmm0": 6 << 64}


def test_the_rest_of_a_wide_store_does_not_follow_the_guest_elsewhere(bench: KvmBench) -> None:
    vcpu = bench.start(b"\x0f\x11\x07", rdi=NOWHERE, xmm0=VALUE << 64)
    bench.go_on(vcpu)
    bench.guest.store(g.CODE + 0x100, STORE[8] + HLT)
    vcpu.write_registers({"rip": g.CODE + 0x100, "rdi": NOWHERE + 8, "rax": 3})
    assert bench.go_on(vcpu)[:5] == (ExitKind.MMIO, NOWHERE + 8, 8, 3, True)  # the new code's own
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_halt_leaves_rip_behind_it(bench: KvmBench) -> None:
    assert bench.run(b"").kind is ExitKind.HALT
    assert bench.vcpu.read_registers(("rip",)) == {"rip": g.CODE + 1}


def test_triple_fault(bench: KvmBench) -> None:
    vcpu = bench.start(b"\x0f\x0b")
    vcpu.write_registers({"idtr.limit": 0})
    assert bench.go_on(vcpu).kind is ExitKind.SHUTDOWN


def test_what_kvm_cannot_emulate(bench: KvmBench) -> None:
    if "software_interrupts" in bench.vm.capabilities:
        skip_here("this KVM runs every instruction of ring 0 that it is given here")
    exit = bench.run(b"\xcd\x30")
    assert exit.kind is ExitKind.FAIL_ENTRY
    assert exit.address == g.CODE
    assert exit.value == 1  # KVM_INTERNAL_ERROR_EMULATION
    assert b"".join(word.to_bytes(8, "little") for word in exit.info)[: exit.size].startswith(b"\xcd\x30\xf4")


def test_unknown_system_registers(bench: KvmBench) -> None:
    require_capability("kvm", "x86_64", bench.result, "user_msr_exit")
    vcpu = bench.start(bytes.fromhex("b945230100 0f32 89c3 0f30"), rdx=0)  # mov ecx,0x12345; rdmsr; mov ebx,eax; wrmsr
    assert bench.go_on(vcpu)[:5] == (ExitKind.SYSTEM_REGISTER, 0x12345, 8, 0, False)
    exit = bench.go_on(vcpu, 0x5_0000_0007)
    assert exit[:5] == (ExitKind.SYSTEM_REGISTER, 0x12345, 8, 0x5_0000_0007, True)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    assert vcpu.read_registers(("rbx",)) == {"rbx": 7}


@pytest.mark.parametrize("code", [bytes.fromhex("b945230100 0f32"), bytes.fromhex("b945230100 0f30")])
def test_a_system_register_can_be_a_general_protection_fault(bench: KvmBench, code: bytes) -> None:
    require_capability("kvm", "x86_64", bench.result, "user_msr_exit")
    vcpu = bench.start(code)
    assert bench.go_on(vcpu).kind is ExitKind.SYSTEM_REGISTER
    vcpu.inject_exception(13, 0)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    state = vcpu.read_registers(("rip", "rsp"))
    assert state["rip"] == g.STUBS + 4 * 13 + 1
    error, rip = struct.unpack_from("<QQ", bench.guest.memory, state["rsp"])
    assert (error, rip) == (0, g.CODE + 5)


@pytest.mark.parametrize(("vector", "code", "pushed"), [(6, None, None), (6, 5, None), (14, 2, 2), (13, None, 0)])
def test_an_injected_exception(bench: KvmBench, vector: int, code: int | None, pushed: int | None) -> None:
    vcpu = bench.start(b"\x90")
    vcpu.inject_exception(vector, code)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    state = vcpu.read_registers(("rip", "rsp"))
    assert state["rip"] == g.STUBS + 4 * vector + 1
    words = struct.unpack_from("<2Q", bench.guest.memory, state["rsp"])
    assert words[0] == g.CODE if pushed is None else words == (pushed, g.CODE)


@pytest.mark.parametrize(("code", "registers"), [(IN[4], {"rdx": 5}), (LOAD[8], {"rdi": NOWHERE})])
def test_an_exception_as_the_answer_to_a_read_belongs_to_the_instruction(
    bench: KvmBench, code: bytes, registers: dict[str, int]
) -> None:
    vcpu = bench.start(code, rax=VALUE, **registers)
    bench.go_on(vcpu)
    vcpu.inject_exception(13, 0)
    assert bench.go_on(vcpu).kind is ExitKind.HALT
    state = vcpu.read_registers(("rip", "rsp", "rax"))
    assert (state["rip"], state["rax"]) == (g.STUBS + 4 * 13 + 1, VALUE)
    assert struct.unpack_from("<2Q", bench.guest.memory, state["rsp"]) == (0, g.CODE)


def test_no_such_exception(bench: KvmBench) -> None:
    for vector in (-1, 32, 1 << 40):
        with pytest.raises(HypervisorError, match="not the vector of an exception"):
            bench.vcpu.inject_exception(vector)


def test_read_only_memory(bench: KvmBench) -> None:
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[:8] = struct.pack("<Q", VALUE)
    bench.vm.map_memory(MemoryRegion(Gpa(NOWHERE), memoryview(page).toreadonly(), Permission.READ))
    vcpu = bench.start(LOAD[8] + b"\xff\xc8" + STORE[8], rdi=NOWHERE)  # mov rax,[rdi]; dec eax; mov [rdi],rax
    exit = bench.go_on(vcpu)
    assert exit[:5] == (ExitKind.MMIO, NOWHERE, 8, (VALUE - 1) & mask(4), True)
    assert bytes(page[:8]) == struct.pack("<Q", VALUE)
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_single_step(bench: KvmBench) -> None:
    if "debug_single_step" not in bench.vm.capabilities:
        with pytest.raises(UnsupportedError, match="debug_single_step"):
            bench.vcpu.set_debug(single_step=True)
        require_capability("kvm", "x86_64", bench.result, "debug_single_step")
    vcpu = bench.start(b"\x90\x90\x90")
    vcpu.set_debug(single_step=True)
    for at in (1, 2):
        exit = bench.go_on(vcpu)
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, g.CODE + at, 1)
    vcpu.write_registers({"rip": g.CODE})  # KVM may tie the trap flag to RIP: it must be set again
    exit = bench.go_on(vcpu)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, g.CODE + 1, 1)
    vcpu.set_debug()
    assert bench.go_on(vcpu).kind is ExitKind.HALT


def test_hardware_breakpoint(bench: KvmBench) -> None:
    if "debug_hw_breakpoint" not in bench.vm.capabilities:
        with pytest.raises(UnsupportedError, match="debug_hw_breakpoint"):
            bench.vcpu.set_debug(breakpoints=(0,))
        require_capability("kvm", "x86_64", bench.result, "debug_hw_breakpoint")
    vcpu = bench.start(b"\x90\x90\x90" + SPIN)
    vcpu.set_debug(breakpoints=(0x1000, g.CODE + 2))
    exit = bench.go_on(vcpu)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, g.CODE + 2, 3)
    with pytest.raises(HypervisorError, match="5 breakpoints and watchpoints are more than the CPU has"):
        vcpu.set_debug(breakpoints=range(5))
