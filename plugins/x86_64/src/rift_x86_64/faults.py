"""Exceptions in words: SDM volume 3, chapter "Interrupt and Exception Handling"; APM volume 2, chapter 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import AddressError
from rift_core.isa import GuestFault
from rift_x86_64.builtin_code import ERROR_CODE_VECTORS
from rift_x86_64.paging import SMALL_PAGE, is_canonical
from rift_x86_64.registers import GENERAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.isa import GuestReader
    from rift_x86_64.user_calls import Frame

EXCEPTIONS = {
    0: "#DE divide error",
    1: "#DB debug",
    2: "NMI non-maskable interrupt",
    3: "#BP breakpoint",
    4: "#OF overflow",
    5: "#BR bound range exceeded",
    6: "#UD invalid opcode",
    7: "#NM device not available",
    8: "#DF double fault",
    9: "coprocessor segment overrun",
    10: "#TS invalid TSS",
    11: "#NP segment not present",
    12: "#SS stack fault",
    13: "#GP general protection",
    14: "#PF page fault",
    16: "#MF x87 floating-point error",
    17: "#AC alignment check",
    18: "#MC machine check",
    19: "#XM SIMD floating-point error",
    20: "#VE virtualization",
    21: "#CP control protection",
    28: "#HV hypervisor injection",
    29: "#VC VMM communication",
    30: "#SX security",
}
DOUBLE_FAULT, PAGE_FAULT, GENERAL_PROTECTION, INVALID_OPCODE = 8, 14, 13, 6
_SELECTOR_CODES = frozenset({10, 11, 12, 13})
_STOPPED_BEHIND = frozenset({3, 4})
READ_AT_FAULT = (*GENERAL, "cr2", "cr3")

_PORT_OPCODES = frozenset((*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0)))
_PRIVILEGED = {0xF4: "HLT", 0xFA: "CLI", 0xFB: "STI"}
_PRIVILEGED_0F = {0x06: "CLTS", 0x08: "INVD", 0x09: "WBINVD", 0x20: "MOV from a control register",
                  0x21: "MOV from a debug register", 0x22: "MOV to a control register",
                  0x23: "MOV to a debug register", 0x30: "WRMSR", 0x32: "RDMSR"}  # fmt: skip
_LEGACY_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3})
_SSE_OPCODES = frozenset((*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x80), *range(0xC2, 0xC7),
                          *range(0xD0, 0xFF), 0x38, 0x3A))  # fmt: skip
_MAX_INSTRUCTION = 15


def vector_name(vector: int) -> str:
    """Mnemonic and name."""
    return EXCEPTIONS.get(vector, f"interrupt {vector}" if vector >= 32 else f"reserved exception {vector}")


def page_fault_words(code: int) -> str:
    """The error code of #PF."""
    access = "an instruction fetch" if code & 0x10 else "a write" if code & 2 else "a read"
    mode = "user" if code & 4 else "supervisor"
    if code & 8:
        why = "hit a page-table entry with a reserved bit set"
    elif code & 0x20:
        why = "was refused by a protection key"
    elif code & 1:
        why = "is not allowed by the page's permissions"
    else:
        why = "found no page mapped"
    shadow = " (shadow stack)" if code & 0x40 else ""
    return f"{access} in {mode} mode{shadow} {why}"


def selector_words(code: int) -> str:
    """The error code of #TS, #NP, #SS and #GP."""
    table = "IDT" if code & 2 else "LDT" if code & 4 else "GDT"
    external = ", while delivering an event from outside the program" if code & 1 else ""
    if code & 2:
        return f"IDT entry {code >> 3 & 0x1FFF:#x}{external}"
    return f"selector {code & 0xFFF8:#x} in the {table}{external}"


def _code_bytes(reader: GuestReader, address: int) -> bytes:
    """What can be read of the instruction at ``address``."""
    size = _MAX_INSTRUCTION
    try:
        return reader.read_virtual(address, size)
    except AddressError:
        size = min(size, SMALL_PAGE - address % SMALL_PAGE)
    try:
        return reader.read_virtual(address, size)
    except AddressError:
        return b""


def _opcode(code: bytes) -> bytes:
    """The bytes from the opcode on, prefixes removed."""
    at = 0
    while at < len(code) and code[at] in _LEGACY_PREFIXES:
        at += 1
    if at < len(code) and code[at] & 0xF0 == 0x40:  # REX
        at += 1
    return code[at:]


def _vector_instruction(code: bytes) -> str:
    if not code:
        return ""
    opcode = _opcode(code)
    if code[0] in (0xC4, 0xC5):
        return "AVX"
    if code[0] == 0x62:
        return "AVX-512"
    if len(opcode) > 1 and opcode[0] == 0x0F and opcode[1] in _SSE_OPCODES:
        return "SSE"
    if opcode and 0xD8 <= opcode[0] <= 0xDF:
        return "x87"
    return ""


def _invalid_opcode_words(code: bytes, user: bool) -> str:
    if code[:2] == b"\x0f\x0b":
        return "UD2: the program's own trap (a failed check, or a place the compiler thinks unreachable)"
    kind = _vector_instruction(code)
    if kind:
        where = "user" if user else "supervisor"
        return (
            f"the instruction looks like {kind}, which this CPU or hypervisor does not run in {where} mode; "
            "compile with -mgeneral-regs-only, or for an older CPU"
        )
    if code and code[0] == 0xCD:
        return "INT n is not available here"
    return "the bytes there are no instruction of this CPU"


def _protection_words(code: bytes, user: bool, registers: Mapping[str, int]) -> str:
    if not is_canonical(registers["rip"]):
        return f"a jump to {registers['rip']:#x}, which is no canonical address"
    opcode = _opcode(code)
    if opcode and opcode[0] in _PORT_OPCODES and user:
        return "port input and output are not allowed in user mode"
    if opcode and user:
        name = _PRIVILEGED.get(opcode[0])
        if opcode[0] == 0x0F and len(opcode) > 1:
            name = _PRIVILEGED_0F.get(opcode[1])
        if name:
            return f"{name} is a privileged instruction, and this is user mode"
    if opcode[:2] in (b"\x0f\x30", b"\x0f\x32") and not user:
        return f"MSR {registers['rcx'] & 0xFFFF_FFFF:#x} does not exist, or not with that value"
    strange = [name for name in GENERAL if not is_canonical(registers[name])]
    if strange:
        return f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} no canonical address, if used as one"
    if opcode[:2] in (b"\x0f\x28", b"\x0f\x29", b"\x0f\x6f", b"\x0f\x7f"):
        return "an aligned vector access needs an address that is a multiple of 16"
    return "a privileged operation, or an access that no segment or address rule allows; no selector is named"


def describe(frame: Frame, registers: Mapping[str, int], reader: GuestReader, guards: Mapping[int, str]) -> GuestFault:
    """The fault behind ``frame``.

    :param registers: :data:`READ_AT_FAULT`, the general ones as at the fault.
    :param guards: names of stacks by the page number of the guard page below.
    """
    vector, user = frame.vector & 0xFF, frame.cs & 3 == 3
    address = registers["cr2"] if vector in (PAGE_FAULT, DOUBLE_FAULT) else None
    at_fault = dict(registers)
    at_fault.update(
        {"rip": frame.rip, "rsp": frame.rsp, "rflags": frame.rflags, "cs.selector": frame.cs, "ss.selector": frame.ss}
    )
    words = []
    if vector == PAGE_FAULT:
        words.append(page_fault_words(frame.code))
    elif vector in _SELECTOR_CODES and frame.code & 0xFFFF:
        words.append(selector_words(frame.code))
    overflowed = guards.get(address // SMALL_PAGE) if address is not None else None
    if overflowed is not None:
        words.append(f"stack overflow: {address:#x} lies in the guard page below the {overflowed}")
    elif vector == DOUBLE_FAULT:
        address = None
        words.append("another exception came while one was being delivered; the stack or the vectors are not usable")
    elif vector == PAGE_FAULT:
        words += _page_fault_hints(registers["cr2"], frame)
    elif vector == INVALID_OPCODE:
        words.append(_invalid_opcode_words(_code_bytes(reader, frame.rip), user))
    elif vector == GENERAL_PROTECTION and frame.code & 0xFFFF == 0:
        words.append(_protection_words(_code_bytes(reader, frame.rip), user, at_fault))
    elif vector == GENERAL_PROTECTION and user and frame.code & 2:
        words.append(f"INT {frame.code >> 3 & 0xFF:#x} is not open to user mode; use rift_user_call()")
    elif vector in _STOPPED_BEHIND:
        words.append("RIP is behind the instruction")
    return GuestFault(
        vector=vector,
        name=vector_name(vector),
        pc=frame.rip,
        sp=frame.rsp,
        address=address,
        code=frame.code if vector in ERROR_CODE_VECTORS else None,
        words="; ".join(words),
        user=user,
        registers=at_fault,
    )


def _page_fault_hints(address: int, frame: Frame) -> list[str]:
    if frame.code & 1:
        if frame.code & 0x10 and not frame.code & 4:
            return ["the page is not executable for the supervisor (no execute permission, or a user page and SMEP)"]
        return []
    if address < SMALL_PAGE:
        return ["a null pointer, or a member of the object that one should point to"]
    if frame.code & 0x10 and address == frame.rip:
        return ["a jump to nowhere: a wrong function pointer or return address"]
    return []
