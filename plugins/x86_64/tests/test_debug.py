"""Breakpoints and steps as x86-64 tells them; what is common to all ISAs is in the conformance suite."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from rift_core.errors import AddressError
from rift_core.isa import GuestFault
from rift_x86_64.debug import Debug

TRAP_FLAG, SINGLE_STEP = 1 << 8, 1 << 14
KERNEL, USER = 0x08, 0x23


class Memory:
    """Bytes from 0x1000 on."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read_virtual(self, address: int, size: int) -> bytes:
        if not 0x1000 <= address <= 0x1000 + len(self.content) - size:
            raise AddressError(f"{address:#x} is not mapped")
        return bytes(self.content[address - 0x1000 : address - 0x1000 + size])

    def write_virtual(self, address: int, data: bytes) -> None:
        self.read_virtual(address, len(data))
        self.content[address - 0x1000 : address - 0x1000 + len(data)] = data


def fault(vector: int, pc: int = 0x2000) -> GuestFault:
    return GuestFault(vector, "", pc, 0x8000, None, None, "", False, {})


def test_a_breakpoint_is_told_at_its_instruction(make_registers: Any) -> None:
    event = Debug().debug_event(fault(3, 0x2001), make_registers())
    assert event is not None
    assert (event.kind, event.pc) == ("software", 0x2000)


@pytest.mark.parametrize(
    ("status", "control", "expected"),
    [
        (SINGLE_STEP, 0, ("step", 0x2000, 0)),
        (0b0010, 0b0010 << 4, ("hardware", 0x2000, 0)),
        (0b0100, 0b01 << 24, ("watchpoint", 0x2000, 0x5000)),
        (SINGLE_STEP | 1, 0b01 << 16, ("step", 0x2000, 0)),
        (0, 0, ("step", 0x2000, 0)),
    ],
)
def test_debug_exceptions_are_told_apart(
    make_registers: Any, status: int, control: int, expected: tuple[str, int, int]
) -> None:
    vcpu = make_registers({"dr2": 0x5000, "dr6": 0xFFFF_0FF0 | status, "dr7": control})
    event = Debug().debug_event(fault(1), vcpu)
    assert event is not None
    assert (event.kind, event.pc, event.address) == expected
    assert vcpu.values["dr6"] == 0xFFFF_0FF0, "the next one could not be told from it"


def test_other_exceptions_are_none(make_registers: Any) -> None:
    assert Debug().debug_event(fault(14), make_registers()) is None


@pytest.mark.parametrize(
    ("code", "event", "stands"),
    [
        (b"\x90\xcc\x90", 0x1001, 0x1002),  # INT3
        (b"\xcd\x03\x90", 0x1001, 0x1002),  # INT 3: the event is one byte behind its start
        (b"\xcc", 0x1000, 0x1001),  # nothing is mapped before it
        (b"\x90\x90\x90", 0x1001, None),
        (b"\x90\x03\x90", 0x1001, None),
    ],
)
def test_the_programs_own_breakpoints(code: bytes, event: int, stands: int | None) -> None:
    assert Debug().own_breakpoint(Memory(code), event) == stands


def test_stepping_by_exception(make_registers: Any) -> None:
    vcpu = make_registers({"rflags": 0x246})
    Debug().step_by_exception(vcpu, True)
    assert vcpu.values["rflags"] == 0x246 | TRAP_FLAG
    Debug().step_by_exception(vcpu, False)
    assert vcpu.values["rflags"] == 0x246


def stack_of(*words: int) -> Memory:
    """A page with these words at its beginning."""
    return Memory(struct.pack(f"<{len(words)}Q", *words).ljust(0x1000, b"\0"))


@pytest.mark.parametrize("pushed", [0, 1, 3, 40])
@pytest.mark.parametrize("selector", [KERNEL, USER])
def test_a_step_is_forgotten_in_the_frame(make_registers: Any, pushed: int, selector: int) -> None:
    """At the vector, or after the handler has pushed and called."""
    frame = [*range(pushed), 0x40_1000, selector, 0x202 | TRAP_FLAG, 0x9000, 0x10]
    memory = stack_of(*frame)
    Debug().forget_step(make_registers({"rsp": 0x1000}), memory, 0x40_1000)
    frame[pushed + 2] = 0x202
    assert memory.content == stack_of(*frame).content


def test_frames_of_exceptions_in_exceptions(make_registers: Any) -> None:
    one = [0x40_1000, KERNEL, 0x202 | TRAP_FLAG]
    memory = stack_of(*one, 7, *one)
    Debug().forget_step(make_registers({"rsp": 0x1000}), memory, 0x40_1000)
    assert memory.content == stack_of(0x40_1000, KERNEL, 0x202, 7, 0x40_1000, KERNEL, 0x202).content


def test_a_frame_at_the_end_of_what_is_mapped(make_registers: Any) -> None:
    memory = stack_of(*[0] * 509, 0x40_1000, KERNEL, TRAP_FLAG)
    Debug().forget_step(make_registers({"rsp": 0x1000}), memory, 0x40_1000)
    assert memory.content == stack_of(*[0] * 509, 0x40_1000, KERNEL, 0).content


def test_what_is_no_frame_is_left_alone(make_registers: Any) -> None:
    for words in (
        [0x40_2000, KERNEL, TRAP_FLAG],  # another instruction's
        [0x40_1000, 0x33, TRAP_FLAG],  # no code selector of Rift's
        [0x40_1000, KERNEL, 0x202],  # not stepped
        [0x40_1000 << 8, 0, KERNEL << 8, TRAP_FLAG << 8],  # across words
        [*[0] * 510, 0x40_1000, KERNEL],  # cut off
    ):
        memory = stack_of(*words)
        before = bytes(memory.content)
        Debug().forget_step(make_registers({"rsp": 0x1000}), memory, 0x40_1000)
        assert memory.content == before
    Debug().forget_step(make_registers({"rsp": 0xDEAD_0000}), Memory(b""), 0x40_1000)
