"""The register table: the only place where the registers of this ISA are listed.

Names are the manual's, lower case (Arm ARM, "AArch64 System Register Descriptions"); the bindings of all backends use
the same names.
``pstate`` has the layout of SPSR_EL1. ``sp`` is the stack pointer in use: SP_EL0, or SP_EL1 where PSTATE says EL1h.
A batch that writes ``pstate`` as well means the one of the new ``pstate``; ``sp_el0`` and ``sp_el1`` name them plainly.

What debuggers see is named as GDB demands (its aarch64 features); system registers have the manual's names, upper case.
"""

from __future__ import annotations

from rift_aarch64 import bits
from rift_core.isa import Register
from rift_core.isa_debug import DebugView

GENERAL = tuple(f"x{number}" for number in range(31))
VECTORS = tuple(f"v{number}" for number in range(32))
STACK_POINTERS = ("sp_el0", "sp_el1")

_SYSTEM = {
    "sp_el0": "stack pointer of EL0, and of EL1t",
    "sp_el1": "stack pointer of EL1h",
    "sctlr_el1": "MMU, caches, alignment checks, what EL0 may do",
    "actlr_el1": "implementation defined",
    "cpacr_el1": "whether floating point and vectors trap",
    "ttbr0_el1": "root of the page tables of the lower half",
    "ttbr1_el1": "root of the page tables of the upper half",
    "tcr_el1": "sizes of the halves, granule, physical size, access flag management",
    "mair_el1": "memory types of page-table entries",
    "amair_el1": "implementation defined memory types",
    "vbar_el1": "exception vectors",
    "esr_el1": "syndrome of the last exception",
    "far_el1": "address of the last abort",
    "elr_el1": "where ERET goes",
    "spsr_el1": "PSTATE that ERET restores",
    "afsr0_el1": "implementation defined syndrome",
    "afsr1_el1": "implementation defined syndrome",
    "par_el1": "result of an address translation instruction",
    "tpidr_el0": "thread pointer of EL0",
    "tpidrro_el0": "thread pointer of EL0, written by EL1",
    "tpidr_el1": "thread pointer of EL1; Rift's vectors keep a register there",
    "contextidr_el1": "process identifier for debuggers",
    "csselr_el1": "which cache CCSIDR_EL1 describes",
    "mdscr_el1": "single step, breakpoints, watchpoints",
    "cntkctl_el1": "which counters and timers EL0 reaches",
    "cntv_ctl_el0": "virtual timer: enable, mask, status",
    "cntv_cval_el0": "virtual timer: when it fires",
    "cntvct_el0": "virtual counter",
}


_CORE = "org.gnu.gdb.aarch64.core"
_FPU = "org.gnu.gdb.aarch64.fpu"
_TLS = "org.gnu.gdb.aarch64.tls"
_EL1 = "org.rift.aarch64.el1"
_FIELDS = {
    "sctlr_el1": bits.SCTLR,
    "tcr_el1": bits.TCR,
    "esr_el1": bits.ESR,
    "cpacr_el1": bits.CPACR,
    "spsr_el1": bits.PSTATE,
}


def _general(number: int) -> Register:
    name = f"x{number}"
    role = f"arg{number + 1}" if number < 8 else {29: "fp", 30: "ra"}.get(number, "")
    return Register(name, 64, "general", debug=DebugView(_CORE, name, 64, role=role))


def _system(name: str, summary: str) -> Register:
    if name == "tpidr_el0":
        return Register(name, 64, "system", summary, DebugView(_TLS, "tpidr", 64, "data_ptr", "system"))
    fields = _FIELDS.get(name, ())
    moves = name in ("cntvct_el0", "cntv_ctl_el0")
    view = DebugView(_EL1, name.upper(), 64, "flags" if fields else "int", "system", fields=fields, moves=moves)
    return Register(name, 64, "system", summary, view)


def _table() -> tuple[Register, ...]:
    flags = DebugView(_CORE, "cpsr", 32, "flags", also="pstate", role="flags", fields=bits.PSTATE)
    rows = [_general(number) for number in range(31)]
    rows += [
        Register("sp", 64, "general", "stack pointer in use", DebugView(_CORE, "sp", 64, "data_ptr", role="sp")),
        Register("pc", 64, "general", "program counter", DebugView(_CORE, "pc", 64, "code_ptr", role="pc")),
        Register("pstate", 32, "flags", "condition flags, exception masks, exception level; GDB's cpsr", flags),
    ]
    rows += [Register(name, 128, "vector", debug=DebugView(_FPU, name, 128, "vector", "vector")) for name in VECTORS]
    fpsr = DebugView(_FPU, "fpsr", 32, "flags", "float", fields=bits.FPSR)
    fpcr = DebugView(_FPU, "fpcr", 32, "flags", "float", fields=bits.FPCR)
    rows += [
        Register("fpsr", 32, "vector", "floating-point flags", fpsr),
        Register("fpcr", 32, "vector", "floating-point control: rounding, traps", fpcr),
    ]
    rows += [_system(name, summary) for name, summary in _SYSTEM.items()]
    return tuple(rows)


REGISTERS = _table()
