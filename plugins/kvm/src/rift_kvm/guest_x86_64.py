"""Tiny long-mode guests: what the probe runs to learn what this KVM can do.

Everything lies in 64 KiB at guest-physical 0, identity-mapped by one large page that both rings may use:
tables, descriptors, one HLT per exception vector (so that RIP tells which one arrived), code and stacks.
Layouts: Intel SDM volume 3, 3.4.5 (segment descriptors), 4.5 (paging), 6.14.1 (64-bit IDT), 7.7 (64-bit TSS).
"""

from __future__ import annotations

import mmap
import struct

PML5, PML4, PDPT, PD, GDT, TSS, IDT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x5800, 0x6000
STUBS = 0x7000
"""One HLT for each vector, 4 bytes apart."""
CODE = 0x8000
SYSCALL_CODE = 0x9000
"""Where LSTAR points: a HLT, which only ring 0 may execute."""
DATA = 0xA000
STACK = 0xC000
USER_STACK = 0xE000
SIZE = 0x10000

PRESENT, WRITABLE, USER, LARGE = 1, 2, 4, 0x80

CR0 = 0x8005_0033  # PG, AM, WP, NE, ET, MP, PE
CR4 = 0x6A0  # OSXMMEXCPT, OSFXSR, PGE, PAE, as far as every long-mode CPU has them
CR4_LA57, CR4_FSGSBASE, CR4_PCIDE = 1 << 12, 1 << 16, 1 << 17
CR4_OSXSAVE, CR4_SMEP, CR4_SMAP = 1 << 18, 1 << 20, 1 << 21
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11

KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, TSS_SELECTOR = 0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28
CODE_ATTRIBUTES, DATA_ATTRIBUTES, TSS_ATTRIBUTES = 0xA09B, 0xC093, 0x008B
_DPL3 = 0x60
_DESCRIPTORS = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)


class Guest:
    """Memory of a probe guest; :meth:`registers` starts it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.reset()

    def reset(self) -> None:
        """Fresh tables and descriptors."""
        self.memory[:] = bytes(SIZE)
        flags = PRESENT | WRITABLE | USER
        for table, entry in ((PML5, PML4 | flags), (PML4, PDPT | flags), (PDPT, PD | flags), (PD, LARGE | flags)):
            self.store(table, struct.pack("<Q", entry))
        tss = (0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16, 0)
        self.store(GDT, struct.pack("<7Q", *_DESCRIPTORS, *tss))
        # RSP0 at 4; the I/O map base at 0x66 lies beyond the limit: no port is open to ring 3.
        self.store(TSS + 4, struct.pack("<Q", STACK))
        self.store(TSS + 0x66, struct.pack("<H", 0x68))
        for vector in range(256):
            stub = STUBS + 4 * vector
            gate = (stub & 0xFFFF) | KERNEL_CODE << 16 | 0xEE00 << 32 | (stub >> 16 & 0xFFFF) << 48
            self.store(IDT + 16 * vector, struct.pack("<QQ", gate, 0))
            self.store(stub, b"\xf4")
        self.store(SYSCALL_CODE, b"\xf4")

    def store(self, address: int, data: bytes) -> None:
        """Put bytes into the guest."""
        self.memory[address : address + len(data)] = data

    def registers(self, *, user: bool = False, cr4: int = 0, efer: int = 0) -> dict[str, int]:
        """Long mode at :data:`CODE`, in ring 0 or 3, with further bits of CR4 and EFER."""
        dpl = _DPL3 if user else 0
        code, data = (USER_CODE, USER_DATA) if user else (KERNEL_CODE, KERNEL_DATA)
        values = {
            "rip": CODE,
            "rsp": USER_STACK if user else STACK,
            "rflags": 2,
            "rdi": DATA,
            "cr0": CR0,
            "cr3": PML5 if cr4 & CR4_LA57 else PML4,
            "cr4": CR4 | cr4,
            "efer": EFER_SCE | EFER_LME | EFER_LMA | efer,
            "cs.selector": code,
            "cs.base": 0,
            "cs.limit": 0xFFFF_FFFF,
            "cs.attributes": CODE_ATTRIBUTES | dpl,
            "tr.selector": TSS_SELECTOR,
            "tr.base": TSS,
            "tr.limit": 0x67,
            "tr.attributes": TSS_ATTRIBUTES,
            "ldtr.selector": 0,
            "ldtr.attributes": 0,
            "gdtr.base": GDT,
            "gdtr.limit": 8 * 7 - 1,
            "idtr.base": IDT,
            "idtr.limit": 0xFFF,
        }
        for name in ("ds", "es", "ss", "fs", "gs"):
            values[f"{name}.selector"] = data
            values[f"{name}.base"] = 0
            values[f"{name}.limit"] = 0xFFFF_FFFF
            values[f"{name}.attributes"] = DATA_ATTRIBUTES | dpl
        return values
