"""Breakpoints and roots of tables as AArch64 tells them; what is common to all ISAs is in the conformance suite."""

from __future__ import annotations

from typing import Any

import pytest

from rift_aarch64.debug import Debug
from rift_core.errors import AddressError, UnsupportedError
from rift_core.isa import GuestFault
from rift_core.memory import Gva


class Memory:
    """One instruction at 0x1000."""

    def __init__(self, word: int) -> None:
        self.word = word

    def read_virtual(self, address: int, size: int) -> bytes:
        if (address, size) != (0x1000, 4):
            raise AddressError(f"{address:#x} is not mapped")
        return self.word.to_bytes(4, "little")

    def write_virtual(self, address: int, data: bytes) -> None:
        raise AddressError(f"{address:#x} is not mapped")


def fault(vector: int) -> GuestFault:
    return GuestFault(vector, "", 0x2000, 0x8000, 0x5000, None, "", False, {})


@pytest.mark.parametrize(
    ("vector", "kind", "address"),
    [
        (0x3C, "software", 0), (0x30, "hardware", 0), (0x31, "hardware", 0), (0x32, "step", 0), (0x33, "step", 0),
        (0x34, "watchpoint", 0x5000), (0x35, "watchpoint", 0x5000),
    ],
)  # fmt: skip
def test_debug_exceptions_are_told_apart(make_registers: Any, vector: int, kind: str, address: int) -> None:
    event = Debug().debug_event(fault(vector), make_registers())
    assert event is not None
    assert (event.kind, event.pc, event.address) == (kind, 0x2000, address)


@pytest.mark.parametrize("number", [0, 7, 0x3E8, 0xFFFF])
def test_the_programs_own_breakpoints(number: int) -> None:
    assert Debug().own_breakpoint(Memory(0xD420_0000 | number << 5), 0x1000) == 0x1000


@pytest.mark.parametrize("word", [0xD440_0000, 0xD420_0001, 0xD503_201F])
def test_other_instructions_are_none(word: int) -> None:
    """HLT, something undefined, NOP."""
    assert Debug().own_breakpoint(Memory(word), 0x1000) is None


def test_either_half_has_its_tables(make_registers: Any) -> None:
    vcpu = make_registers({"ttbr0_el1": 0x0012_0000_4000_0001, "ttbr1_el1": 0x5000_0000})
    assert Debug().table_root(vcpu, Gva(0x40_0000)) == 0x4000_0000
    assert Debug().table_root(vcpu, Gva(0xAB00_0000_0040_0000)) == 0x4000_0000, "with a tag"
    assert Debug().table_root(vcpu, Gva(0xFFFF_0000_0000_0000)) == 0x5000_0000


def test_no_guest_steps_itself(make_registers: Any) -> None:
    Debug().step_by_exception(make_registers(), False)
    with pytest.raises(UnsupportedError, match="hypervisor"):
        Debug().step_by_exception(make_registers(), True)
