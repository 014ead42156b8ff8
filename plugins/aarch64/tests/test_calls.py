"""The calling convention of AAPCS64, and user calls."""

from __future__ import annotations

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
    return struct.unpack(f"<{count}Q", guest.read_virtual(registers["sp"], 8 * count))


def test_eight_integers_take_the_short_way(guest: Any) -> None:
    registers = call(guest, integers(*range(1, 9)))
    assert registers == {
        "pc": 0x40_1000, "pstate": 0x2C5, "sp": guest.areas["stack"].end, "x30": guest.system.return_address,
        "x0": 1, "x1": 2, "x2": 3, "x3": 4, "x4": 5, "x5": 6, "x6": 7, "x7": 8,
    }  # fmt: skip


@pytest.mark.parametrize("count", range(14))
def test_the_stack_is_aligned_at_entry(guest: Any, count: int) -> None:
    registers = call(guest, integers(*range(100, 100 + count)))
    assert registers["sp"] % 16 == 0
    rest = tuple(range(108, 100 + count))
    assert stack_words(guest, registers, len(rest)) == rest


def test_floats_and_integers_are_counted_apart(guest: Any) -> None:
    mixed = []
    for number in range(10):
        mixed += [Argument("integer", 8, number), double(number + 0.5)]
    registers = call(guest, tuple(mixed))
    for number in range(8):
        assert registers[f"x{number}"] == number
        assert struct.unpack("<d", registers[f"v{number}"].to_bytes(8, "little"))[0] == number + 0.5
    # What is left goes to the stack in the order of the arguments.
    assert stack_words(guest, registers, 4) == tuple(argument.value for argument in mixed[16:])


def test_apples_variant_packs_the_stack(guest: Any) -> None:
    registers_full = (*integers(*range(8)), *(double(number) for number in range(8)))
    rest = (
        Argument("integer", 1, 0x11), Argument("integer", 2, 0xFFFF_FFFF_FFFF_FFFE), Argument("integer", 1, 0x33),
        Argument("float", 4, 0x3FC0_0000), Argument("integer", 8, 0x44), Argument("integer", 4, 0x55),
        Argument("float", 8, 0x66),
    )  # fmt: skip
    state = guest.state((*registers_full, *rest))._replace(abi="apple")
    registers = guest.isa.call_registers(guest.system, guest.areas, state)
    assert registers["sp"] % 16 == 0
    assert struct.unpack("<BxHBxxxIxxxxQIxxxxQ", guest.read_virtual(registers["sp"], 40)) == (
        0x11, 0xFFFE, 0x33, 0x3FC0_0000, 0x44, 0x55, 0x66,
    )  # fmt: skip
    assert guest.isa.call_registers(guest.system, guest.areas, state._replace(abi=""))["sp"] == registers["sp"] - 16


def test_narrow_and_negative_values(guest: Any) -> None:
    registers = call(
        guest, (Argument("integer", 4, (1 << 64) - 5), Argument("integer", 1, 0xFF), Argument("float", 4, 0x3FC00000))
    )
    assert (registers["x0"], registers["x1"], registers["v0"]) == ((1 << 64) - 5, 0xFF, 0x3FC00000)


def test_user_functions_return_through_a_user_call(guest: Any) -> None:
    registers = call(guest, integers(1), "user")
    assert registers["x30"] == guest.system_areas["user-code"].virtual
    assert registers["pstate"] & 0xF == 0
    assert registers["x0"] == 1


def test_a_stack_without_room_is_refused(guest: Any) -> None:
    with pytest.raises(AddressError, match="no room for a call with 3000 arguments"):
        call(guest, integers(*range(3000)))


def test_float_results(guest: Any, make_registers: Any) -> None:
    exit = Exit(ExitKind.MMIO, 0x7000_0800, 8, 1, True)
    noise = 0xDEAD << 64
    bits = struct.unpack("<Q", struct.pack("<d", -2.5))[0]
    assert guest.isa.result(exit, make_registers({"v0": bits | noise}), ResultType("float", 8)) == -2.5
    bits = struct.unpack("<I", struct.pack("<f", 0.25))[0]
    assert guest.isa.result(exit, make_registers({"v0": bits | noise}), ResultType("float", 4)) == 0.25


def test_user_calls(guest: Any, make_registers: Any) -> None:
    registers = make_registers({f"x{number}": 0x10 + number for number in range(9)})
    exit = Exit(ExitKind.MMIO, 0x7000_0810, 8, 0x18, True)
    made = guest.isa.read_user_call(registers, guest, exit)
    assert (made.kind, made.address, made.info) == (ExitKind.USER_CALL, 0x18, (0x10, 0x11, 0x12, 0x13, 0x14, 0x15))
    guest.isa.finish_user_call(registers, guest, exit, -38)
    assert registers.values["x0"] == (1 << 64) - 38
    assert registers.values["x1"] == 0x11
