"""Exceptions as the vectors report them: Arm ARM, chapter D1.

At the store to the doorbell's FAULT register ELR_EL1, SPSR_EL1, ESR_EL1 and FAR_EL1 tell what happened, all registers
are those of the interrupted code, but X30 waits in TPIDR_EL1, and PC is inside the vector (128 bytes from VBAR_EL1 on)
that was taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_aarch64 import syndrome
from rift_aarch64.builtin_code import VECTOR_SIZE, VECTORS_SIZE
from rift_aarch64.entry import EL0T, EL1H, PSTATE_MODE
from rift_aarch64.paging import is_canonical
from rift_aarch64.registers import GENERAL
from rift_core.errors import AddressError
from rift_core.isa import GuestFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.isa import GuestReader

READ_AT_FAULT = (
    *GENERAL, "pc", "sp_el0", "sp_el1", "vbar_el1", "tpidr_el1", "elr_el1", "spsr_el1", "esr_el1", "far_el1",
    "ttbr0_el1", "ttbr1_el1",
)  # fmt: skip

_SMALLEST_PAGE = 0x1000
_ISS = (1 << 25) - 1
_KINDS = ("synchronous", "IRQ", "FIQ", "SError")
_ORIGINS = ("EL1 on SP_EL0", "EL1", "EL0", "EL0 in AArch32")
_AARCH32 = 1 << 4  # of SPSR

_TRAPS = {1: "the compiler's trap (a failed check, or a place thought unreachable)",
          1000: "the compiler's trap (a failed check, or a place thought unreachable)",
          0xF000: "a debugger's breakpoint"}  # fmt: skip


def describe(registers: Mapping[str, int], reader: GuestReader, guards: Mapping[int, str], page: int) -> GuestFault:
    """The fault that a store to FAULT reports.

    :param registers: :data:`READ_AT_FAULT`.
    :param guards: names of stacks by the page number of the guard page below.
    :param page: the granule.
    """
    offset = registers["pc"] - registers["vbar_el1"]
    inside = 0 <= offset < VECTORS_SIZE
    kind, origin = (offset // VECTOR_SIZE % 4, offset // VECTOR_SIZE // 4) if inside else (0, None)
    esr, spsr = registers["esr_el1"], registers["spsr_el1"]
    mode = spsr & PSTATE_MODE
    user = mode == EL0T or bool(spsr & _AARCH32)
    at_fault = {name: registers[name] for name in (*GENERAL, "elr_el1", "spsr_el1", "esr_el1", "far_el1")}
    at_fault["ttbr0_el1"], at_fault["ttbr1_el1"] = registers["ttbr0_el1"], registers["ttbr1_el1"]
    if inside:
        at_fault["x30"] = registers["tpidr_el1"]
    at_fault["pc"] = registers["elr_el1"]
    at_fault["sp"] = registers["sp_el1" if mode == EL1H else "sp_el0"]
    at_fault["pstate"] = spsr & 0xFFFF_FFFF

    vector = (esr >> 26 & 0x3F, syndrome.IRQ, syndrome.FIQ, syndrome.SERROR)[kind]
    iss = esr & _ISS if kind in (0, 3) else None
    address = _address(vector, iss, registers["far_el1"])
    words = _words(vector, iss or 0, user, at_fault, address, reader)
    overflowed = guards.get(address // page) if address is not None else None
    if overflowed is not None:
        words.append(f"stack overflow: {address:#x} lies in the guard page below the {overflowed}")
    elif origin == 0:
        words.append("the code ran on SP_EL0 (EL1t)")
    if origin is not None and (origin >= 2) != user:
        words.append(f"the vector is the one for {_ORIGINS[origin]}: SPSR_EL1 has been changed since")
    return GuestFault(
        vector=vector,
        name=syndrome.class_name(vector),
        pc=at_fault["pc"],
        sp=at_fault["sp"],
        address=address,
        code=iss,
        words="; ".join(word for word in words if word),
        user=user,
        registers=at_fault,
    )


def _address(vector: int, iss: int | None, far: int) -> int | None:
    """FAR_EL1, where the exception sets it."""
    if iss is None:
        return None
    if vector in syndrome.INSTRUCTION_ABORTS or vector in syndrome.DATA_ABORTS:
        external = iss & 0x3F == syndrome.EXTERNAL_ABORT
        return None if external and iss & syndrome.FAR_NOT_VALID else far
    return far if vector == syndrome.PC_ALIGNMENT or vector in syndrome.WATCHPOINTS else None


def _words(
    vector: int, iss: int, user: bool, registers: Mapping[str, int], address: int | None, reader: GuestReader
) -> list[str]:
    if vector in syndrome.INSTRUCTION_ABORTS or vector in syndrome.DATA_ABORTS:
        return [syndrome.abort_words(vector, iss, user), *_abort_hints(vector, iss, registers["pc"], address, user)]
    if vector == syndrome.UNKNOWN:
        return [_undefined_words(_instruction(reader, registers["pc"]), user)]
    if vector == syndrome.WFX:
        name = ("WFI", "WFE", "WFIT", "WFET")[iss & 3]
        return [f"{name} is a privileged instruction, and this is user mode" if user else f"{name} is trapped here"]
    if vector == syndrome.BRK:
        meaning = _TRAPS.get(iss & 0xFFFF, "")
        return [f"BRK #{iss & 0xFFFF:#x}" + (f": {meaning}" if meaning else ""), "PC is at the instruction"]
    if vector == syndrome.SVC:
        return [f"SVC #{iss & 0xFFFF:#x} in supervisor mode: nobody serves it there; PC is behind the instruction"]
    if vector in (syndrome.HVC, syndrome.SMC):
        return [
            f"{syndrome.class_name(vector)} #{iss & 0xFFFF:#x} came back to the guest; PC is behind the instruction"
        ]
    if vector == syndrome.SYSTEM_REGISTER:
        code = _instruction(reader, registers["pc"])
        what = syndrome.SystemOperation.of_instruction(code or 0) or syndrome.SystemOperation.of_syndrome(iss)
        return [f"{what} is a privileged operation, and this is user mode" if user else f"{what} is trapped here"]
    if vector == syndrome.FP_TRAP:
        return ["CPACR_EL1.FPEN does not allow floating point and vectors here; Rift's entry state does"]
    if vector == syndrome.SVE_TRAP:
        return ["CPACR_EL1.ZEN does not allow SVE here; compile for Armv8-A without it"]
    if vector == syndrome.FP_EXCEPTION:
        return [syndrome.floating_point_words(iss)]
    if vector == syndrome.SERROR:
        return [syndrome.serror_words(iss)]
    if vector == syndrome.PC_ALIGNMENT:
        return [f"a jump to {registers['pc']:#x}, which is no multiple of 4"]
    if vector == syndrome.SP_ALIGNMENT:
        return [f"an access relative to SP, and {registers['sp']:#x} is no multiple of 16"]
    if vector == syndrome.ILLEGAL_STATE:
        return ["ERET, or a write to PSTATE, to an execution state that is not possible"]
    if vector in (syndrome.IRQ, syndrome.FIQ):
        return ["an interrupt for which the vectors have no handler"]
    return []


def _abort_hints(vector: int, iss: int, pc: int, address: int | None, user: bool) -> list[str]:
    code = iss & 0x3F
    if address is None:
        return []
    if syndrome.is_permission(code):
        if vector in syndrome.INSTRUCTION_ABORTS and not user:
            return ["the page is not executable for the supervisor (no execute permission, or writable in user mode)"]
        return []
    if not syndrome.is_translation(code):
        return []
    if not is_canonical(address):
        return ["neither half of the address space: bits 63 to 48 differ"]
    if address < _SMALLEST_PAGE:
        return ["a null pointer, or a member of the object that one should point to"]
    if vector in syndrome.INSTRUCTION_ABORTS and address == pc:
        return ["a jump to nowhere: a wrong function pointer or return address"]
    return []


def _instruction(reader: GuestReader, address: int) -> int | None:
    try:
        return int.from_bytes(reader.read_virtual(address, 4), "little")
    except AddressError:
        return None


_PRIVILEGED = {0xD400_0002: "HVC", 0xD400_0003: "SMC"}  # with any immediate


def _undefined_words(code: int | None, user: bool) -> str:
    if code is None:
        return "the instruction cannot be read"
    if code >> 16 == 0:
        return f"UDF #{code:#x}: an instruction that is never defined; zeros look like this too"
    privileged = _PRIVILEGED.get(code & 0xFFE0_001F)
    if code & 0xFFFF_F3FF == 0xD69F_03E0:
        privileged = "ERET"
    if privileged and user:
        return f"{privileged} is a privileged instruction, and this is user mode"
    operation = syndrome.SystemOperation.of_instruction(code)
    if operation is not None and (operation.op0 or operation.crn == 4):  # op0 0: hints, barriers, fields of PSTATE
        if user and (operation.op1 != 3 or not operation.op0):
            return f"{operation} is a privileged operation, and this is user mode"
        return f"{operation}, which does not exist here, or not for that access"
    if code >> 25 & 0xF in (0x7, 0xF):
        return "the instruction looks like floating point or vectors of a newer CPU; compile for Armv8-A"
    if code >> 25 & 0xF == 0x2:
        return "the instruction looks like SVE, which this CPU or hypervisor does not have; compile for Armv8-A"
    return "the bytes there are no instruction of this CPU"
