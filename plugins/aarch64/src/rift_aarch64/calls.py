"""Calling a C function and reading its result: AAPCS64, "Parameter passing" and "Result return".

The first eight integers go to X0 to X7, the first eight floating-point numbers to V0 to V7, everything else to the
stack in order; SP is a multiple of 16. An argument takes eight bytes there; where ``EntryState.abi`` is "apple", its
own size, at a multiple of that (Apple: "Writing ARM64 code for Apple platforms").
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core.errors import AddressError

if TYPE_CHECKING:
    from rift_core.isa import Area, Argument, EntryState, RegisterAccess, ResultType

INTEGER_REGISTERS = tuple(f"x{number}" for number in range(8))
VECTOR_REGISTERS = tuple(f"v{number}" for number in range(8))
_MASK = (1 << 64) - 1


def place_arguments(registers: dict[str, int], state: EntryState, stack: Area, return_address: int) -> None:
    """Put arguments and return address where the function expects them; adds to ``registers``.

    Integers are passed on as wide as they come: a caller that sign-extends serves functions that rely on it.

    :raises AddressError: the stack has no room for them.
    """
    integers = floats = 0
    rest: list[Argument] | None = None
    for argument in state.arguments:
        if argument.kind == "integer":
            if integers < 8:
                registers[INTEGER_REGISTERS[integers]] = argument.value & _MASK
                integers += 1
                continue
        elif floats < 8:
            registers[VECTOR_REGISTERS[floats]] = argument.value & _MASK
            floats += 1
            continue
        if rest is None:
            rest = []
        rest.append(argument)
    registers["x30"] = return_address
    offset = state.stack - stack.virtual
    if rest is not None:
        placed = _packed(rest) if state.abi == "apple" else b"".join([_bytes(argument, 8) for argument in rest])
        offset = (offset - len(placed)) & ~15
    if not 0 <= offset <= stack.host.nbytes:
        raise AddressError(
            f"the stack {stack.virtual:#x}-{stack.end:#x} has no room for a call with {len(state.arguments)} arguments"
        )
    registers["sp"] = stack.virtual + offset
    if rest is not None:
        stack.host[offset : offset + len(placed)] = placed


def _bytes(argument: Argument, size: int) -> bytes:
    return (argument.value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _packed(arguments: list[Argument]) -> bytes:
    """What lies on the stack, each argument aligned to its own size."""
    placed = bytearray()
    for argument in arguments:
        placed += bytes(-len(placed) % argument.size) + _bytes(argument, argument.size)
    return bytes(placed)


def read_result(value: int, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
    """The result of a function that returned with ``value`` in X0."""
    if kind.kind == "void":
        return None
    if kind.kind == "float":
        bits = vcpu.read_registers(("v0",))["v0"]
        if kind.size == 4:
            return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF_FFFF))[0])
        return float(struct.unpack("<d", struct.pack("<Q", bits & _MASK))[0])
    bits = kind.size * 8
    value &= (1 << bits) - 1
    if kind.signed and value >> (bits - 1):
        value -= 1 << bits
    return value
