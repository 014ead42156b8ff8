"""Small functions in machine code of this host's ISA, which its backends run, and the ISA's names for things."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rift_core.assembly import host_isa

X86_64 = {
    "add": bytes.fromhex("488d0437c3"),  # lea rax, [rdi+rsi]; ret
    "spin": bytes.fromhex("ebfe"),  # jmp $
    "halt": bytes.fromhex("f4"),  # hlt
    "undefined": bytes.fromhex("0f0b"),  # ud2
    "null": bytes.fromhex("8b042500000000"),  # mov eax, [0]
    "return": bytes.fromhex("c3"),  # ret
    "identity": bytes.fromhex("4889f8c3"),  # mov rax, rdi; ret
    "load": bytes.fromhex("488b07c3"),  # mov rax, [rdi]; ret
    "store": bytes.fromhex("488937c3"),  # mov [rdi], rsi; ret
    "count": bytes.fromhex("48ff07ebfb"),  # inc qword [rdi]; jmp $-3
    "exit": bytes.fromhex("893c2500000070ebfe"),  # mov [0x70000000], edi; jmp $
    "doorbell": bytes.fromhex("893c2500010070c3"),  # mov [0x70000100], edi; ret
    "flood": bytes.fromhex("893c2500010070ebf7"),  # mov [0x70000100], edi; jmp back
    "recurse": bytes.fromhex("e8fbffffff"),  # call $
    "print": bytes.fromhex("c7042508000070 78000000 c3"),  # mov dword [0x70000008], 'x'; ret
    "five": bytes.fromhex("b805000000c3"),  # mov eax, 5; ret
    "six": bytes.fromhex("b806000000c3"),
    "seven": bytes.fromhex("b807000000c3"),
}


def _arm(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


_RET = 0xD65F_03C0
_DOORBELL = 0xD2AE_0001  # mov x1, 0x70000000

AARCH64 = {
    "add": _arm(0x8B01_0000, _RET),  # add x0, x0, x1
    "spin": _arm(0x1400_0000),  # b .
    "halt": _arm(0xD503_207F),  # wfi
    "undefined": _arm(0),  # udf 0
    "null": _arm(0xB940_0000),  # ldr w0, [x0]: 0, if no argument is given
    "return": _arm(_RET),
    "identity": _arm(_RET),
    "load": _arm(0xF940_0000, _RET),  # ldr x0, [x0]
    "store": _arm(0xF900_0001, _RET),  # str x1, [x0]
    "count": _arm(0xF940_0001, 0x9100_0421, 0xF900_0001, 0x17FF_FFFD),  # ldr x1, [x0]; add; str; b back
    "exit": _arm(_DOORBELL, 0xB900_0020, 0x1400_0000),  # str w0, [x1]; b .
    "doorbell": _arm(_DOORBELL, 0xB901_0020, _RET),  # str w0, [x1, 0x100]
    "flood": _arm(_DOORBELL, 0xB901_0020, 0x17FF_FFFF),  # str w0, [x1, 0x100]; b back
    "recurse": _arm(0xA9BF_7BFD, 0x97FF_FFFF),  # stp x29, x30, [sp, -16]!; bl back
    "print": _arm(_DOORBELL, 0x5280_0F00, 0xB900_0820, _RET),  # mov w0, 'x'; str w0, [x1, 8]
    "five": _arm(0x5280_00A0, _RET),  # mov w0, 5
    "six": _arm(0x5280_00C0, _RET),
    "seven": _arm(0x5280_00E0, _RET),
}


@dataclass(frozen=True, slots=True)
class Names:
    """Registers, and what the guest's exceptions are called."""

    pc: str
    first: str  # arguments
    second: str
    spare: str  # no function above uses it
    tables: str
    aborts: frozenset[int]  # vectors of an access to an unmapped page, from supervisor mode
    abort: str
    undefined: str
    smallest: int  # address alignment of code


_X86_64_NAMES = Names("rip", "rdi", "rsi", "rbx", "cr3", frozenset({14}), "page fault", "invalid opcode", 1)
_AARCH64_NAMES = Names(
    "pc", "x0", "x1", "x20", "ttbr0_el1", frozenset({0x21, 0x25}), "abort", "undefined instruction", 4
)

_ISA = {"x86_64": (X86_64, _X86_64_NAMES), "aarch64": (AARCH64, _AARCH64_NAMES)}

ISA = host_isa() if host_isa() in _ISA else "x86_64"
CODE, NAMES = _ISA[ISA]
