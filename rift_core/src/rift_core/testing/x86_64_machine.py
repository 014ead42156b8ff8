"""A bare x86-64 machine for tests of supervisor-mode behaviour: its own page tables and descriptors, byte by byte.

One VM, one vCPU, 4 MiB of memory at guest-physical 0, virtual the same, in 4 KiB pages. Each vector's handler halts,
so that the exit tells which exception came, and RSP points at its frame; when the guest goes on it returns with IRETQ.
Formats: Intel SDM volume 3, 3.4.5 (segment descriptors), 4.5 (paging), 6.14.1 (64-bit IDT), 7.7 (64-bit TSS).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from rift_core.exits import Exit, ExitKind
from rift_core.testing.bare_machine import BareMachine

PML4, PDPT, PD, PT0, PT1 = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
GDT, TSS, IDT, STUBS = 0x6000, 0x6800, 0x7000, 0x8000
CODE, DATA = 0x1_0000, 0x1_4000
STACK, INTERRUPT_STACK = 0x1_8000, 0x1_A000  # where they end
USER_CODE, USER_DATA, USER_STACK = 0x2_0000, 0x2_4000, 0x2_8000
SYSCALL_CODE = 0x1_C000
PLAYGROUND = 0x20_0000
"""Where tests put entries into PT1 themselves; nothing is mapped there."""

DEVICE = 0x1F_C000
"""Mapped, and no memory behind: four pages."""

DEVICE_GPA = 0x1000_0000

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
NO_EXECUTE = 1 << 63

CR0, CR0_WP = 0x8005_0033, 1 << 16  # PG, AM, WP, NE, ET, MP, PE
CR4 = 0x6A0  # OSXMMEXCPT, OSFXSR, PGE, PAE
CR4_SMEP, CR4_SMAP = 1 << 20, 1 << 21
EFER = 0xD01  # NXE, LMA, LME, SCE
EFER_NXE = 1 << 11

KERNEL_CODE, KERNEL_DATA, USER_DATA_SELECTOR, USER_CODE_SELECTOR, TASK = 0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28
_DESCRIPTORS = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)
_ERROR_CODES = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_STUB = 8

FLAG_TF, FLAG_IF, FLAG_DF, FLAG_RF = 0x100, 0x200, 0x400, 0x1_0000


class Frame(NamedTuple):
    """What the CPU pushed: ``code`` is None where the vector has none."""

    vector: int
    code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


class Machine(BareMachine):
    """The machine. ``vcpu`` belongs to the thread that made it."""

    isa = "x86_64"

    # -- memory ----------------------------------------------------------------------------------

    def map(self, address: int, physical: int, flags: int) -> None:
        """The 4 KiB page at ``address``, below 4 MiB."""
        self.put64(self.entry(address), physical | flags)

    @staticmethod
    def entry(address: int) -> int:
        """Where the page-table entry of a page below 4 MiB stands."""
        return (PT1 if address >= PLAYGROUND else PT0) + (address >> 12 & 511) * 8

    def gate(
        self, vector: int, target: int, *, ist: int = 0, dpl: int = 0, present: bool = True, kind: int = 0xE
    ) -> None:
        """An IDT entry; the default is an interrupt gate."""
        low = target & 0xFFFF | KERNEL_CODE << 16 | ist << 32 | (kind | dpl << 5 | present << 7) << 40
        self.put(IDT + 16 * vector, struct.pack("<QQ", low | (target >> 16 & 0xFFFF) << 48, target >> 32))

    def build(self) -> None:
        """Identity-mapped pages, and a handler for each vector."""
        flags = PRESENT | WRITABLE | USER
        for table, entry in ((PML4, PDPT), (PDPT, PD), (PD, PT0), (PD + 8, PT1)):
            self.put64(table, entry | flags)
        for page in range(0, PLAYGROUND, 0x1000):
            self.map(page, page, PRESENT | WRITABLE)
        for page in range(USER_CODE, USER_STACK, 0x1000):
            self.map(page, page, flags)
        for number in range(4):
            self.map(DEVICE + 0x1000 * number, DEVICE_GPA + 0x1000 * number, PRESENT | WRITABLE | NO_EXECUTE)
        task = 0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16
        self.put(GDT, struct.pack("<7Q", *_DESCRIPTORS, task, 0))
        self.put64(TSS + 4, STACK)
        self.put64(TSS + 36, INTERRUPT_STACK)
        self.put(TSS + 0x66, struct.pack("<H", 0x68))
        for vector in range(256):
            drop = b"\x48\x83\xc4\x08" if vector in _ERROR_CODES else b""  # add rsp, 8
            self.put(STUBS + _STUB * vector, b"\xf4" + drop + b"\x48\xcf")  # hlt ... iretq
            self.gate(vector, STUBS + _STUB * vector)

    # -- running ---------------------------------------------------------------------------------

    def start(self, code: bytes, *, user: bool = False, **registers: int) -> None:
        """Be about to run ``code``, in ring 0 or 3."""
        place = USER_CODE if user else CODE
        self.put(place, code)
        dpl = 0x60 if user else 0
        selectors = (USER_CODE_SELECTOR, USER_DATA_SELECTOR) if user else (KERNEL_CODE, KERNEL_DATA)
        values = dict.fromkeys(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16))), 0)
        values |= {"rip": place, "rsp": USER_STACK if user else STACK - 0x800, "rflags": 2}
        values |= {"cr0": CR0, "cr2": 0, "cr3": PML4, "cr4": CR4, "efer": EFER}
        segments = {"cs": (selectors[0], 0xA09B | dpl)}
        segments |= dict.fromkeys(("ss", "ds", "es", "fs", "gs"), (selectors[1], 49299 | dpl))
        for name, (selector, attributes) in segments.items():
            values |= {f"{name}.selector": selector, f"{name}.base": 0, f"{name}.limit": 0xFFFF_FFFF}
            values[f"{name}.attributes"] = attributes
        values |= {"tr.selector": TASK, "tr.base": TSS, "tr.limit": 0x67, "tr.attributes": 0x8B}
        values |= {"ldtr.selector": 0, "ldtr.attributes": 0, "gdtr.base": GDT, "gdtr.limit": 55}
        values |= {"idtr.base": IDT, "idtr.limit": 0xFFF}
        values.update({name.replace("__", "."): value for name, value in registers.items()})
        self.vcpu.write_registers(values)

    def frame(self, exit: Exit) -> Frame:
        """The exception whose handler has halted.

        :raises AssertionError: the exit is another one.
        """
        rip, rsp = self.vcpu.read_registers(["rip", "rsp"]).values()
        at, rest = divmod(rip - STUBS - 1, _STUB)
        assert exit.kind is ExitKind.HALT, f"{exit} at {rip:#x}"
        assert 0 <= at < 256 and rest == 0, f"the guest halts at {rip:#x}"  # noqa: PT018
        code = None
        if at in _ERROR_CODES:
            code = self.get(rsp)
            rsp += 8
        return Frame(at, code, *(self.get(rsp + 8 * number) for number in range(5)))

    def fault(self, code: bytes, *, user: bool = False, **registers: int) -> Frame:
        """Run ``code`` to its exception."""
        self.start(code, user=user, **registers)
        return self.frame(self.go())

    def halt(self, exit: Exit, at: int) -> None:
        """The exit must be the HLT at an address."""
        rip = self.register("rip")
        assert (exit.kind, rip) == (ExitKind.HALT, at + 1), f"{exit}, halted at {rip - 1:#x}, not {at:#x}"

    def finish(self, code: bytes, **registers: int) -> None:
        """Run ``code`` and a HLT behind it, in ring 0."""
        self.start(code + b"\xf4", user=False, **registers)
        self.halt(self.go(), CODE + len(code))
