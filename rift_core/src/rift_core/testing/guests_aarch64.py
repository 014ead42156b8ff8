"""Machine-code fragments for AArch64: see :mod:`rift_core.testing.guests`. Arm ARM, chapter C6.

The vector of a fault, and of an injected exception, is the exception class (ESR_EL1.EC); its code is the
instruction-specific syndrome (ESR_EL1.ISS).
"""

from __future__ import annotations

import struct
from types import MappingProxyType

from rift_core.testing.guests import DONE, Guests

ADDRESS, VALUE, COUNT, STATUS = 9, 10, 11, 12
"""Scratch registers."""

_WIDTHS = {1: 0x3900_0000, 2: 0x7900_0000, 4: 0xB900_0000, 8: 0xF900_0000}  # STRB, STRH, STR W, STR X; no offset
_LOAD = 0x0040_0000
_CURRENT_SP = 31


def _code(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


def _move(register: int, value: int) -> bytes:
    """MOVZ and three MOVK: always the same length."""
    first, *rest = [(value >> 16 * part & 0xFFFF) << 5 | register for part in range(4)]
    return _code(0xD280_0000 | first, *(0xF280_0000 | part << 21 | rest[part - 1] for part in (1, 2, 3)))


def _branch(instructions: int) -> int:
    """B to so many instructions from here."""
    return 0x1400_0000 | instructions & 0x3FF_FFFF


def _store(size: int, register: int) -> bytes:
    return _code(_WIDTHS[size] | ADDRESS << 5 | register)


def _system(instruction: int, number: int, register: int) -> int:
    """MRS or MSR; ``number`` is op0:op1:CRn:CRm:op2 in 16 bits, as in ``Exit.address``."""
    return instruction | (number & 0x7FFF) << 5 | register


class Aarch64Guests(Guests):
    """Scratch registers: X0, X9 to X12, and X0 to X8 of a user call."""

    isa = "aarch64"
    result = "x0"
    argument_registers = ("x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7")
    crash_registers = MappingProxyType({"vbar_el1": 0})  # without vectors a CPU faults for ever: it never shuts down
    invalid_vector = 0x00
    page_fault_vectors = frozenset({0x20, 0x21, 0x24, 0x25})  # instruction and data aborts, from EL0 and from EL1
    stack_fault_vector = 0x25
    injected = (0x25, 0x410)  # a data abort in EL1: external, FAR_EL1 is not valid
    system_register = 3 << 14 | 7 << 11 | 11 << 7 | 15 << 3 | 7  # S3_7_C11_C15_7: implementation defined
    has_ports = False

    def store(self, address: int, size: int, value: int) -> bytes:
        return _move(ADDRESS, address) + _move(VALUE, value) + _store(size, VALUE)

    def store_result(self, address: int) -> bytes:
        return _move(ADDRESS, address) + _store(8, 0)

    def load(self, address: int, size: int) -> bytes:
        return _move(ADDRESS, address) + _code(_WIDTHS[size] | _LOAD | ADDRESS << 5)

    def copy(self, source: int, target: int) -> bytes:
        return self.load(source, 8) + self.store_result(target)

    def forever(self, body: bytes) -> bytes:
        return body + _code(_branch(-(len(body) // 4)))

    def add(self, address: int, times: int) -> bytes:
        # again: ldxr value, [address]; add value, value, 1; stxr status, value, [address]; cbnz status, again;
        # subs count, count, 1; b.ne again: exclusives, because not every CPU has the atomic instructions
        return (
            _move(ADDRESS, address)
            + _move(COUNT, times)
            + _code(
                0xC85F_7C00 | ADDRESS << 5 | VALUE,
                0x9100_0400 | VALUE << 5 | VALUE,
                0xC800_7C00 | STATUS << 16 | ADDRESS << 5 | VALUE,
                0x3500_0000 | (-3 & 0x7_FFFF) << 5 | STATUS,
                0xF100_0400 | COUNT << 5 | COUNT,
                0x5400_0001 | (-5 & 0x7_FFFF) << 5,
            )
        )

    def wait_for(self, address: int, value: int) -> bytes:
        # again: ldar w10, [address]; cmp w10, w11; b.ne again
        return (
            _move(ADDRESS, address)
            + _move(COUNT, value)
            + _code(
                0x88DF_FC00 | ADDRESS << 5 | VALUE,
                0x6B00_001F | COUNT << 16 | VALUE << 5,
                0x5400_0001 | (-2 & 0x7_FFFF) << 5,
            )
        )

    def spin(self) -> bytes:
        return _code(_branch(0))

    def halt(self) -> bytes:
        return _code(0xD503_207F)  # wfi

    def invalid(self) -> bytes:
        return _code(0x0000_0000)  # udf #0

    def privileged(self) -> bytes:
        return _code(0xD538_2000, 0xD518_2000, 0xD503_3FDF)  # mrs x0, ttbr0_el1; msr ttbr0_el1, x0; isb

    def jump(self, address: int) -> bytes:
        return _move(ADDRESS, address) + _code(0xD61F_0000 | ADDRESS << 5)  # br

    def use_stack(self, address: int) -> bytes:
        # mov sp, address; str address, [sp, -16]!
        return _move(ADDRESS, address) + _code(
            0x9100_0000 | ADDRESS << 5 | _CURRENT_SP, 0xF800_0C00 | (-16 & 0x1FF) << 12 | _CURRENT_SP << 5 | ADDRESS
        )

    def nop(self) -> bytes:
        return _code(0xD503_201F)

    def breakpoint(self) -> bytes:
        return _code(0xD420_0000)  # brk #0

    def hypercall(self, number: int, arguments: tuple[int, ...]) -> bytes:
        # The SMC calling convention: function in X0, arguments in X1 to X6, result in X0
        moves = b"".join(_move(1 + register, value) for register, value in enumerate(arguments))
        return moves + _move(0, number) + _code(0xD400_0002)  # hvc #0

    def read_system_register(self, number: int) -> bytes:
        return _code(_system(0xD530_0000, number, 0))

    def write_system_register(self, number: int, value: int) -> bytes:
        return _move(VALUE, value) + _code(_system(0xD510_0000, number, VALUE))

    def user_call(self, number: int, arguments: tuple[int, ...]) -> bytes:
        # The convention of Linux, which rift_user_call has too: number in X8, arguments in X0 to X5, result in X0
        moves = b"".join(_move(register, value) for register, value in enumerate(arguments))
        return moves + _move(8, number) + _code(0xD400_0001)  # svc #0

    def port_read(self, port: int, size: int) -> bytes:
        raise NotImplementedError("AArch64 has no ports")

    def port_write(self, port: int, size: int, value: int) -> bytes:
        raise NotImplementedError("AArch64 has no ports")

    def port_write_string(self, port: int, address: int, count: int) -> bytes:
        raise NotImplementedError("AArch64 has no ports")

    def add_function(self) -> bytes:
        return _code(0x8B01_0000, 0xD65F_03C0)  # add x0, x0, x1; ret

    def end(self) -> bytes:
        return self.forever(self.store(DONE, 4, 0))
