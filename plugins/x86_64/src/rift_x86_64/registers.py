"""The register table: the only place where the registers of this ISA are listed.

Names are the manuals', lower case; a part of a segment or table register follows a dot. The bindings of
all backends use the same names. ``{segment}.attributes`` is the 16-bit access-rights word of VMX (SDM volume
3, "Format of Access Rights"): type in bits 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; the value 0
stands for an unusable segment. ``ftag`` is the full x87 tag word of FSTENV (two bits a register).
"""

from __future__ import annotations

from rift_core.isa import Register

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
SEGMENT_PARTS = (("selector", 16), ("base", 64), ("limit", 32), ("attributes", 16))

_CONTROL = {
    "cr0": "protection, paging, write protection",
    "cr2": "address of the last page fault",
    "cr3": "root of the page tables",
    "cr4": "enabled extensions",
    "cr8": "task priority",
    "efer": "long mode, SYSCALL, no-execute",
    "xcr0": "state components that XSAVE manages",
}
_MSRS = {
    "star": "selectors of SYSCALL and SYSRET",
    "lstar": "entry point of SYSCALL",
    "cstar": "entry point of SYSCALL in compatibility mode",
    "sfmask": "RFLAGS bits that SYSCALL clears",
    "kernel_gs_base": "the other GS base of SWAPGS",
    "tsc": "time-stamp counter",
    "pat": "memory types of page-table entries",
    "sysenter_cs": "code selector of SYSENTER",
    "sysenter_esp": "stack pointer of SYSENTER",
    "sysenter_eip": "entry point of SYSENTER",
    "apic_base": "where the local APIC stands",
}
_FPU_CONTROL = (("fctrl", 16), ("fstat", 16), ("ftag", 16), ("fop", 16))
_FPU_POINTERS = (("fioff", 32), ("fiseg", 16), ("fooff", 32), ("foseg", 16))


def _table() -> tuple[Register, ...]:
    rows = [Register(name, 64, "general") for name in GENERAL]
    rows += [Register("rip", 64, "general", "program counter"), Register("rflags", 64, "flags")]
    rows += [Register(f"{segment}.{part}", bits, "segment") for segment in SEGMENTS for part, bits in SEGMENT_PARTS]
    for table in ("gdtr", "idtr"):
        rows += [Register(f"{table}.base", 64, "segment"), Register(f"{table}.limit", 16, "segment")]
    rows += [Register(name, 64, "control", summary) for name, summary in _CONTROL.items()]
    rows += [Register(name, 64, "msr", summary) for name, summary in _MSRS.items()]
    rows += [Register(f"xmm{number}", 128, "vector") for number in range(16)]
    rows += [Register(f"ymm{number}", 256, "vector", "its low half is XMM") for number in range(16)]
    rows.append(Register("mxcsr", 32, "vector", "SSE rounding, masks and flags"))
    rows += [Register(f"st{number}", 80, "fpu") for number in range(8)]
    rows += [Register(name, bits, "fpu") for name, bits in (*_FPU_CONTROL, *_FPU_POINTERS)]
    rows += [Register(f"dr{number}", 64, "debug", "breakpoint address") for number in range(4)]
    rows += [Register("dr6", 64, "debug", "what happened"), Register("dr7", 64, "debug", "what is watched")]
    return tuple(rows)


REGISTERS = _table()
