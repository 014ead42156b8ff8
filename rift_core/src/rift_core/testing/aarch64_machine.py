"""A bare AArch64 machine for tests of EL1 and EL0: its own page tables and vectors, entry by entry.

One VM, one vCPU, 4 MiB of memory at guest-physical 0, virtual the same, in 4 KiB pages of a 39-bit address space. The
handler of each vector waits for an interrupt, so that the exit tells which exception came; when the guest goes on it
returns with ERET. Formats: Arm ARM, D8.3 (descriptors), D19.2 (registers), D1.3.1.3 (vectors).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa
from rift_core.testing.bare_machine import BareMachine

TABLE1, TABLE2, TABLE3, TABLE3_UPPER = 0x1000, 0x2000, 0x3000, 0x4000
VECTORS, CODE, DATA, STACK, STACK0 = 0x8000, 0x1_0000, 0x1_4000, 0x1_8000, 0x1_9000
USER_CODE, USER_DATA, USER_STACK = 0x2_0000, 0x2_4000, 0x2_8000
PLAYGROUND = 0x20_0000
"""Where tests put entries into TABLE3_UPPER themselves; nothing is mapped there."""

DEVICE, DEVICE_GPA = 0x1F_C000, 0x1000_0000
"""Mapped, and no memory behind."""

VALID, PAGE, ACCESSED, INNER_SHAREABLE = 1, 3, 1 << 10, 3 << 8
NORMAL = PAGE | ACCESSED | INNER_SHAREABLE
AS_DEVICE = PAGE | ACCESSED | 1 << 2  # attribute 1
USER, READ_ONLY, PXN, UXN = 1 << 6, 1 << 7, 1 << 53, 1 << 54

SCTLR = 0x30D0_1805  # the bits that are 1 where no feature gives them a meaning; I, C, M
SCTLR_NTWI = 1 << 16
CPACR = 3 << 20
TCR = 25 | 25 << 16 | 1 << 23 | 2 << 30 | 3 << 12 | 1 << 10 | 1 << 8 | 2 << 32  # 39 bits below; no upper half; 40 bits
MAIR = 0x04FF
EL0T, EL1T, EL1H, MASKED = 0, 4, 5, 0x3C0
PSTATE_F, PSTATE_I, PSTATE_A = 0x40, 0x80, 0x100

WFI, ERET = 0xD503_207F, 0xD69F_03E0
NOP, SVC, BRK, UNDEFINED = 0xD503_201F, 0xD402_4681, 0xD420_00A0, 0  # svc #0x1234; brk #5; udf #0
LOAD, STORE = 0xF940_0020, 0xF900_0020  # ldr x0, [x1]; str x0, [x1]
BRANCH = 0xD61F_0020  # br x1
ADD, BRANCH_OVER = 0x9100_0400, 0x1400_0002  # add x0, x0, #1; b .+8
WRITE = 1 << 6  # ISS.WnR


class Frame(NamedTuple):
    """What the CPU left behind: ``offset`` of the vector, ESR_EL1.EC and ISS, and FAR, ELR and SPSR of EL1."""

    offset: int
    cls: int
    iss: int
    far: int
    elr: int
    spsr: int


def code(*instructions: int) -> bytes:
    """Machine code."""
    return struct.pack(f"<{len(instructions)}I", *instructions)


class Machine(BareMachine):
    """The machine. ``vcpu`` belongs to the thread that made it."""

    isa = "aarch64"

    # -- memory ----------------------------------------------------------------------------------

    def map(self, address: int, physical: int, flags: int) -> None:
        """The 4 KiB page at ``address``, below 4 MiB."""
        table = TABLE3_UPPER if address >= PLAYGROUND else TABLE3
        self.put64(table + (address >> 12 & 511) * 8, physical | flags)

    def build(self) -> None:
        """Identity-mapped pages, and a handler for each vector."""
        for table, entry in ((TABLE1, TABLE2), (TABLE2, TABLE3), (TABLE2 + 8, TABLE3_UPPER)):
            self.put64(table, entry | PAGE)
        for page in range(0, PLAYGROUND, 0x1000):
            self.map(page, page, NORMAL | UXN)
        for page in range(USER_CODE, USER_DATA, 0x1000):
            self.map(page, page, NORMAL | USER | READ_ONLY | PXN)
        for page in range(USER_DATA, USER_STACK, 0x1000):
            self.map(page, page, NORMAL | USER | PXN | UXN)
        self.map(DEVICE, DEVICE_GPA, AS_DEVICE | PXN | UXN)
        for entry in range(16):
            self.put(VECTORS + 0x80 * entry, code(WFI, ERET))

    # -- running ---------------------------------------------------------------------------------

    def start(self, *instructions: int, user: bool = False, **registers: int) -> None:
        """Be about to run them, in EL1 or EL0."""
        place = USER_CODE if user else CODE
        self.put(place, code(*instructions))
        self.vm.code_changed(Gpa(place), 4 * len(instructions))
        values = dict.fromkeys((f"x{n}" for n in range(31)), 0)
        values |= {"pc": place, "pstate": (EL0T if user else EL1H) | MASKED}
        values |= {"sp_el0": USER_STACK if user else STACK0, "sp_el1": STACK, "vbar_el1": VECTORS}
        values |= {"sctlr_el1": SCTLR, "tcr_el1": TCR, "mair_el1": MAIR, "ttbr0_el1": TABLE1, "ttbr1_el1": 0}
        values |= {"cpacr_el1": CPACR, "mdscr_el1": 0, "elr_el1": 0, "spsr_el1": 0, "esr_el1": 0, "far_el1": 0}
        self.vcpu.write_registers(values | registers)

    def frame(self, exit: Exit) -> Frame:
        """The exception whose handler waits.

        :raises AssertionError: the exit is another one.
        """
        names = ["pc", "esr_el1", "far_el1", "elr_el1", "spsr_el1"]
        pc, esr, far, elr, spsr = self.vcpu.read_registers(names).values()
        offset, rest = divmod(pc - 4 - VECTORS, 0x80)
        assert exit.kind is ExitKind.HALT, f"{exit} at {pc:#x}"
        assert 0 <= offset < 16 and rest == 0, f"the guest waits at {pc - 4:#x}"  # noqa: PT018
        return Frame(0x80 * offset, esr >> 26 & 0x3F, esr & 0x1FF_FFFF, far, elr, spsr)

    def fault(self, *instructions: int, user: bool = False, **registers: int) -> Frame:
        """Run to the exception."""
        self.start(*instructions, user=user, **registers)
        return self.frame(self.go())

    def finish(self, *instructions: int, **registers: int) -> None:
        """Run them and a WFI behind, in EL1."""
        self.start(*instructions, WFI, user=False, **registers)
        exit = self.go()
        pc = self.register("pc")
        end = CODE + 4 * len(instructions)
        assert (exit.kind, pc) == (ExitKind.HALT, end + 4), f"{exit}, waits at {pc - 4:#x}, not {end:#x}"
