"""The ISA object: :class:`rift_core.isa.Isa` for AArch64, one for each machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rift_aarch64 import builtin_code, calls, entry, faults, paging, user_calls
from rift_aarch64.debug import Debug
from rift_aarch64.registers import GENERAL, REGISTERS
from rift_aarch64.vectors import RUNTIME_SYMBOL, TABLE_SYMBOL, vector_base
from rift_core.isa import Privilege, SystemState
from rift_core.memory import Gva
from rift_core.memory import Mapping as GuestMapping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_aarch64.config import Aarch64Config
    from rift_core.backend import CpuFeatures
    from rift_core.exits import Exit
    from rift_core.isa import (
        Area,
        AreaRequest,
        EntryState,
        GuestFault,
        GuestReader,
        Register,
        RegisterAccess,
        ResultType,
    )
    from rift_core.isa_debug import IsaDebug


@dataclass(frozen=True, slots=True)
class SystemCode:
    """Guest-virtual addresses of the ISA's own code: ``SystemState.data``."""

    vectors: int
    user_return: int


class Aarch64:
    """AArch64 for one machine.

    It remembers where the stacks of the machine's threads stand, so that a fault can be called a stack overflow.
    """

    name = "aarch64"
    registers: tuple[Register, ...] = REGISTERS
    program_counter = "pc"
    stack_pointer = "sp"
    frame_pointer = "x29"
    general_registers: tuple[str, ...] = (*GENERAL, "sp", "pstate")
    virtual_ranges: tuple[range, ...] = (paging.LOWER_HALF, paging.UPPER_HALF)
    capstone = ("CS_ARCH_ARM64", "CS_MODE_ARM")
    default_vectors: tuple[str, ...] = (RUNTIME_SYMBOL, TABLE_SYMBOL)
    debug: IsaDebug | None = Debug()

    def __init__(self, config: Aarch64Config, features: CpuFeatures) -> None:
        """:raises ConfigError: the CPU does not have the granule."""
        self.geometry = paging.geometry(config, features)
        self.keeps_accessed = self.geometry.hardware_access
        self.keeps_dirty = self.geometry.hardware_dirty
        self.page_sizes: tuple[int, ...] = self.geometry.page_sizes
        self._fixed = entry.fixed_registers(self.geometry)
        self._guards: dict[int, str] = {}

    def tables_size(self, mappings: Sequence[object]) -> int:
        """Bytes of page tables that ``mappings`` can take at most, both top-level tables included."""
        wanted = [mapping for mapping in mappings if isinstance(mapping, GuestMapping)]
        return (2 + paging.tables_needed(self.geometry, wanted)) * self.geometry.page

    def system_areas(self) -> tuple[AreaRequest, ...]:
        """A supervisor page and a user page of code."""
        return entry.system_areas(self.geometry.page)

    def thread_areas(self, privilege: Privilege) -> tuple[AreaRequest, ...]:
        """A user thread's stack for EL1."""
        return entry.thread_areas(self.geometry.page, privilege)

    def install_system(self, areas: Mapping[str, Area], doorbell: Gva) -> SystemState:
        """Write the built-in code."""
        code, user_code = areas[entry.CODE_AREA], areas[entry.USER_CODE_AREA]
        code.host[:] = builtin_code.supervisor_code(doorbell, code.size)
        user_code.host[: len(builtin_code.USER_CODE)] = builtin_code.USER_CODE
        own = SystemCode(code.virtual, user_code.virtual)
        return SystemState(areas, doorbell, Gva(code.virtual + builtin_code.RETURN_OFFSET), own)

    def thread_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """The registers that a fresh vCPU starts with.

        Vector registers and the timer are those of a fresh vCPU, unless an argument uses them.

        :raises BinaryError: ``state.vectors`` cannot be a vector table.
        :raises AddressError: the stack has no room for the arguments.
        """
        code = cast("SystemCode", system.data)
        result = dict(self._fixed)
        result["ttbr0_el1"] = state.root
        result["ttbr1_el1"] = state.root + self.geometry.page
        result["tpidrro_el0"] = entry.SUPERVISOR_MARK[state.privilege]
        result["vbar_el1"] = vector_base(state.vectors, code.vectors)
        result.update(self.call_registers(system, areas, state))
        if state.privilege == "user":
            result["sp_el1"] = areas[entry.KERNEL_STACK_AREA].end
        else:
            result["sp_el0"] = 0  # the payload's own to use
        self._remember(areas)
        return result

    def call_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """The few registers that start one more call after the last one has returned.

        :raises AddressError: the stack has no room for the arguments.
        """
        result: dict[str, int] = {"pstate": entry.PSTATE[state.privilege], "pc": state.entry}
        return_address: int = system.return_address
        if state.privilege == "user":
            return_address = cast("SystemCode", system.data).user_return
        calls.place_arguments(result, state, areas[entry.STACK_AREA], return_address)
        return result

    def result(self, exit: Exit, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
        """The value of the function that has just returned: X0, which the exit carries, or V0."""
        return calls.read_result(exit.value, vcpu, kind)

    def read_fault(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> GuestFault | None:
        """The exception that the system registers tell of."""
        registers = vcpu.read_registers(faults.READ_AT_FAULT)
        return faults.describe(registers, reader, self._guards, self.geometry.page)

    def read_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> Exit:
        """The USER_CALL exit: X8, and X0 to X5."""
        return user_calls.read_call(vcpu)

    def finish_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit, value: int) -> None:
        """Answer with ``value`` in X0; the next entry returns to the caller."""
        user_calls.finish_call(vcpu, value)

    def _remember(self, areas: Mapping[str, Area]) -> None:
        for name in (entry.STACK_AREA, entry.KERNEL_STACK_AREA):
            if name in areas:
                self._guards[areas[name].virtual // self.geometry.page - 1] = name
