"""The ISA's own code in the guest, as bytes.

It needs no stack and no memory but the doorbell, so that a guest that has lost its stack is reported like any other.
A store needs a base register: X30 serves, its own value waits in TPIDR_EL1 meanwhile. A test compares the
bytes with what an assembler makes of :data:`SOURCE`.

Supervisor page (read, execute):

- 16 exception vectors of 128 bytes (Arm ARM, "Exception vectors"). Each tells the host by one store to the doorbell's
  FAULT register; the host knows by PC which one it is. Should the host let the guest go on, X30 is put back and ERET
  tries again. The vector for synchronous exceptions of EL0 sends SVC to USER_CALL instead;
- the return stub, which stores X0, the result, to RETURN: the return address of every function started here.

User page (read, execute, user): the return stub of functions in user mode, which makes a user call.
"""

from __future__ import annotations

import struct

from rift_core import doorbell

VECTOR_SIZE = 0x80
VECTORS_SIZE = 16 * VECTOR_SIZE
RETURN_OFFSET = VECTORS_SIZE
SYNCHRONOUS_FROM_EL0 = 8
"""Index of the vector at +0x400: a lower exception level that runs AArch64."""

USER_CALL_RETURN = 2
"""User call ``(value)``: the function returned; ``RIFT_CALL_RETURN`` of ``rift_doorbell.h``."""

_SVC = 0x15  # ESR_EL1.EC
_SAVE = 0xD518_D09E  # msr tpidr_el1, x30
_RESTORE = 0xD538_D09E  # mrs x30, tpidr_el1
_SYNDROME = 0xD538_521E  # mrs x30, esr_el1
_CLASS = 0xD35A_FFDE  # lsr x30, x30, #26
_COMPARE = 0xF100_001F | _SVC << 10 | 30 << 5  # cmp x30, #0x15
_IF_EQUAL = 0x5400_0000  # b.eq
_BRANCH = 0x1400_0000  # b
_STORE_ZERO = 0xB900_001F | 30 << 5  # str wzr, [x30, #...]
_STORE = 0xF900_0000  # str, 8 bytes
_RETURN = 0xD69F_03E0  # eret
_BREAKPOINT = 0xD420_0000  # brk #0, the filling

USER_CODE = struct.pack(
    "<3I",
    0xD280_0008 | USER_CALL_RETURN << 5,  # mov x8, #RETURN; the value is in X0 already
    0xD400_0001,  # svc #0
    0xD420_0020,  # brk #1: not reached
)

SOURCE = """
    .macro doorbell_to register
    movz \\register, #({doorbell} & 0xffff)
    movk \\register, #(({doorbell} >> 16) & 0xffff), lsl #16
    movk \\register, #(({doorbell} >> 32) & 0xffff), lsl #32
    .endm
    .macro padding
    .rept 32
    .if . - start < vector * 128
    brk #0
    .endif
    .endr
    .endm
start:
    .set vector, 0
    .rept 16
    msr tpidr_el1, x30
    .if vector == 8
    mrs x30, esr_el1
    lsr x30, x30, #26
    cmp x30, #0x15
    doorbell_to x30
    b.eq 1f
    str wzr, [x30, #{fault}]
    b 2f
1:  str x8, [x30, #{user_call}]
2:
    .else
    doorbell_to x30
    str wzr, [x30, #{fault}]
    .endif
    mrs x30, tpidr_el1
    eret
    .set vector, vector + 1
    padding
    .endr
return:
    doorbell_to x16
    str x0, [x16, #{return_}]
    b return
user_code:
    mov x8, #2
    svc #0
    brk #1
"""
"""The same as assembler source (GNU as), for readers and the test."""


def doorbell_to(register: int, address: int) -> tuple[int, int, int]:
    """MOVZ and MOVK: a doorbell has at most 48 bits."""
    parts = [(address >> 16 * part & 0xFFFF) << 5 | register for part in range(3)]
    return 0xD280_0000 | parts[0], 0xF2A0_0000 | parts[1], 0xF2C0_0000 | parts[2]


def supervisor_code(address: int, size: int) -> bytes:
    """The supervisor page's ``size`` bytes, for a doorbell at ``address``."""
    point = doorbell_to(30, address)
    fault = _STORE_ZERO | doorbell.FAULT // 4 << 10
    plain = (_SAVE, *point, fault, _RESTORE, _RETURN)
    user_call = _STORE | doorbell.USER_CALL // 8 << 10 | 30 << 5 | 8
    skip_fault, skip_call = _IF_EQUAL | 3 << 5, _BRANCH | 2
    from_user = (_SAVE, _SYNDROME, _CLASS, _COMPARE, *point, skip_fault, fault, skip_call, user_call, _RESTORE, _RETURN)
    words = [_BREAKPOINT] * (size // 4)
    for vector in range(16):
        code = from_user if vector == SYNCHRONOUS_FROM_EL0 else plain
        words[vector * VECTOR_SIZE // 4 : vector * VECTOR_SIZE // 4 + len(code)] = code
    result = _STORE | doorbell.RETURN // 8 << 10 | 16 << 5
    returning = (*doorbell_to(16, address), result, _BRANCH | -4 & 0x3FF_FFFF)  # nobody goes on after a return
    words[RETURN_OFFSET // 4 : RETURN_OFFSET // 4 + len(returning)] = returning
    return struct.pack(f"<{len(words)}I", *words)
