"""Calling a C function and reading its result: the psABI, section 3.2.

The first six integers go to registers, the first eight floating-point numbers to XMM registers, everything else
to the stack in order; AL is the number of vector registers used (variadic functions look at it); RSP plus 8
is a multiple of 16 at the function's first instruction.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core.errors import AddressError

if TYPE_CHECKING:
    from rift_core.isa import Area, EntryState, RegisterAccess, ResultType

INTEGER_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
VECTOR_REGISTERS = ("xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7")
_MASK = (1 << 64) - 1
_put_word = struct.Struct("<Q").pack_into


def place_arguments(registers: dict[str, int], state: EntryState, stack: Area, return_address: int) -> None:
    """Put arguments and return address where the function expects them; adds to ``registers``.

    Integers are passed on as wide as they come: a caller that sign-extends serves functions that rely on it.

    :raises AddressError: the stack has no room for them.
    """
    integers = floats = 0
    rest: list[int] | None = None
    for argument in state.arguments:
        if argument.kind == "integer":
            if integers < 6:
                registers[INTEGER_REGISTERS[integers]] = argument.value & _MASK
                integers += 1
                continue
        elif floats < 8:
            registers[VECTOR_REGISTERS[floats]] = argument.value & _MASK
            floats += 1
            continue
        if rest is None:
            rest = []
        rest.append(argument.value & _MASK)
    registers["rax"] = floats
    offset = state.stack - stack.virtual - 8
    if rest is not None:
        offset = ((state.stack - stack.virtual - 8 * len(rest)) & ~15) - 8
    if not 0 <= offset <= stack.host.nbytes - 8:
        raise AddressError(
            f"the stack {stack.virtual:#x}-{stack.end:#x} has no room for a call with {len(state.arguments)} arguments"
        )
    _put_word(stack.host, offset, return_address)
    registers["rsp"] = stack.virtual + offset
    if rest is not None:
        struct.pack_into(f"<{len(rest)}Q", stack.host, offset + 8, *rest)


def read_result(value: int, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
    """The result of a function that returned with ``value`` in RAX."""
    if kind.kind == "void":
        return None
    if kind.kind == "float":
        bits = vcpu.read_registers(("xmm0",))["xmm0"]
        if kind.size == 4:
            return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF_FFFF))[0])
        return float(struct.unpack("<d", struct.pack("<Q", bits & _MASK))[0])
    bits = kind.size * 8
    value &= (1 << bits) - 1
    if kind.signed and value >> (bits - 1):
        value -= 1 << bits
    return value
