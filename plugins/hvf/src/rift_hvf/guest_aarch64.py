"""The AArch64 guest of the experiments: EL1 with its MMU off, so that addresses are physical and EL0 may use all.

A guest is at its end when it stores to :data:`DONE`, where no memory is; an exception stores to :data:`FAULTS`.
Instruction encodings: Arm ARM, chapter C6.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError
from rift_core.exits import Exit, ExitKind
from rift_hvf.measure import READ_ONLY, Laboratory, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VECTORS, CODE, DATA, STACK = 0x0, 0x1_0000, 0x1_8000, 0x1_C000
"""Vectors: 16 entries of 128 bytes; entry n stores to FAULTS + 8 * n."""

DONE, FAULTS = 0x40_0000, 0x40_0100
EL0T, EL1H = 0x3C0, 0x3C5  # PSTATE: D, A, I and F masked
_SCTLR = 0x30D0_0980  # the bits that are 1 where no feature gives them a meaning: MMU and caches off
_CPACR_FPEN = 3 << 20  # floating point and vectors do not trap
_NOP, _WFI, _BRK, _HVC, _SPIN = 0xD503_201F, 0xD503_207F, 0xD420_0000, 0xD400_0002, 0x1400_0000
_UNMASK_IRQ = 0xD503_42FF
_STORE_DONE = 0xF900_035F  # str xzr, [x26]
_STORE_DATA = 0xF900_0001  # str x1, [x0]
_READ_UNKNOWN = 0xD53F_BFE0  # mrs x0, s3_7_c11_c15_7: implementation defined
UNKNOWN_REGISTER = 3 << 14 | 7 << 11 | 11 << 7 | 15 << 3 | 7

ID_REGISTERS = (
    "midr_el1", "id_aa64pfr0_el1", "id_aa64pfr1_el1", "id_aa64dfr0_el1", "id_aa64isar0_el1", "id_aa64isar1_el1",
    "id_aa64isar2_el1", "id_aa64mmfr0_el1", "id_aa64mmfr1_el1", "id_aa64mmfr2_el1", "ctr_el0",
)  # fmt: skip

_ABSENT = 0xF
"""Value of fields that are signed, or say so, where the feature is missing."""

_FEATURES: dict[str, tuple[str, int, int]] = {
    "aes": ("id_aa64isar0_el1", 4, 1),
    "sha1": ("id_aa64isar0_el1", 8, 1),
    "sha2": ("id_aa64isar0_el1", 12, 1),
    "crc32": ("id_aa64isar0_el1", 16, 1),
    "atomics": ("id_aa64isar0_el1", 20, 2),
    "dotprod": ("id_aa64isar0_el1", 44, 1),
    "fp": ("id_aa64pfr0_el1", 16, 0),
    "asimd": ("id_aa64pfr0_el1", 20, 0),
    "bti": ("id_aa64pfr1_el1", 0, 1),
    "access_flag": ("id_aa64mmfr1_el1", 0, 1),
    "dirty_state": ("id_aa64mmfr1_el1", 0, 2),
    "pan": ("id_aa64mmfr1_el1", 20, 1),
    "xnx": ("id_aa64mmfr1_el1", 28, 1),
}
"""Feature -> register, lowest bit of its field of four bits, smallest value that means it (Arm ARM, D19.2)."""

_GRANULES: tuple[tuple[int, frozenset[int], tuple[int, ...]], ...] = (
    (28, frozenset({0, 1}), (0x1000, 0x20_0000, 0x4000_0000)),
    (20, frozenset({1, 2}), (0x4000, 0x200_0000)),
    (24, frozenset({0}), (0x1_0000, 0x2000_0000)),
)
"""Field of ID_AA64MMFR0_EL1, values that mean the granule, its page and block sizes (Arm ARM, D19.2.64 and D8.2)."""


def code(*instructions: int) -> bytes:
    """Machine code."""
    return struct.pack(f"<{len(instructions)}I", *instructions)


class Aarch64Guest:
    """See ``rift_hvf.measure.Guest``."""

    code = CODE
    program_counter = "pc"

    def __init__(self) -> None:
        self.capabilities = CAPABILITIES

    def fill(self, memory: memoryview) -> None:
        """Vectors: str xzr, [x27, 8 * entry]; b ."""
        for entry in range(16):
            struct.pack_into("<2I", memory, VECTORS + 0x80 * entry, 0xF900_037F | entry << 10, _SPIN)

    def registers(self) -> dict[str, int]:
        """EL1, in front of the code."""
        return {
            "x0": DATA, "x1": 0, "x26": DONE, "x27": FAULTS, "pstate": EL1H, "pc": CODE, "sp": STACK,
            "vbar_el1": VECTORS, "sctlr_el1": _SCTLR, "cpacr_el1": _CPACR_FPEN, "mdscr_el1": 0,
        }  # fmt: skip

    def halts(self, laboratory: Laboratory, exit: Exit | None, address: int) -> bool:
        """Whether the store at ``address`` ended it."""
        return exit is not None and exit.kind is ExitKind.MMIO and exit.address == DONE

    def end(self) -> bytes:
        """A store to DONE."""
        return code(_STORE_DONE, _SPIN)

    def cpu(self, laboratory: Laboratory) -> Measured:
        """What the guest's identification registers say."""
        identity: dict[str, int] = {}
        for name in ID_REGISTERS:
            try:
                identity[name] = laboratory.register(name)
            except HypervisorError:  # of a later version of the framework
                continue
        return Measured(_names(identity), frozenset(), _page_sizes(identity), 0, identity)


def _names(identity: Mapping[str, int]) -> frozenset[str]:
    fields = {
        name: (identity[register] >> lowest & 0xF, least)
        for name, (register, lowest, least) in _FEATURES.items()
        if register in identity
    }
    return frozenset(name for name, (value, least) in fields.items() if least <= value < _ABSENT)


def _page_sizes(identity: Mapping[str, int]) -> tuple[int, ...]:
    register = identity.get("id_aa64mmfr0_el1", 0)
    found = [sizes for lowest, values, sizes in _GRANULES if register >> lowest & 0xF in values]
    return tuple(sorted(size for sizes in found for size in sizes))


def _vectors(laboratory: Laboratory) -> bool:
    # movi v0.4s, 1; add v0.4s, v0.4s, v0.4s; str q0, [x0]
    runs = laboratory.runs(code(0x4F00_0420, 0x4EA0_8400, 0x3D80_0000))
    return runs and laboratory.memory[DATA : DATA + 16] == b"\2\0\0\0" * 4


def _inject(laboratory: Laboratory) -> bool:
    """An undefined instruction's exception arrives at the vector for EL1 with its own stack pointer."""
    laboratory.prepare(code(_NOP))
    laboratory.vcpu.inject_exception(0)
    exit = laboratory.go_on()
    return exit is not None and exit.kind is ExitKind.MMIO and exit.address == FAULTS + 8 * 4


def _interrupt(laboratory: Laboratory) -> bool:
    """An IRQ that was injected while it was masked arrives when it is not: msr daifclr, 2; b ."""
    laboratory.prepare(code(_UNMASK_IRQ, _SPIN))
    laboratory.vcpu.inject_interrupt(0)
    exit = laboratory.go_on()
    return exit is not None and exit.kind is ExitKind.MMIO and exit.address == FAULTS + 8 * 5


def _read_only(laboratory: Laboratory) -> bool:
    return laboratory.is_read_only(code(_STORE_DATA), 0x1234, 8, x0=READ_ONLY, x1=0x1234)


def _register_exit(laboratory: Laboratory) -> bool:
    exit = laboratory.attempt(code(_READ_UNKNOWN))
    return exit is not None and exit.kind is ExitKind.SYSTEM_REGISTER and exit.address == UNKNOWN_REGISTER


def _hypercall(laboratory: Laboratory) -> bool:
    exit = laboratory.attempt(code(_HVC), x0=0x77)
    return exit is not None and exit.kind is ExitKind.HYPERCALL and exit.address == 0x77


def _halt(laboratory: Laboratory) -> bool:
    exit = laboratory.attempt(code(_WFI))
    return exit is not None and exit.kind is ExitKind.HALT and laboratory.pc() == CODE + 4


def _debug(instructions: bytes, what: int, at: int, user: bool, **choice: object) -> Callable[[Laboratory], bool]:
    """A DEBUG exit of kind ``what`` (``rift_abi.h``) with PC at ``at`` bytes of the code."""

    def experiment(laboratory: Laboratory) -> bool:
        laboratory.prepare(instructions, pstate=EL0T if user else EL1H)
        laboratory.vcpu.set_debug(**choice)  # type: ignore[arg-type]
        exit = laboratory.go_on()
        stopped = exit is not None and exit.kind is ExitKind.DEBUG and exit.info[0] == what
        return stopped and laboratory.pc() == CODE + at

    return experiment


CAPABILITIES: dict[str, Callable[[Laboratory], bool]] = {
    "vector_supervisor": _vectors,
    "inject_exception": _inject,
    "inject_interrupt": _interrupt,
    "readonly_memory": _read_only,
    "user_msr_exit": _register_exit,
    "hypercall_exit": _hypercall,
    "halt_exit": _halt,
}
for _suffix, _user in (("", False), ("_user", True)):
    CAPABILITIES |= {
        f"debug_single_step{_suffix}": _debug(code(_NOP, _NOP), 1, 4, _user, single_step=True),
        f"debug_hw_breakpoint{_suffix}": _debug(code(_NOP, _NOP, _NOP), 3, 8, _user, breakpoints=(CODE + 8,)),
        f"debug_sw_breakpoint{_suffix}": _debug(code(_NOP, _BRK), 2, 4, _user, software=True),
        f"debug_watchpoint{_suffix}": _debug(
            code(_NOP, _STORE_DATA), 4, 4, _user, watchpoints=(Watchpoint(DATA, 8, "write"),)
        ),
    }
