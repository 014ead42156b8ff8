"""The ISA's own code in the guest, as bytes.

It is a handful of instructions that every hypervisor and its emulator know, position-dependent only in the
doorbell's address. A test compares the bytes with what an assembler makes of :data:`SOURCE`.

Supervisor page (read, execute):

- 256 vector stubs of 16 bytes, which make every exception frame ``[vector, error code, RIP, CS, RFLAGS, RSP, SS]``;
- the common part: one store to the doorbell's FAULT register that changes no register, and, should the host
  let the guest go on, IRETQ;
- the return stub, which stores RAX, the result, to RETURN: the return address of every function started here;
- the user-call entry (LSTAR): a store of RAX to USER_CALL, then SYSRET. It uses no stack: RSP is the user's.

User page (read, execute, user): the return stub of functions in user mode, which makes a user call.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from rift_core import doorbell

STUB_SIZE = 16
STUBS_SIZE = 256 * STUB_SIZE
FAULT_OFFSET = 0x1000
RETURN_OFFSET = 0x1020
USER_CALL_OFFSET = 0x1040
CODE_SIZE = 0x2000
USER_CODE_SIZE = 0x1000

ERROR_CODE_VECTORS = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
"""Exceptions that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP (SDM volume 3, table "Protected-Mode
Exceptions and Interrupts"), #VC #SX (APM volume 2, "Vectors")."""

USER_CALL_RETURN = 2
"""User call ``(value)``: the function returned; ``RIFT_CALL_RETURN`` of ``rift_doorbell.h``."""

_PUSH_ZERO = bytes.fromhex("6a 00")  # push 0
_PUSH_VECTOR = b"\x68"  # push imm32
_JUMP = b"\xe9"  # jmp rel32
_STORE_EAX = b"\xa3"  # mov [moffs64], eax
_STORE_RAX = b"\x48\xa3"  # mov [moffs64], rax
_DROP_AND_RETURN = bytes.fromhex("48 83 c4 10  48 cf")  # add rsp, 16; iretq
_RETURN_TO_USER = bytes.fromhex("48 0f 07")  # sysretq
_AGAIN = bytes.fromhex("eb f4")  # jmp to the store, 12 bytes back: nobody goes on after a return
_BREAKPOINT = b"\xcc"  # int3, the filling

RESUME_OFFSET = FAULT_OFFSET + 9
"""Where a frame, RSP pointing at its vector, is dropped and returned from."""

USER_CODE = (
    bytes.fromhex("48 89 c7")  # mov rdi, rax
    + b"\xb8" + struct.pack("<I", USER_CALL_RETURN)  # mov eax, RETURN
    + bytes.fromhex("0f 05")  # syscall
    + bytes.fromhex("0f 0b")  # ud2: not reached
)  # fmt: skip

SOURCE = """
    .intel_syntax noprefix
    .set vector, 0
    .rept 256
    .balign 16, 0xcc
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push 0
    .endif
    .byte 0x68
    .long vector
    .byte 0xe9
    .long fault - . - 4
    .set vector, vector + 1
    .endr
    .org 0x1000, 0xcc
fault:
    movabs [{doorbell} + {fault}], eax
    add rsp, 16
    iretq
    .org 0x1020, 0xcc
return:
    movabs [{doorbell} + {return_}], rax
    jmp return
    .org 0x1040, 0xcc
user_call:
    movabs [{doorbell} + {user_call}], rax
    sysretq
    .org 0x2000, 0xcc
user_code:
    mov rdi, rax
    mov eax, 2
    syscall
    ud2
"""
"""The same as assembler source (GNU as), for readers and the test."""


@lru_cache(maxsize=4)
def supervisor_code(address: int) -> bytes:
    """The supervisor page's :data:`CODE_SIZE` bytes, for a doorbell at ``address``."""
    code = bytearray(_BREAKPOINT * CODE_SIZE)
    for vector in range(256):
        stub = b"" if vector in ERROR_CODE_VECTORS else _PUSH_ZERO
        stub += _PUSH_VECTOR + struct.pack("<i", vector) + _JUMP
        at = vector * STUB_SIZE
        stub += struct.pack("<i", FAULT_OFFSET - (at + len(stub) + 4))
        code[at : at + len(stub)] = stub

    def put(offset: int, *parts: bytes) -> None:
        piece = b"".join(parts)
        code[offset : offset + len(piece)] = piece

    put(FAULT_OFFSET, _STORE_EAX, struct.pack("<Q", address + doorbell.FAULT), _DROP_AND_RETURN)
    put(RETURN_OFFSET, _STORE_RAX, struct.pack("<Q", address + doorbell.RETURN), _AGAIN)
    put(USER_CALL_OFFSET, _STORE_RAX, struct.pack("<Q", address + doorbell.USER_CALL), _RETURN_TO_USER)
    return bytes(code)
