"""Exceptions as the host reports them: which vector, whose registers, and the syndrome in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rift_aarch64 import faults, syndrome
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gva

if TYPE_CHECKING:
    from rift_core.isa import GuestFault

EL1H, EL1T, EL0 = 0x3C5, 0x3C4, 0x3C0
SYNC_EL1, SYNC_EL0 = 4, 8  # index of the vector
EXIT = Exit(ExitKind.MMIO, 0x7000_0808, 4, 0, True)


def esr(exception: int, iss: int = 0) -> int:
    return exception << 26 | 1 << 25 | iss


def fault(
    guest: Any,
    make_registers: Any,
    exception: int,
    iss: int = 0,
    *,
    vector: int = SYNC_EL1,
    mode: int = EL1H,
    **more: int,
) -> GuestFault:
    base = guest.system_areas["code"].virtual
    values = {f"x{number}": number for number in range(31)}
    values |= {
        "pc": base + vector * 0x80 + 0x14, "vbar_el1": base, "tpidr_el1": 0x3030, "sp_el0": 0x1000, "sp_el1": 0x2000,
        "elr_el1": 0x40_1000, "spsr_el1": mode, "esr_el1": esr(exception, iss), "far_el1": 0, "ttbr0_el1": 0x8000_0000,
    }  # fmt: skip
    found = guest.isa.read_fault(make_registers(values | more), guest, EXIT)
    assert found is not None
    return found  # type: ignore[no-any-return]


def test_registers_are_those_of_the_interrupted_code(guest: Any, make_registers: Any) -> None:
    found = fault(guest, make_registers, syndrome.UNKNOWN)
    assert (found.pc, found.sp, found.user, found.vector, found.code) == (0x40_1000, 0x2000, False, 0, 0)
    assert found.registers["x30"] == 0x3030, "the vector keeps it in TPIDR_EL1"
    assert found.registers["x29"] == 29
    assert (found.registers["pc"], found.registers["sp"], found.registers["pstate"]) == (0x40_1000, 0x2000, EL1H)
    assert found.registers["esr_el1"] == esr(0)


def test_the_stack_pointer_goes_by_the_mode(guest: Any, make_registers: Any) -> None:
    assert fault(guest, make_registers, 0, mode=EL0, vector=SYNC_EL0).sp == 0x1000
    found = fault(guest, make_registers, 0, mode=EL1T, vector=0)
    assert found.sp == 0x1000
    assert not found.user
    assert "EL1t" in found.words


def test_a_store_from_elsewhere_has_all_its_registers(guest: Any, make_registers: Any) -> None:
    found = fault(guest, make_registers, 0, pc=0x40_2000)
    assert found.registers["x30"] == 30


@pytest.mark.parametrize(
    ("vector", "number", "name"),
    [(5, syndrome.IRQ, "IRQ"), (6, syndrome.FIQ, "FIQ"), (7, syndrome.SERROR, "SError"), (9, syndrome.IRQ, "IRQ")],
)
def test_interrupts_are_told_by_the_vector(
    guest: Any, make_registers: Any, vector: int, number: int, name: str
) -> None:
    mode = EL0 if vector >= 8 else EL1H
    found = fault(guest, make_registers, syndrome.SVC, 1 << 24 | 5, vector=vector, mode=mode)
    assert (found.vector, found.name) == (number, name)
    assert (found.code is None) == (name != "SError")


def abort(status: int, *, write: bool = False, more: int = 0) -> int:
    return status | (1 << 6 if write else 0) | more


@pytest.mark.parametrize(
    ("exception", "iss", "mode", "words"),
    [
        (0x25, abort(0x07), EL1H, "a read in supervisor mode found no page mapped (translation fault, level 3)"),
        (
            0x25,
            abort(0x04, write=True),
            EL1H,
            "a write in supervisor mode found no page mapped (translation fault, level",
        ),
        (
            0x24,
            abort(0x0F, write=True),
            EL0,
            "a write in user mode is not allowed by the page's permissions (permission",
        ),
        (
            0x24,
            abort(0x0D),
            EL0,
            "a read in user mode is not allowed by the page's permissions (permission fault, level 1)",
        ),
        (0x25, abort(0x0B), EL1H, "access flag is clear, which this CPU does not set"),
        (0x25, abort(0x03), EL1H, "a physical address that this CPU does not have (address size fault, level 3)"),
        (0x25, abort(0x21), EL1H, "is not aligned"),
        (0x25, abort(0x10), EL1H, "answered with an error"),
        (0x25, abort(0x16), EL1H, "external abort on a table walk, level 2"),
        (0x25, abort(0x30), EL1H, "TLB conflict"),
        (0x25, abort(0x3F), EL1H, "fault status 0x3f"),
        (0x25, abort(0x07, write=True, more=1 << 8), EL1H, "cache maintenance in supervisor mode"),
        (0x21, abort(0x0F), EL1H, "an instruction fetch in supervisor mode is not allowed"),
        (0x20, abort(0x07), EL0, "an instruction fetch in user mode found no page mapped"),
    ],
)
def test_aborts_in_words(guest: Any, make_registers: Any, exception: int, iss: int, mode: int, words: str) -> None:
    vector = SYNC_EL0 if mode == EL0 else SYNC_EL1
    found = fault(guest, make_registers, exception, iss, mode=mode, vector=vector, far_el1=0x1234_5678)
    assert words in found.words
    assert found.address == 0x1234_5678
    assert found.user == (mode == EL0)
    assert (found.vector, found.code) == (exception, iss)


def test_what_an_abort_hints_at(guest: Any, make_registers: Any) -> None:
    assert "a null pointer" in fault(guest, make_registers, 0x25, 0x05, far_el1=0x18).words
    assert "a jump to nowhere" in fault(guest, make_registers, 0x21, 0x05, far_el1=0x40_1000).words
    assert "neither half" in fault(guest, make_registers, 0x25, 0x04, far_el1=0x1234 << 48).words
    assert "not executable for the supervisor" in fault(guest, make_registers, 0x21, 0x0F, far_el1=0x5000).words


def test_an_address_that_is_not_valid_is_not_shown(guest: Any, make_registers: Any) -> None:
    assert fault(guest, make_registers, 0x25, 0x410, far_el1=0x5000).address is None
    assert fault(guest, make_registers, 0x25, 0x010, far_el1=0x5000).address == 0x5000
    assert fault(guest, make_registers, syndrome.BRK, 1, far_el1=0x5000).address is None
    assert fault(guest, make_registers, syndrome.PC_ALIGNMENT, far_el1=0x5001).address == 0x5001


def test_a_stack_overflow_is_called_one(guest: Any, make_registers: Any) -> None:
    guest.start("user")
    below = guest.areas["stack"].virtual - 8
    found = fault(guest, make_registers, 0x25, 0x47, far_el1=below)
    assert f"stack overflow: {below:#x} lies in the guard page below the stack" in found.words
    below = guest.areas["kernel-stack"].virtual - 16
    assert "below the kernel-stack" in fault(guest, make_registers, 0x25, 0x47, far_el1=below).words


@pytest.mark.parametrize(
    ("exception", "iss", "user", "words"),
    [
        (syndrome.BRK, 1, False, "BRK #0x1: the compiler's trap"),
        (syndrome.BRK, 1000, False, "BRK #0x3e8: the compiler's trap"),
        (syndrome.BRK, 0x77, False, "BRK #0x77; PC is at the instruction"),
        (syndrome.SVC, 5, False, "SVC #0x5 in supervisor mode"),
        (syndrome.HVC, 0, False, "HVC #0x0"),
        (syndrome.WFX, 0, True, "WFI is a privileged instruction"),
        (syndrome.WFX, 1, False, "WFE is trapped"),
        (syndrome.FP_TRAP, 0, False, "FPEN"),
        (syndrome.SVE_TRAP, 0, False, "ZEN"),
        (syndrome.ILLEGAL_STATE, 0, False, "execution state"),
        (syndrome.PC_ALIGNMENT, 0, False, "no multiple of 4"),
        (syndrome.SP_ALIGNMENT, 0, False, "0x2000 is no multiple of 16"),
        (syndrome.FP_EXCEPTION, 1 << 23 | 0b10010, False, "division by zero, inexact"),
        (syndrome.FP_EXCEPTION, 0, False, "not told"),
        (syndrome.SERROR, 1 << 24 | 0x42, False, "implementation defined syndrome 0x42"),
        (syndrome.SERROR, 0x11 | 3 << 10, False, "recoverable"),
        (0x3F, 0, False, ""),
    ],
)
def test_other_classes_in_words(
    guest: Any, make_registers: Any, exception: int, iss: int, user: bool, words: str
) -> None:
    mode, vector = (EL0, SYNC_EL0) if user else (EL1H, SYNC_EL1)
    found = fault(guest, make_registers, exception, iss, mode=mode, vector=vector)
    assert words in found.words
    assert found.name == syndrome.class_name(exception)


INSTRUCTIONS = {
    "udf #0": (0x0000_0000, False, "UDF #0x0"),
    "hvc #0": (0xD400_0002, True, "HVC is a privileged instruction"),
    "smc #3": (0xD400_0063, True, "SMC is a privileged instruction"),
    "eret": (0xD69F_03E0, True, "ERET is a privileged instruction"),
    "mrs x0, sctlr_el1": (0xD538_1000, True, "a read of SCTLR_EL1 is a privileged operation"),
    "msr vbar_el1, x0": (0xD518_C000, True, "a write of VBAR_EL1 is a privileged operation"),
    "msr s3_7_c11_c15_7, x0": (0xD51F_BFE0, False, "a write of S3_7_C11_C15_7, which does not exist here"),
    "tlbi vmalle1": (0xD508_871F, True, "the system operation S1_0_C8_C7_0 is a privileged operation"),
    "msr daifset, #2": (0xD503_42DF, True, "a write of DAIFSet is a privileged operation"),
    "fmov d0, #1.0": (0x1E6E_1000, False, "floating point or vectors"),
    "ptrue p0.b": (0x2518_E3E0, False, "SVE"),
    "?": (0xFFFF_FFFF, False, "floating point or vectors"),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_undefined_instructions_in_words(guest: Any, make_registers: Any, name: str) -> None:
    code, user, words = INSTRUCTIONS[name]
    at = guest.areas["stack"].virtual
    guest.write_virtual(at, code.to_bytes(4, "little"))
    mode, vector = (EL0, SYNC_EL0) if user else (EL1H, SYNC_EL1)
    assert words in fault(guest, make_registers, syndrome.UNKNOWN, mode=mode, vector=vector, elr_el1=at).words


def test_an_instruction_that_cannot_be_read(guest: Any, make_registers: Any) -> None:
    assert "cannot be read" in fault(guest, make_registers, syndrome.UNKNOWN, elr_el1=0xDEAD_0000).words


@pytest.mark.parametrize("user", [False, True])
def test_trapped_system_registers_in_words(guest: Any, make_registers: Any, user: bool) -> None:
    # Op0 3, op2 0, op1 0, CRn 2, Rt 1, CRm 0, read: TTBR0_EL1
    iss = 3 << 20 | 0 << 17 | 0 << 14 | 2 << 10 | 1 << 5 | 0 << 1 | 1
    mode, vector = (EL0, SYNC_EL0) if user else (EL1H, SYNC_EL1)
    found = fault(guest, make_registers, syndrome.SYSTEM_REGISTER, iss, mode=mode, vector=vector, elr_el1=0xDEAD_0000)
    assert "a read of TTBR0_EL1" in found.words
    assert ("privileged" in found.words) == user
    at = guest.areas["stack"].virtual
    guest.write_virtual(at, (0xD503_42DF).to_bytes(4, "little"))  # msr daifset, #2
    found = fault(guest, make_registers, syndrome.SYSTEM_REGISTER, iss, mode=mode, vector=vector, elr_el1=at)
    assert "a write of DAIFSet" in found.words, "the instruction says more than the syndrome"


def test_every_register_that_is_read_is_in_the_table(guest: Any) -> None:
    assert set(faults.READ_AT_FAULT) <= {register.name for register in guest.isa.registers}
    assert Gva(0) in guest.isa.virtual_ranges[0]
