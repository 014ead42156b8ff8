"""What debuggers need to know of an ISA: how they see its registers, and how it tells them what happened.

The register table (``Isa.registers``) is the only list: target descriptions, the layout of register packets, core
files and the documentation are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.isa import GuestFault, Privilege, RegisterAccess, SystemState
    from rift_core.memory import Gpa, Gva


class BitField(NamedTuple):
    """Bits ``first`` to ``last`` of a register, and their name in the manual."""

    name: str
    first: int
    last: int


ViewType = Literal["int", "code_ptr", "data_ptr", "float", "x87", "vector", "flags"]
"""``vector``: 128 bits as lanes of any width; ``flags``: bits with names; ``x87``: the extended format of 80 bits."""


@dataclass(frozen=True, slots=True)
class DebugView:
    """How debuggers see a register: a row of a target description.

    :param feature: the part of the description that it belongs to, such as ``org.gnu.gdb.i386.core``: GDB demands
        certain names in those it knows. The parts, and the registers in them, come in the table's order.
    :param name: the debuggers'.
    :param bits: as many of the register's, from bit ``shift`` on.
    :param group: ``general``, ``float``, ``vector`` or ``system``.
    :param also: another name, which LLDB takes as well.
    :param role: ``pc``, ``sp``, ``fp``, ``ra``, ``flags``, or ``arg1`` to ``arg8``.
    :param fields: of ``flags``; bits without a name are left out.
    :param moves: it goes on by itself, such as a clock: it is written only when it is named alone.
    """

    feature: str
    name: str
    bits: int
    type: ViewType = "int"
    group: str = "general"
    also: str = ""
    role: str = ""
    shift: int = 0
    fields: tuple[BitField, ...] = ()
    moves: bool = False


class Place(NamedTuple):
    """Where a vCPU stands."""

    pc: int
    sp: int
    privilege: Privilege


class DebugEvent(NamedTuple):
    """What a debug exception says. ``pc`` is where the guest goes on; at a breakpoint instruction, its address."""

    kind: Literal["step", "software", "hardware", "watchpoint"]
    pc: int
    address: int = 0  # of the data, at a watchpoint


class CoreNote(NamedTuple):
    """A note of an ELF core file: a set of registers."""

    owner: str
    kind: int
    content: bytes


class GuestAccess(Protocol):
    """Guest memory through the machine's page tables."""

    def read_virtual(self, address: int, size: int) -> bytes:
        """:raises AddressError: not mapped."""

    def write_virtual(self, address: int, data: bytes) -> None:
        """:raises AddressError: not mapped."""


class IsaDebug(Protocol):
    """The part of an ISA that debuggers use (``Isa.debug``)."""

    architecture: str  # GDB's name: "i386:x86-64"
    triple: str  # LLDB's; never one of Linux, or it looks for Linux's loader
    breakpoint: bytes  # the breakpoint instruction
    exception_return: bytes  # the instruction that leaves an exception handler
    watch_is_late: bool  # a watchpoint stops behind the instruction, rather than before it
    core_machine: int  # e_machine of ELF files

    def place(self, vcpu: RegisterAccess) -> Place:
        """Where the vCPU stands."""

    def table_root(self, vcpu: RegisterAccess, virtual: Gva) -> Gpa:
        """The page tables that translate ``virtual`` for this vCPU."""

    def debug_event(self, fault: GuestFault, vcpu: RegisterAccess) -> DebugEvent | None:
        """The debug exception that reached the guest's own vectors, or None if ``fault`` is none of these.

        What the CPU has noted of it is cleared, so that the next one can be told from it.
        """

    def own_breakpoint(self, memory: GuestAccess, address: int) -> int | None:
        """Where a thread stands that a breakpoint instruction of the program's own, in any form, has stopped.

        :param address: what the event of it says: the address of the instruction if it has the debuggers' form.
        :returns: behind the instruction, or at it where debuggers of the ISA expect that; None if there is none.
        """

    def signal(self, fault: GuestFault) -> str:
        """The signal that a program of a Unix system would get for it: ``SIGSEGV``, ``SIGILL``, ``SIGFPE``, ``SIGBUS``
        or ``SIGTRAP``."""

    def undo_fault(self, fault: GuestFault, vcpu: RegisterAccess) -> None:
        """Put the vCPU back to the instruction of ``fault``, as if the exception had not been taken."""

    def step_by_exception(self, vcpu: RegisterAccess, on: bool) -> None:
        """Have the CPU raise a debug exception of the guest after each instruction, or no more."""

    def exceptions_to_host(
        self, vcpu: RegisterAccess, memory: GuestAccess, system: SystemState
    ) -> Sequence[tuple[int, bytes]]:
        """What must stand in guest memory, and where, for debug exceptions of this vCPU to be reported to the host by
        Rift's own code, whatever handlers the payload has: hypervisors that leave them to the guest are used so.

        :raises AddressError: where the vCPU looks for its handlers nothing is mapped.
        """

    def forget_step(self, vcpu: RegisterAccess, memory: GuestAccess, start: int) -> None:
        """A step of the instruction at ``start`` is not to go on: if it has taken an exception, in whose handler the
        vCPU stands, what the hypervisor's stepping has left in the state that the handler returns to is removed."""

    def core_registers(self, registers: Mapping[str, int]) -> bytes:
        """The general registers as in a Linux core file's NT_PRSTATUS (``elf_gregset_t``).

        :param registers: all that the backend knows, by name; what is missing counts as 0.
        """

    def core_notes(self, registers: Mapping[str, int]) -> Sequence[CoreNote]:
        """Floating-point and vector registers as notes of a Linux core file."""
