"""The register table: the only place where the registers of this ISA are listed.

Names are the manuals', lower case; a part of a segment or table register follows a dot. The bindings of
all backends use the same names. ``{segment}.attributes`` is the 16-bit access-rights word of VMX (SDM volume
3, "Format of Access Rights"): type in bits 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; the value 0
stands for an unusable segment. ``ftag`` is the full x87 tag word of FSTENV (two bits a register).

What debuggers see is named and ordered as GDB demands (i386 features of its target descriptions); for system
registers the names are those that QEMU uses, so that scripts carry over.
"""

from __future__ import annotations

from rift_core.isa import Register
from rift_core.isa_debug import DebugView, ViewType
from rift_x86_64 import bits

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")
SEGMENT_PARTS = (("selector", 16), ("base", 64), ("limit", 32), ("attributes", 16))

_CORE = "org.gnu.gdb.i386.core"
_SSE = "org.gnu.gdb.i386.sse"
_AVX = "org.gnu.gdb.i386.avx"
_SEGMENTS = "org.gnu.gdb.i386.segments"
_SYSTEM = "org.rift.x86-64.system"

_ROLES = {"rsp": "sp", "rbp": "fp", "rdi": "arg1", "rsi": "arg2", "rdx": "arg3", "rcx": "arg4", "r8": "arg5",
          "r9": "arg6"}  # fmt: skip
_POINTERS = ("rbp", "rsp")

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
    "kernel_gs_base": "the other GS base of SWAPGS",
    "star": "selectors of SYSCALL and SYSRET",
    "lstar": "entry point of SYSCALL",
    "cstar": "entry point of SYSCALL in compatibility mode",
    "sfmask": "RFLAGS bits that SYSCALL clears",
    "tsc": "time-stamp counter",
    "pat": "memory types of page-table entries",
    "sysenter_cs": "code selector of SYSENTER",
    "sysenter_esp": "stack pointer of SYSENTER",
    "sysenter_eip": "entry point of SYSENTER",
    "apic_base": "where the local APIC stands",
}
_FPU_CONTROL = (
    ("fctrl", 16, "x87 control word"),
    ("fstat", 16, "x87 status word"),
    ("ftag", 16, "x87 tag word"),
    ("fiseg", 16, "selector of the last x87 instruction"),
    ("fioff", 32, "its offset"),
    ("foseg", 16, "selector of its operand"),
    ("fooff", 32, "the operand's offset"),
    ("fop", 16, "its opcode"),
)
_SELECTORS = {"cs": "code segment; its two low bits are the privilege level", "tr": "task state segment",
              "ldtr": "local descriptor table"}  # fmt: skip
_FIELDS = {"cr0": bits.CR0, "cr4": bits.CR4, "efer": bits.EFER, "xcr0": bits.XCR0, "dr6": bits.DR6, "dr7": bits.DR7}
_DEBUGGERS_NAMES = {"kernel_gs_base": "k_gs_base"}


def _general(name: str) -> Register:
    kind: ViewType = "data_ptr" if name in _POINTERS else "int"
    return Register(name, 64, "general", debug=DebugView(_CORE, name, 64, kind, role=_ROLES.get(name, "")))


def _segment(segment: str, part: str, width: int) -> Register:
    view = None
    if part == "selector":
        table = segment in ("tr", "ldtr")
        view = DebugView(_SYSTEM if table else _CORE, segment, 32, group="system" if table else "general")
    elif part == "base" and segment in ("fs", "gs"):
        view = DebugView(_SEGMENTS, f"{segment}_base", 64, group="system")
    elif part == "base" and segment in ("tr", "ldtr"):
        view = DebugView(_SYSTEM, f"{segment}_base", 64, group="system")
    summary = _SELECTORS.get(segment, "") if part == "selector" else ""
    return Register(f"{segment}.{part}", width, "segment", summary, view)


def _system(name: str, width: int, group: str, summary: str = "") -> Register:
    fields = _FIELDS.get(name, ())
    shown = _DEBUGGERS_NAMES.get(name, name.replace(".", "_"))
    also = name if shown != name and "." not in name else ""
    view = DebugView(
        _SYSTEM, shown, max(width, 32), "flags" if fields else "int", "system", also, fields=fields, moves=name == "tsc"
    )
    return Register(name, width, group, summary, view)


def _table() -> tuple[Register, ...]:
    rows = [_general(name) for name in GENERAL]
    rows.append(Register("rip", 64, "general", "program counter", DebugView(_CORE, "rip", 64, "code_ptr", role="pc")))
    flags = DebugView(_CORE, "eflags", 32, "flags", also="rflags", role="flags", fields=bits.RFLAGS)
    rows.append(Register("rflags", 64, "flags", "conditions, interrupts, single step", flags))
    rows += [_segment(segment, part, width) for segment in SEGMENTS for part, width in SEGMENT_PARTS]
    rows += [Register(f"st{n}", 80, "fpu", debug=DebugView(_CORE, f"st{n}", 80, "x87", "float")) for n in range(8)]
    rows += [
        Register(name, width, "fpu", summary, DebugView(_CORE, name, 32, group="float"))
        for name, width, summary in _FPU_CONTROL
    ]
    rows += [
        Register(f"xmm{n}", 128, "vector", debug=DebugView(_SSE, f"xmm{n}", 128, "vector", "vector")) for n in range(16)
    ]
    mxcsr = DebugView(_SSE, "mxcsr", 32, "flags", "vector", fields=bits.MXCSR)
    rows.append(Register("mxcsr", 32, "vector", "SSE rounding, masks and flags", mxcsr))
    rows += [
        Register(
            f"ymm{n}", 256, "vector", "its low half is XMM", DebugView(_AVX, f"ymm{n}h", 128, group="vector", shift=128)
        )
        for n in range(16)
    ]
    for table in ("gdtr", "idtr"):
        rows += [_system(f"{table}.base", 64, "segment"), _system(f"{table}.limit", 16, "segment")]
    rows += [_system(name, 64, "control", summary) for name, summary in _CONTROL.items()]
    rows += [_system(name, 64, "msr", summary) for name, summary in _MSRS.items()]
    rows += [_system(f"dr{number}", 64, "debug", "breakpoint address") for number in range(4)]
    rows += [_system("dr6", 64, "debug", "what happened"), _system("dr7", 64, "debug", "what is watched")]
    return tuple(rows)


REGISTERS = _table()
