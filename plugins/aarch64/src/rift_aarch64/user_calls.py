"""System calls from user mode by SVC: number in X8, arguments in X0 to X5, the result in X0. Nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.exits import Exit, ExitKind

if TYPE_CHECKING:
    from rift_core.isa import RegisterAccess

NUMBER = "x8"
ARGUMENTS = ("x0", "x1", "x2", "x3", "x4", "x5")
RESULT = "x0"
_NUMBER_AND_ARGUMENTS = (NUMBER, *ARGUMENTS)


def read_call(vcpu: RegisterAccess) -> Exit:
    """The USER_CALL exit."""
    values = vcpu.read_registers(_NUMBER_AND_ARGUMENTS)
    return Exit(ExitKind.USER_CALL, values[NUMBER], info=tuple([values[name] for name in ARGUMENTS]))


def finish_call(vcpu: RegisterAccess, value: int) -> None:
    """Answer with ``value``; the next entry returns to the caller."""
    vcpu.write_registers({RESULT: value & 0xFFFF_FFFF_FFFF_FFFF})
