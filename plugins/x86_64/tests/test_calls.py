"""The calling convention: registers, stack, alignment, results."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from rift_core.errors import AddressError
from rift_core.exits import Exit, ExitKind
from rift_core.isa import Argument, ResultType
from rift_core.testing.isa_parts import double, integers


def call(guest: Any, arguments: tuple[Argument, ...], privilege: str = "supervisor") -> dict[str, int]:
    registers: dict[str, int] = guest.isa.call_registers(guest.system, guest.areas, guest.state(arguments, privilege))
    return registers


def stack_words(guest: Any, registers: dict[str, int], count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", guest.read_virtual(registers["rsp"], 8 * count))


def test_six_integers_take_the_short_way(guest: Any) -> None:
    registers = call(guest, integers(1, 2, 3, 4, 5, 6))
    assert registers == {
        "rip": 0x40_1000, "rflags": 2, "rsp": guest.areas["stack"].end - 8, "rax": 0,
        "rdi": 1, "rsi": 2, "rdx": 3, "rcx": 4, "r8": 5, "r9": 6,
    }  # fmt: skip
    assert stack_words(guest, registers, 1) == (guest.system.return_address,)


@pytest.mark.parametrize("count", range(12))
def test_the_stack_is_aligned_at_entry(guest: Any, count: int) -> None:
    registers = call(guest, integers(*range(100, 100 + count)))
    assert (registers["rsp"] + 8) % 16 == 0
    rest = tuple(range(106, 100 + count))
    assert stack_words(guest, registers, 1 + len(rest)) == (guest.system.return_address, *rest)


def test_floats_and_integers_are_counted_apart(guest: Any) -> None:
    mixed = []
    for number in range(10):
        mixed += [Argument("integer", 8, number), double(number + 0.5)]
    registers = call(guest, tuple(mixed))
    assert [registers[name] for name in ("rdi", "rsi", "rdx", "rcx", "r8", "r9")] == list(range(6))
    for number in range(8):
        assert struct.unpack("<d", registers[f"xmm{number}"].to_bytes(8, "little"))[0] == number + 0.5
    assert registers["rax"] == 8
    # What is left goes to the stack in the order of the arguments.
    left = [argument.value for argument in (mixed[12], mixed[14], mixed[16], mixed[17], mixed[18], mixed[19])]
    assert stack_words(guest, registers, 7)[1:] == tuple(left)


def test_narrow_and_negative_values(guest: Any) -> None:
    registers = call(
        guest, (Argument("integer", 4, (1 << 64) - 5), Argument("integer", 1, 0xFF), Argument("float", 4, 0x3FC00000))
    )
    assert registers["rdi"] == (1 << 64) - 5
    assert registers["rsi"] == 0xFF
    assert registers["xmm0"] == 0x3FC00000


def test_user_functions_return_through_a_user_call(guest: Any) -> None:
    registers = call(guest, integers(1), "user")
    assert stack_words(guest, registers, 1) == (guest.system_areas["user-code"].virtual,)
    assert registers["cs.selector"] & 3 == registers["ss.selector"] & 3 == 3
    assert registers["rdi"] == 1


def test_thread_registers_start_the_same_call(guest: Any) -> None:
    state = guest.state(integers(7, 8))
    registers = guest.isa.thread_registers(guest.system, guest.areas, state)
    assert (registers["rip"], registers["rdi"], registers["rsi"], registers["rdx"]) == (0x40_1000, 7, 8, 0)
    assert stack_words(guest, registers, 1) == (guest.system.return_address,)


def test_a_stack_without_room_is_refused(guest: Any) -> None:
    with pytest.raises(AddressError, match="no room for a call with 3000 arguments"):
        call(guest, integers(*range(3000)))


def test_float_results(guest: Any, make_registers: Any) -> None:
    exit = Exit(ExitKind.MMIO, 0x7000_0800, 8, 1, True)
    noise = 0xDEAD << 64
    bits = struct.unpack("<Q", struct.pack("<d", -2.5))[0]
    assert guest.isa.result(exit, make_registers({"xmm0": bits | noise}), ResultType("float", 8)) == -2.5
    bits = struct.unpack("<I", struct.pack("<f", 0.25))[0]
    assert guest.isa.result(exit, make_registers({"xmm0": bits | noise}), ResultType("float", 4)) == 0.25
    assert math.isnan(guest.isa.result(exit, make_registers({"xmm0": 0x7FF8 << 48}), ResultType("float", 8)))
