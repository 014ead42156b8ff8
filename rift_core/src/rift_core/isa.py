"""What an ISA provides: registers, page tables, entry state, calls, fault descriptions.

An ISA computes bytes and register values; it never talks to a hypervisor, so all of it runs and is
tested on any host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.exits import Exit
    from rift_core.isa_debug import DebugView, IsaDebug
    from rift_core.memory import Gpa, Gva, Permission

Privilege = Literal["supervisor", "user"]


@dataclass(frozen=True, slots=True)
class Register:
    """A row of the ISA's register table: the only place where a register is described."""

    name: str
    bits: int
    group: str  # "general", "flags", "segment", "control", "vector", "fpu", "msr", "debug", ...
    summary: str = ""
    debug: DebugView | None = None  # how debuggers see it; None: they do not


@dataclass(frozen=True, slots=True)
class AreaRequest:
    """Memory that an ISA wants core to place: mapped pages with a guard page below and above.

    ``low`` asks for an address below 4 GiB.
    """

    name: str
    size: int
    permissions: Permission
    low: bool = False


class Area(NamedTuple):
    """A placed :class:`AreaRequest`: where it is for the guest, and its bytes for the host."""

    name: str
    virtual: Gva
    physical: Gpa
    host: memoryview

    @property
    def size(self) -> int:
        """Bytes."""
        return self.host.nbytes

    @property
    def end(self) -> int:
        """First guest-virtual address behind it: where a stack starts."""
        return self.virtual + self.host.nbytes


@dataclass(frozen=True, slots=True)
class SystemState:
    """What :meth:`Isa.install_system` made for a whole machine; ``data`` is the ISA's own."""

    areas: Mapping[str, Area]
    doorbell: Gva
    return_address: Gva  # of the stub that stores the result to the doorbell's RETURN register
    data: object = None


class EntryState(NamedTuple):
    """How a guest thread starts, or a call. A NamedTuple because one is made at every call."""

    entry: Gva
    stack: Gva  # first address behind the stack, page-aligned
    root: Gpa  # of the page tables
    privilege: Privilege
    arguments: tuple[Argument, ...] = ()
    vectors: Vectors | None = None  # None: the ISA's built-in ones
    abi: str = ""  # ``Binary.abi``: how the function expects its arguments


@dataclass(frozen=True, slots=True)
class Vectors:
    """The payload's own exception vectors: the symbol, its address, and host bytes from there on."""

    symbol: str
    address: Gva
    host: memoryview


class Argument(NamedTuple):
    """One argument of a C function: an integer of any ctypes width (two's complement in ``value``), or a float.

    ``kind`` is "integer" or "float"; ``size`` is 1, 2, 4 or 8 bytes; a float's ``value`` holds its IEEE-754 bits.
    """

    kind: Literal["integer", "float"]
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class ResultType:
    """What a C function returns. ``kind`` "void" has no value."""

    kind: Literal["void", "integer", "float"] = "integer"
    size: int = 8
    signed: bool = True


@dataclass(frozen=True, slots=True)
class GuestFault:
    """An exception of the guest, read from its frame by :meth:`Isa.read_fault`.

    ``registers`` are those at the faulting instruction (the frame's, not the handler's).
    """

    vector: int
    name: str  # "#PF page fault"
    pc: int
    sp: int
    address: int | None  # the address that faulted, where the exception has one
    code: int | None
    words: str  # the error code or syndrome in words
    user: bool  # it came from user mode
    registers: Mapping[str, int] = field(default_factory=dict)


class GuestReader(Protocol):
    """Checked reads of guest memory for an ISA: what the machine passes to :meth:`Isa.read_fault`."""

    def read_virtual(self, address: int, size: int) -> bytes:
        """Bytes through the guest's page tables. :raises AddressError: not mapped."""


class RegisterAccess(Protocol):
    """The part of a vCPU that an ISA needs."""

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        """As ``VCpu.read_registers``."""

    def write_registers(self, values: Mapping[str, int]) -> None:
        """As ``VCpu.write_registers``."""


class Isa(Protocol):
    """One instruction set, configured for one machine."""

    name: str
    registers: tuple[Register, ...]
    program_counter: str
    stack_pointer: str
    frame_pointer: str
    general_registers: tuple[str, ...]  # shown in reports, in this order
    page_sizes: tuple[int, ...]  # of the first stage, ascending
    virtual_ranges: tuple[range, ...]  # canonical halves
    capstone: tuple[str, str]  # capstone's constants: ("CS_ARCH_X86", "CS_MODE_64"); ("", ""): unknown to it
    keeps_accessed: bool  # the CPU marks page-table entries as accessed; where not, every page counts as accessed
    keeps_dirty: bool  # the same of dirty; where not, every page that is writable counts as dirty
    default_vectors: tuple[str, ...]  # symbols to look for, in this order, when vectors = "auto"
    debug: IsaDebug | None  # what debuggers use; None: its guests cannot be debugged

    def tables_size(self, mappings: Sequence[object]) -> int:
        """Bytes of page tables that ``mappings`` (``rift_core.memory.Mapping``) can take at most."""

    def system_areas(self) -> tuple[AreaRequest, ...]:
        """Memory for what all threads share: the ISA's own code, vector table."""

    def thread_areas(self, privilege: Privilege) -> tuple[AreaRequest, ...]:
        """Memory for what each thread needs beside its stack: descriptor tables, exception stacks."""

    def install_system(self, areas: Mapping[str, Area], doorbell: Gva) -> SystemState:
        """Fill the system areas: built-in vectors, return stub, user-call entry."""

    def thread_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """Fill the thread's areas; return the registers, all of them, that a fresh vCPU starts with.

        :raises BinaryError: the layout of ``state.vectors`` is not understood.
        """

    def call_registers(self, system: SystemState, areas: Mapping[str, Area], state: EntryState) -> dict[str, int]:
        """The few registers that start one more call on a vCPU that :meth:`thread_registers` prepared.

        Writes to the stack what the calling convention puts there (return address, further arguments);
        the stack's host bytes are ``areas["stack"]``.
        """

    def result(self, exit: Exit, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
        """The value of the function that has just returned through the doorbell's RETURN register."""

    def read_fault(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> GuestFault | None:
        """The exception that a store to the doorbell's FAULT register reports.

        None when it is no fault but a user call in disguise (a hypervisor on which SYSCALL does not reach
        supervisor mode): the machine then goes on with :meth:`read_user_call`.
        :raises AddressError: the frame cannot be read.
        """

    def read_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> Exit:
        """The USER_CALL exit (number in ``address``, six arguments in ``info``) behind a store to the
        doorbell's USER_CALL, or FAULT, register."""

    def finish_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit, value: int) -> None:
        """Put ``value`` where the caller expects the result, so that the next entry returns to it."""
