"""Tiny EL1 guests: what the probe runs to learn what this KVM can do.

Everything lies in 128 KiB at guest-physical 0; the MMU is off, so that addresses are physical and EL0 may use all of
it. A guest is at its end when it stores to :data:`DONE`, where no memory is; an exception stores to :data:`FAULTS`.
Instruction encodings: Arm ARM, chapter C6.
"""

from __future__ import annotations

import mmap
import struct

VECTORS = 0x0
"""2 KiB-aligned: 16 entries of 128 bytes; entry n stores to FAULTS + 8 * n."""
CODE = 0x1_0000
DATA = 0x1_8000
STACK = 0x1_C000
SIZE = 0x2_0000

DONE = 0x20_0000
FAULTS = 0x20_0100

EL0T, EL1H = 0x3C0, 0x3C5  # PSTATE: D, A, I and F masked
_SCTLR = 0x30D0_0980  # the bits that are 1 where no feature gives them a meaning: MMU and caches off
_CPACR_FPEN = 3 << 20  # floating point and vectors do not trap

NOP = 0xD503_201F
WFI = 0xD503_207F
BRK = 0xD420_0000
HVC = 0xD400_0002
STORE_DONE = 0xF900_035F  # str xzr, [x26]
SPIN = 0x1400_0000  # b .


def code(*instructions: int) -> bytes:
    """Machine code."""
    return struct.pack(f"<{len(instructions)}I", *instructions)


class Guest:
    """Memory of a probe guest; :meth:`registers` starts it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.reset()

    def reset(self) -> None:
        """Fresh vectors."""
        self.memory[:] = bytes(SIZE)
        for entry in range(16):
            # str xzr, [x27, 8 * entry]; b .
            self.store(VECTORS + 0x80 * entry, code(0xF900_037F | entry << 10, SPIN))

    def store(self, address: int, data: bytes) -> None:
        """Put bytes into the guest."""
        self.memory[address : address + len(data)] = data

    def registers(self, *, user: bool = False) -> dict[str, int]:
        """At :data:`CODE`, in EL1 or EL0; x0 is the address of :data:`DATA`."""
        return {
            "x0": DATA,
            "x26": DONE,
            "x27": FAULTS,
            "pstate": EL0T if user else EL1H,
            "pc": CODE,
            "sp": STACK,
            "vbar_el1": VECTORS,
            "sctlr_el1": _SCTLR,
            "cpacr_el1": _CPACR_FPEN,
            "mdscr_el1": 0,
        }
