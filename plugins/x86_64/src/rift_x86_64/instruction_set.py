"""The ISA object: :class:`rift_core.isa.Isa` for x86-64, one for each machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rift_core.isa import Privilege, SystemState
from rift_core.memory import Gva
from rift_core.memory import Mapping as GuestMapping
from rift_x86_64 import builtin_code, calls, entry, faults, paging, user_calls
from rift_x86_64.config import PAGE_SIZES
from rift_x86_64.debug import Debug
from rift_x86_64.registers import GENERAL, REGISTERS
from rift_x86_64.vectors import RUNTIME_SYMBOL, TABLE_SYMBOL, find_vector, make_idt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    from rift_x86_64.config import X86_64Config

_RSP_AND_RCX = ("rsp", "rcx")


@dataclass(frozen=True, slots=True)
class SystemCode:
    """Guest-virtual addresses of the ISA's own code: ``SystemState.data``."""

    vectors: int
    resume: int
    user_call: int
    user_return: int


class X86_64:  # noqa: N801 - the ISA's name
    """x86-64 for one machine.

    It remembers where the stacks of the machine's threads stand, so that a fault can be called a stack overflow,
    and a user call that arrives as a fault can be answered in its frame.
    """

    name = "x86_64"
    registers: tuple[Register, ...] = REGISTERS
    program_counter = "rip"
    stack_pointer = "rsp"
    frame_pointer = "rbp"
    general_registers: tuple[str, ...] = (*GENERAL, "rflags")
    virtual_ranges: tuple[range, ...] = (paging.LOWER_HALF, paging.UPPER_HALF)
    capstone = ("CS_ARCH_X86", "CS_MODE_64")
    keeps_accessed = True
    keeps_dirty = True
    default_vectors: tuple[str, ...] = (RUNTIME_SYMBOL, TABLE_SYMBOL)
    debug: IsaDebug | None = Debug()

    def __init__(self, config: X86_64Config, features: CpuFeatures) -> None:
        largest = PAGE_SIZES[config.largest_page]
        usable = tuple(size for size in paging.PAGE_SIZES if size in features.page_sizes and size <= largest)
        self.page_sizes: tuple[int, ...] = usable or (paging.SMALL_PAGE,)
        self._fixed = entry.fixed_registers(features, config.smap)
        self._guards: dict[int, str] = {}
        self._kernel_stacks: dict[int, Area] = {}
        self._code = SystemCode(0, 0, 0, 0)
        self._idts: dict[object, bytes] = {}

    def tables_size(self, mappings: Sequence[object]) -> int:
        """Bytes of page tables that ``mappings`` can take at most, the PML4 included."""
        wanted = [mapping for mapping in mappings if isinstance(mapping, GuestMapping)]
        return (1 + paging.tables_needed(wanted, self.page_sizes[-1])) * paging.SMALL_PAGE

    def system_areas(self) -> tuple[AreaRequest, ...]:
        """Two supervisor pages and one user page of code."""
        return entry.SYSTEM_AREAS

    def thread_areas(self, privilege: Privilege) -> tuple[AreaRequest, ...]:
        """Descriptor tables, the stack of RSP0, and those of IST1 to IST3."""
        return entry.areas_of(privilege)

    def install_system(self, areas: Mapping[str, Area], doorbell: Gva) -> SystemState:
        """Write the built-in code."""
        code, user_code = areas[entry.CODE_AREA], areas[entry.USER_CODE_AREA]
        code.host[:] = builtin_code.supervisor_code(doorbell)
        user_code.host[: len(builtin_code.USER_CODE)] = builtin_code.USER_CODE
        self._code = SystemCode(
            vectors=code.virtual,
            resume=code.virtual + builtin_code.RESUME_OFFSET,
            user_call=code.virtual + builtin_code.USER_CALL_OFFSET,
            user_return=user_code.virtual,
        )
        return SystemState(areas, doorbell, Gva(code.virtual + builtin_code.RETURN_OFFSET), self._code)

    def thread_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """Fill the thread's areas; return the registers that a fresh vCPU starts with.

        XMM registers, x87 registers and debug registers are those of a fresh vCPU, unless an argument uses them.

        :raises BinaryError: the layout of ``state.vectors`` is not understood.
        :raises AddressError: the stack has no room for the arguments.
        """
        code = cast("SystemCode", system.data)
        result = dict(self._fixed)
        result.update(entry.install_tables(areas, self._idt(state, code)))
        result["cr3"] = state.root
        result["lstar"] = code.user_call
        result.update(self.call_registers(system, areas, state))
        result.update(entry.CODE_AND_STACK_SEGMENTS[state.privilege])
        if state.privilege == "supervisor":
            # Where the machine also has user threads, the image that both run is mapped for user mode.
            result["cr4"] &= ~(entry.CR4_SMEP | entry.CR4_SMAP)
        self._remember(areas)
        return result

    def call_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """The few registers that start one more call after the last one has returned.

        :raises AddressError: the stack has no room for the arguments.
        """
        result: dict[str, int] = {"rip": state.entry, "rflags": entry.RFLAGS}
        return_address: int = system.return_address
        if state.privilege == "user":  # the last call ended in supervisor mode
            result.update(entry.CODE_AND_STACK_SEGMENTS["user"])
            return_address = cast("SystemCode", system.data).user_return
        calls.place_arguments(result, state, areas[entry.STACK_AREA], return_address)
        return result

    def result(self, exit: Exit, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
        """The value of the function that has just returned: RAX, which the exit carries, or XMM0."""
        return calls.read_result(exit.value, vcpu, kind)

    def read_fault(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> GuestFault | None:
        """The exception whose frame RSP points at, or None if it is a SYSCALL that stayed in user mode.

        :raises AddressError: the frame cannot be read.
        """
        first = vcpu.read_registers(_RSP_AND_RCX)
        frame = user_calls.read_frame(reader, first["rsp"])
        if user_calls.is_disguised_call(frame, first["rcx"], self._code.user_call):
            return None
        return faults.describe(frame, vcpu.read_registers(faults.READ_AT_FAULT), reader, self._guards)

    def entered_exception(self, vcpu: RegisterAccess, reader: GuestReader) -> GuestFault | None:
        """The exception whose handler the guest has just entered, or None if it stands at no handler's start.

        For tracers, which see each instruction; only right behind the delivery.
        :raises AddressError: the descriptor table or the frame cannot be read.
        """
        first = vcpu.read_registers(("rip", "rsp", "idtr.base", "idtr.limit"))
        vector = find_vector(reader.read_virtual(first["idtr.base"], first["idtr.limit"] + 1), first["rip"])
        if vector is None:
            return None
        frame = user_calls.entry_frame(reader, first["rsp"], vector)
        return faults.describe(frame, vcpu.read_registers(faults.READ_AT_FAULT), reader, self._guards)

    def read_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> Exit:
        """The USER_CALL exit: RAX, and RDI, RSI, RDX, R10, R8, R9."""
        return user_calls.read_call(vcpu)

    def finish_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit, value: int) -> None:
        """Answer with ``value`` in RAX; the next entry returns to the caller.

        :raises AddressError: the guest has moved the stack of RSP0 away from where it was put.
        """
        if user_calls.came_by_fault(exit):
            user_calls.finish_disguised_call(vcpu, reader, self._kernel_stacks, self._code.resume, value)
        else:
            vcpu.write_registers({"rax": value & 0xFFFF_FFFF_FFFF_FFFF})

    def _idt(self, state: EntryState, code: SystemCode) -> bytes:
        """The IDT, made once for each set of vectors."""
        vectors = state.vectors
        key: object = None
        if vectors is not None:
            content = b"" if vectors.symbol == RUNTIME_SYMBOL else bytes(vectors.host[:0x1018])
            key = (vectors.symbol, vectors.address, vectors.host.nbytes, content)
        made = self._idts.get(key)
        if made is None:
            if len(self._idts) >= 16:  # a payload may change its table as often as it likes
                self._idts.clear()
            made = self._idts[key] = make_idt(vectors, code.vectors)
        return made

    def _remember(self, areas: Mapping[str, Area]) -> None:
        for name in (entry.STACK_AREA, entry.KERNEL_STACK_AREA, *entry.INTERRUPT_STACK_AREAS):
            area = areas[name]
            self._guards[area.virtual // paging.SMALL_PAGE - 1] = name
        stack = areas[entry.KERNEL_STACK_AREA]
        for page in range(stack.virtual // paging.SMALL_PAGE, stack.end // paging.SMALL_PAGE):
            self._kernel_stacks[page] = stack
