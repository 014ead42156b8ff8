"""How a guest thread starts: long mode, its own descriptor tables and exception stacks, vector units usable.

SDM volume 3, "Initializing IA-32e Mode", "SYSCALL and SYSRET", "Control Registers"; psABI 3.2.3 for the state
that compiled code expects (direction flag clear, x87 and MXCSR at their defaults).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.isa import AreaRequest
from rift_core.memory import Permission
from rift_x86_64 import descriptors
from rift_x86_64.builtin_code import CODE_SIZE, USER_CODE_SIZE
from rift_x86_64.paging import PAT_VALUE
from rift_x86_64.registers import GENERAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.backend import CpuFeatures
    from rift_core.isa import Area, Privilege

CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_PG = (1 << bit for bit in (0, 1, 4, 5, 16, 31))
CR4_PAE, CR4_PGE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP = (
    1 << bit for bit in (5, 7, 9, 10, 18, 20, 21)
)
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = (1 << bit for bit in (0, 8, 10, 11))

CR0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
EFER = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
RFLAGS = 0x2
"""Bit 1 is always set; interrupts are off, IOPL is 0, the direction flag is clear."""

SYSCALL_MASK = 0x4_7700
"""RFLAGS bits that SYSCALL clears: TF, IF, DF, IOPL, NT, AC."""

MXCSR = 0x1F80
X87_CONTROL = 0x037F
XCR0_X87 = 1

CODE_AREA = "code"
USER_CODE_AREA = "user-code"
TABLES_AREA = "descriptor-tables"
KERNEL_STACK_AREA = "kernel-stack"
STACK_AREA = "stack"  # core's
INTERRUPT_STACK_AREAS = ("double-fault-stack", "nmi-stack", "machine-check-stack")

_TABLES_SIZE = 0x2000  # the IDT, then GDT and TSS in one page
_KERNEL_STACK_SIZE = 0x2000
_INTERRUPT_STACK_SIZE = 0x1000
_DATA = Permission.READ | Permission.WRITE
_CODE = Permission.READ | Permission.EXECUTE

SYSTEM_AREAS = (
    AreaRequest(CODE_AREA, CODE_SIZE, _CODE),
    AreaRequest(USER_CODE_AREA, USER_CODE_SIZE, _CODE | Permission.USER),
)
THREAD_AREAS = (
    AreaRequest(TABLES_AREA, _TABLES_SIZE, _DATA),
    AreaRequest(KERNEL_STACK_AREA, _KERNEL_STACK_SIZE, _DATA),
    *(AreaRequest(name, _INTERRUPT_STACK_SIZE, _DATA) for name in INTERRUPT_STACK_AREAS),
)
"""The same at either privilege: a supervisor thread may enter user mode by itself, and then needs RSP0."""

_KERNEL_SEGMENTS = {
    "cs": (descriptors.KERNEL_CODE, descriptors.KERNEL_CODE_ATTRIBUTES),
    "ss": (descriptors.KERNEL_DATA, descriptors.KERNEL_DATA_ATTRIBUTES),
}
_USER_SEGMENTS = {
    "cs": (descriptors.USER_CODE, descriptors.USER_CODE_ATTRIBUTES),
    "ss": (descriptors.USER_DATA, descriptors.USER_DATA_ATTRIBUTES),
}


def _flat(segments: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    registers = {}
    for name, (selector, attributes) in segments.items():
        registers[f"{name}.selector"] = selector
        registers[f"{name}.base"] = 0
        registers[f"{name}.limit"] = descriptors.FLAT_LIMIT
        registers[f"{name}.attributes"] = attributes
    return registers


CODE_AND_STACK_SEGMENTS = {"supervisor": _flat(_KERNEL_SEGMENTS), "user": _flat(_USER_SEGMENTS)}
"""CS and SS, which set the privilege level, by privilege."""

_DATA_SEGMENTS = _flat(
    dict.fromkeys(("ds", "es", "fs", "gs"), (descriptors.USER_DATA, descriptors.USER_DATA_ATTRIBUTES))
)  # DPL 3 serves both levels: 64-bit code does not check it


def cr4(features: CpuFeatures, smap: bool) -> int:
    """CR4 for a CPU with ``features``."""
    value = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT
    if features.xcr0:
        value |= CR4_OSXSAVE
    if "smep" in features.names:
        value |= CR4_SMEP
    if smap and "smap" in features.names:
        value |= CR4_SMAP
    return value


_fixed: dict[tuple[int, int], dict[str, int]] = {}


def fixed_registers(features: CpuFeatures, smap: bool) -> dict[str, int]:
    """What is the same for every thread of a machine; not to be changed."""
    key = (cr4(features, smap), features.xcr0)
    known = _fixed.get(key)
    if known is None:
        known = _fixed[key] = _fixed_registers(*key)
    return known


def _fixed_registers(cr4_value: int, xcr0: int) -> dict[str, int]:
    registers = dict.fromkeys(GENERAL, 0)
    registers["rflags"] = RFLAGS
    registers.update(_DATA_SEGMENTS)
    registers["ldtr.selector"] = registers["ldtr.base"] = registers["ldtr.limit"] = 0
    registers["ldtr.attributes"] = descriptors.UNUSABLE
    registers.update({"cr0": CR0, "cr2": 0, "cr4": cr4_value, "cr8": 0, "efer": EFER})
    if xcr0:
        registers["xcr0"] = xcr0 | XCR0_X87
    registers.update(
        {
            "pat": PAT_VALUE,
            "star": descriptors.STAR,
            "sfmask": SYSCALL_MASK,
            "kernel_gs_base": 0,
            "mxcsr": MXCSR,
            "fctrl": X87_CONTROL,
        }
    )
    return registers


def install_tables(areas: Mapping[str, Area], idt: bytes) -> dict[str, int]:
    """Fill a thread's descriptor tables; return the registers that point at them.

    The CPU aligns RSP to 16 bytes on entry to a handler, and all stacks here end at a page boundary.
    """
    tables = areas[TABLES_AREA]
    first, second, third = (areas[name].end for name in INTERRUPT_STACK_AREAS)
    idt_size = descriptors.IDT_SIZE
    gdt_address = tables.virtual + idt_size
    task = gdt_address + descriptors.TSS_OFFSET
    tables.host[:idt_size] = idt
    tables.host[idt_size : idt_size + descriptors.GDT_SIZE] = descriptors.gdt(task)
    at = idt_size + descriptors.TSS_OFFSET
    tables.host[at : at + descriptors.TSS_SIZE] = descriptors.tss(areas[KERNEL_STACK_AREA].end, (first, second, third))
    return {
        "idtr.base": tables.virtual,
        "idtr.limit": descriptors.IDT_LIMIT,
        "gdtr.base": gdt_address,
        "gdtr.limit": descriptors.GDT_LIMIT,
        "tr.selector": descriptors.TASK,
        "tr.base": task,
        "tr.limit": descriptors.TSS_LIMIT,
        "tr.attributes": descriptors.TASK_ATTRIBUTES,
    }


def areas_of(privilege: Privilege) -> tuple[AreaRequest, ...]:
    """Areas that a thread of ``privilege`` needs beside its stack."""
    del privilege  # either level can be reached from the other
    return THREAD_AREAS
