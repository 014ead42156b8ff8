"""How a guest thread starts: EL1h or EL0, MMU and caches on, floating point and vectors usable.

Arm ARM, "AArch64 System Register Descriptions"; AAPCS64 for the state that compiled code expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_aarch64.paging import MAIR_VALUE
from rift_aarch64.registers import GENERAL
from rift_core.isa import AreaRequest
from rift_core.memory import Permission

if TYPE_CHECKING:
    from rift_aarch64.paging import Geometry
    from rift_core.isa import Privilege

PSTATE_MODE = 0xF
EL0T, EL1T, EL1H = 0b0000, 0b0100, 0b0101
PSTATE_D, PSTATE_I, PSTATE_F = 1 << 9, 1 << 7, 1 << 6
_MASKED = PSTATE_D | PSTATE_I | PSTATE_F  # SError stays open: it is an error to report
PSTATE = {"supervisor": EL1H | _MASKED, "user": EL0T | _MASKED}

SCTLR_M, SCTLR_C, SCTLR_SA, SCTLR_SA0, SCTLR_I = (1 << bit for bit in (0, 2, 3, 4, 12))
SCTLR_ITD, SCTLR_SED = 1 << 7, 1 << 8  # 1 where EL0 has no AArch32
SCTLR_DZE, SCTLR_UCT, SCTLR_NTWE, SCTLR_UCI = (1 << bit for bit in (14, 15, 18, 26))
_SCTLR_RES1 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11
"""LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS: 1 in Armv8.0, and what 8.0 did in later versions."""

SCTLR = (
    _SCTLR_RES1 | SCTLR_M | SCTLR_C | SCTLR_I | SCTLR_SA | SCTLR_SA0 | SCTLR_ITD | SCTLR_SED
    | SCTLR_DZE | SCTLR_UCT | SCTLR_NTWE | SCTLR_UCI
)  # fmt: skip
"""User mode may zero and maintain cache lines, and WFE; it may not WFI, nor touch interrupt masks."""

CPACR_FPEN = 3 << 20
"""Neither EL1 nor EL0 trap floating point and vectors."""

SUPERVISOR_MARK = {"supervisor": 1, "user": 0}
"""TPIDRRO_EL0, which EL0 can read and not write: no other register tells it its own exception level. The guest
runtime goes by it."""

CNTKCTL_EL0VCTEN = 1 << 1
"""User mode may read the virtual counter."""

TCR_HA, TCR_HD = 1 << 39, 1 << 40
_TCR_SIZES = 16 | 16 << 16  # T0SZ, T1SZ: 48 bits
_TCR_WALKS = (1 << 8 | 1 << 10 | 3 << 12) * 0x1_0001  # of tables: write-back, inner shareable, both halves
_TCR_GRANULE = {0x1000: 0b00 << 14 | 0b10 << 30, 0x4000: 0b10 << 14 | 0b01 << 30}  # TG0 and TG1 differ

CODE_AREA = "code"
USER_CODE_AREA = "user-code"
KERNEL_STACK_AREA = "kernel-stack"
STACK_AREA = "stack"  # core's
_KERNEL_STACK_SIZE = 0x4000
_CODE = Permission.READ | Permission.EXECUTE


def tcr(geometry: Geometry) -> int:
    """TCR_EL1 for page tables of that geometry."""
    value = _TCR_SIZES | _TCR_WALKS | _TCR_GRANULE[geometry.page] | geometry.physical_range << 32
    if geometry.hardware_access:
        value |= TCR_HA
    if geometry.hardware_dirty:
        value |= TCR_HD
    return value


def fixed_registers(geometry: Geometry) -> dict[str, int]:
    """What is the same for every thread of a machine."""
    registers = dict.fromkeys(GENERAL, 0)
    registers.update(
        {
            "fpsr": 0,
            "fpcr": 0,
            "sctlr_el1": SCTLR,
            "cpacr_el1": CPACR_FPEN,
            "tcr_el1": tcr(geometry),
            "mair_el1": MAIR_VALUE,
            "cntkctl_el1": CNTKCTL_EL0VCTEN,
            "mdscr_el1": 0,
            "contextidr_el1": 0,
            "tpidr_el0": 0,
            "tpidr_el1": 0,
            "esr_el1": 0,
            "far_el1": 0,
            "elr_el1": 0,
            "spsr_el1": 0,
        }
    )
    return registers


def system_areas(page: int) -> tuple[AreaRequest, ...]:
    """Code pages."""
    return AreaRequest(CODE_AREA, page, _CODE), AreaRequest(USER_CODE_AREA, page, _CODE | Permission.USER)


def thread_areas(page: int, privilege: Privilege) -> tuple[AreaRequest, ...]:
    """For a user thread, the stack of a payload's own vectors (SP_EL1); the built-in ones need none."""
    if privilege == "supervisor":
        return ()
    size = max(page, _KERNEL_STACK_SIZE)
    return (AreaRequest(KERNEL_STACK_AREA, size, Permission.READ | Permission.WRITE),)
