"""Fault reports and user calls, from frames as the vectors leave them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core import doorbell
from rift_core.errors import AddressError
from rift_core.exits import Exit, ExitKind
from rift_core.isa import GuestFault
from rift_x86_64 import faults
from rift_x86_64.registers import GENERAL

FAULT = Exit(ExitKind.MMIO, doorbell.DEFAULT_ADDRESS + doorbell.FAULT, 4, 0, True)
USER_CALL = Exit(ExitKind.MMIO, doorbell.DEFAULT_ADDRESS + doorbell.USER_CALL, 8, 0, True)
KERNEL, USER = 0x08, 0x23


def put_frame(
    guest: Any,
    vector: int,
    code: int = 0,
    rip: int = 0x40_1234,
    cs: int = KERNEL,
    rflags: int = 0x10046,
    rsp: int = 0x1234,
) -> int:
    at = int(guest.areas["kernel-stack"].end) - 56
    guest.write_virtual(at, struct.pack("<7Q", vector, code, rip, cs, rflags, rsp, 0x1B if cs & 3 else 0x10))
    return at


def read(guest: Any, make_registers: Any, vector: int, code: int = 0, cr2: int = 0, **frame: int) -> GuestFault:
    at = put_frame(guest, vector, code, **frame)
    values = {name: 0x100 + number for number, name in enumerate(GENERAL)}
    values.update({"rsp": at, "cr2": cr2, "cr3": 0x8000_0000})
    fault = guest.isa.read_fault(make_registers(values), guest, FAULT)
    assert fault is not None
    assert isinstance(fault, GuestFault)
    return fault


def put_code(guest: Any, code: str) -> int:
    area = guest.areas["stack"]
    data = bytes.fromhex(code)
    guest.write_virtual(area.virtual, data + b"\x90" * 16)
    return int(area.virtual)


def test_registers_are_those_at_the_fault(guest: Any, make_registers: Any) -> None:
    guest.start()
    fault = read(guest, make_registers, 14, 2, 0xDEAD_BEEF, rip=0x40_5678, rsp=0x7777)
    assert (fault.pc, fault.sp, fault.address, fault.code, fault.user) == (0x40_5678, 0x7777, 0xDEAD_BEEF, 2, False)
    assert fault.name == "#PF page fault"
    assert fault.registers["rsp"] == 0x7777
    assert fault.registers["rip"] == 0x40_5678
    assert fault.registers["rflags"] == 0x10046
    assert fault.registers["rbx"] == 0x100 + GENERAL.index("rbx")
    assert fault.registers["cr2"] == 0xDEAD_BEEF
    assert fault.registers["cs.selector"] == KERNEL


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "a read in supervisor mode found no page mapped"),
        (2, "a write in supervisor mode found no page mapped"),
        (7, "a write in user mode is not allowed by the page's permissions"),
        (0x15, "an instruction fetch in user mode is not allowed"),
        (0x11, "not executable for the supervisor"),
        (9, "reserved bit"),
        (0x25, "protection key"),
        (0x47, "shadow stack"),
    ],
)
def test_page_fault_codes(guest: Any, make_registers: Any, code: int, words: str) -> None:
    guest.start()
    assert words in read(guest, make_registers, 14, code, 0x12_3000, cs=USER if code & 4 else KERNEL).words


def test_null_pointers_and_wild_jumps(guest: Any, make_registers: Any) -> None:
    guest.start()
    assert "null pointer" in read(guest, make_registers, 14, 2, 0x18).words
    assert "jump to nowhere" in read(guest, make_registers, 14, 0x10, 0x12_3456, rip=0x12_3456).words


@pytest.mark.parametrize("vector", [8, 14])
def test_stack_overflow(guest: Any, make_registers: Any, vector: int) -> None:
    guest.start()
    below = guest.areas["stack"].virtual - 8
    fault = read(guest, make_registers, vector, 2 if vector == 14 else 0, below)
    assert f"stack overflow: {below:#x} lies in the guard page below the stack" in fault.words
    assert fault.address == below


def test_double_fault_without_a_known_address(guest: Any, make_registers: Any) -> None:
    guest.start()
    fault = read(guest, make_registers, 8, 0, 0x1234_5678)
    assert fault.address is None
    assert "another exception" in fault.words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x402, "IDT entry 0x80; INT 0x80 is not open to user mode"),
        (0x28, "selector 0x28 in the GDT"),
        (0x2D, "selector 0x28 in the LDT, while delivering"),
    ],
)
def test_selector_codes(guest: Any, make_registers: Any, code: int, words: str) -> None:
    guest.start()
    assert words in read(guest, make_registers, 13, code, cs=USER).words


@pytest.mark.parametrize(
    ("code", "cs", "words"),
    [
        ("e6f8", USER, "port input and output are not allowed in user mode"),
        ("66ef", USER, "port input and output are not allowed in user mode"),
        ("f4", USER, "HLT is a privileged instruction"),
        ("0f22d8", USER, "MOV to a control register is a privileged instruction"),
        ("0f32", KERNEL, "MSR 0x102 does not exist"),
        ("0f2800", KERNEL, "multiple of 16"),
        ("9090", KERNEL, "no selector is named"),
    ],
)
def test_protection_hints(guest: Any, make_registers: Any, code: str, cs: int, words: str) -> None:
    guest.start()
    assert words in read(guest, make_registers, 13, 0, cs=cs, rip=put_code(guest, code)).words


def test_non_canonical_addresses(guest: Any, make_registers: Any) -> None:
    guest.start()
    at = put_frame(guest, 13)
    values = {"rsp": at, "rbx": 1 << 63}
    fault = guest.isa.read_fault(make_registers(values), guest, FAULT)
    assert "rbx is no canonical address" in fault.words
    assert "a jump to 0x800000000000" in read(guest, make_registers, 13, rip=1 << 47).words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("0f0b", "UD2"),
        ("c5f877", "AVX"),
        ("c4e27d18c0", "AVX"),
        ("62f17c4828c0", "AVX-512"),
        ("f20f58c1", "SSE"),
        ("66480f6ec0", "SSE"),
        ("d9c0", "x87"),
        ("cd80", "INT n"),
        ("0f04", "no instruction of this CPU"),
    ],
)
def test_invalid_opcode_hints(guest: Any, make_registers: Any, code: str, words: str) -> None:
    guest.start()
    fault = read(guest, make_registers, 6, rip=put_code(guest, code))
    assert words in fault.words
    assert fault.code is None


def test_unreadable_code_and_frames(guest: Any, make_registers: Any) -> None:
    guest.start()
    assert "no instruction" in read(guest, make_registers, 6, rip=0xDEAD_0000).words
    with pytest.raises(AddressError):
        guest.isa.read_fault(make_registers({"rsp": 0xDEAD_0000}), guest, FAULT)


def test_every_vector_has_a_name() -> None:
    assert faults.vector_name(13) == "#GP general protection"
    assert faults.vector_name(0x80) == "interrupt 128"
    assert faults.vector_name(15) == "reserved exception 15"


# -- user calls ----------------------------------------------------------------------------------


def disguised(guest: Any, make_registers: Any, **changes: int) -> Any:
    """The vCPU as a SYSCALL leaves it that went to LSTAR but stayed in user mode."""
    lstar = guest.start("user")["lstar"]
    frame = {"code": 0x15, "rip": lstar, "cs": USER, "rflags": 0x202, "rsp": 0x7FF0} | {
        name: value for name, value in changes.items() if name != "rcx"
    }
    at = put_frame(guest, 14, **frame)
    return make_registers(
        {
            "rsp": at, "rcx": changes.get("rcx", 0x40_2000), "r11": 0x3F_7FD7, "rax": 0x1001, "cr2": lstar,
            "rdi": 1, "rsi": 2, "rdx": 3, "r10": 4, "r8": 5, "r9": 6,
        }
    )  # fmt: skip


def test_a_system_call_that_stayed_in_user_mode(guest: Any, make_registers: Any) -> None:
    vcpu = disguised(guest, make_registers)
    assert guest.isa.read_fault(vcpu, guest, FAULT) is None
    call = guest.isa.read_user_call(vcpu, guest, FAULT)
    assert call == Exit(ExitKind.USER_CALL, 0x1001, info=(1, 2, 3, 4, 5, 6))
    guest.isa.finish_user_call(vcpu, guest, FAULT, -38)
    assert vcpu.values["rax"] == (1 << 64) - 38
    code = guest.read_virtual(vcpu.values["rip"], 6)
    assert code == bytes.fromhex("4883c41048cf"), "the frame is dropped and returned from"
    vector, _, rip, cs, rflags, rsp, ss = struct.unpack("<7Q", guest.read_virtual(vcpu.values["rsp"], 56))
    assert (vector, rip, cs, rsp, ss) == (14, 0x40_2000, USER, 0x7FF0, 0x1B)
    assert rflags & 0x3000 == 0, "IOPL stays 0"
    assert rflags & 0x200 == 0x200, "IF is the frame's"
    assert rflags & 0x4000 == 0
    assert rflags & 0xD5 == 0xD5


def test_interrupts_cannot_be_switched_on_from_user_mode(guest: Any, make_registers: Any) -> None:
    vcpu = disguised(guest, make_registers, rflags=0x2)
    guest.isa.finish_user_call(vcpu, guest, FAULT, 0)
    rflags = struct.unpack("<7Q", guest.read_virtual(vcpu.values["rsp"], 56))[4]
    assert rflags & 0x200 == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"rcx": 1 << 47},
        {"rcx": (1 << 47) - 1},
        {"rcx": 0xFFFF_8000_0000_0000},
        {"code": 0x11},
        {"cs": KERNEL},
        {"rip": 0x40_0000},
    ],
)
def test_what_is_no_system_call_is_a_fault(guest: Any, make_registers: Any, changes: dict[str, int]) -> None:
    vcpu = disguised(guest, make_registers, **changes)
    assert guest.isa.read_fault(vcpu, guest, FAULT) is not None


def test_a_frame_away_from_the_kernel_stack_is_refused(guest: Any, make_registers: Any) -> None:
    vcpu = disguised(guest, make_registers)
    elsewhere = guest.areas["stack"].virtual
    guest.write_virtual(elsewhere, guest.read_virtual(vcpu.values["rsp"], 56))
    vcpu.values["rsp"] = elsewhere
    with pytest.raises(AddressError, match="not on a kernel stack"):
        guest.isa.finish_user_call(vcpu, guest, FAULT, 0)


def test_a_system_call_as_it_should_be(guest: Any, make_registers: Any) -> None:
    guest.start("user")
    vcpu = make_registers({"rax": 5, "rdi": 6, "rip": 0x9999, "rcx": 0x40_2000})
    call = guest.isa.read_user_call(vcpu, guest, USER_CALL)
    assert (call.address, call.info[0]) == (5, 6)
    guest.isa.finish_user_call(vcpu, guest, USER_CALL, 77)
    assert (vcpu.values["rax"], vcpu.values["rip"]) == (77, 0x9999)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=7, max_size=7), st.integers(0, (1 << 64) - 1))
def test_any_frame_gives_a_fault(words: list[int], value: int) -> None:
    frame = faults_frame(words)
    registers = dict.fromkeys(faults.READ_AT_FAULT, value)
    fault = faults.describe(frame, registers, NoMemory(), {})
    assert fault.name
    assert fault.pc == words[2]


def faults_frame(words: list[int]) -> Any:
    from rift_x86_64.user_calls import Frame

    return Frame(*words)


class NoMemory:
    def read_virtual(self, address: int, size: int) -> bytes:
        raise AddressError(f"{address:#x}, {size} bytes")
