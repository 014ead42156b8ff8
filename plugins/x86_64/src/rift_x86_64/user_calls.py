"""System calls from user mode: SYSCALL as it should be, and as it arrives on a hypervisor where it stays in ring 3.

Number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, the result in RAX; the CPU leaves the return address in
RCX and RFLAGS in R11 (SDM volume 2, SYSCALL).

Some software hypervisors load RIP from LSTAR but do not change the privilege level. The page there belongs to
the supervisor, so the fetch is a page fault: error code 0x15 (present, user, fetch), RIP at LSTAR. Its frame
stands on the kernel stack; the call is finished by rewriting the frame and returning from it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from rift_core import doorbell
from rift_core.errors import AddressError
from rift_core.exits import Exit, ExitKind
from rift_x86_64.builtin_code import ERROR_CODE_VECTORS
from rift_x86_64.paging import LOWER_HALF, SMALL_PAGE

if TYPE_CHECKING:
    from rift_core.isa import Area, GuestReader, RegisterAccess

ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_NUMBER_AND_ARGUMENTS = ("rax", *ARGUMENTS)
_PAGE_FAULT = 14
_FETCH_FROM_SUPERVISOR_PAGE = 0x15
_USER_FLAGS = 0x24_0DD5
"""RFLAGS that user mode may set: CF PF AF ZF SF TF DF OF AC ID. IF and IOPL stay those of the frame."""
_KEPT_FLAGS = 0x200
_FIXED_FLAGS = 0x2
_FRAME = struct.Struct("<7Q")


class Frame(NamedTuple):
    """What RSP points at when the doorbell's FAULT register is written."""

    vector: int
    code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


def entry_frame(reader: GuestReader, address: int, vector: int) -> Frame:
    """The frame as the CPU has pushed it at ``address``, for a handler's first instruction.

    :raises AddressError: it cannot be read.
    """
    has_code = vector in ERROR_CODE_VECTORS
    words = struct.unpack("<6Q", reader.read_virtual(address, 48)) if has_code else (0,)
    if not has_code:
        words = (0, *struct.unpack("<5Q", reader.read_virtual(address, 40)))
    return Frame(vector, *words)


def read_frame(reader: GuestReader, address: int) -> Frame:
    """The frame at ``address``.

    :raises AddressError: it is not mapped.
    """
    return Frame(*_FRAME.unpack(reader.read_virtual(address, _FRAME.size)))


def is_disguised_call(frame: Frame, return_address: int, syscall_entry: int) -> bool:
    """Whether the fault is a SYSCALL that stayed in user mode.

    A jump to the entry looks the same; it is served like a call as long as RCX is an address to which user mode may
    return, which harms nobody but the caller.
    """
    return (
        frame.vector == _PAGE_FAULT
        and frame.code == _FETCH_FROM_SUPERVISOR_PAGE
        and frame.rip == syscall_entry
        and frame.cs & 3 == 3
        and return_address < LOWER_HALF.stop - SMALL_PAGE
    )


def read_call(vcpu: RegisterAccess) -> Exit:
    """The USER_CALL exit."""
    values = vcpu.read_registers(_NUMBER_AND_ARGUMENTS)
    return Exit(ExitKind.USER_CALL, values["rax"], info=tuple([values[name] for name in ARGUMENTS]))


def came_by_fault(exit: Exit) -> bool:
    """Whether the store was to FAULT rather than to USER_CALL."""
    return exit.address % doorbell.SIZE == doorbell.FAULT


def finish_disguised_call(
    vcpu: RegisterAccess, reader: GuestReader, stacks: dict[int, Area], resume: int, value: int
) -> None:
    """Let the guest go on behind its SYSCALL with ``value``.

    ``stacks`` are the kernel stacks by page number; ``resume`` is where the frame is returned from.

    :raises AddressError: the frame is on no kernel stack.
    """
    registers = vcpu.read_registers(("rsp", "rcx", "r11"))
    at = registers["rsp"]
    frame = read_frame(reader, at)
    area = stacks.get(at // SMALL_PAGE)
    if area is None or at + _FRAME.size > area.end:
        raise AddressError(f"the frame of a user call at {at:#x} is not on a kernel stack; was TSS.RSP0 changed?")
    flags = registers["r11"] & _USER_FLAGS | frame.rflags & _KEPT_FLAGS | _FIXED_FLAGS
    frame = frame._replace(rip=registers["rcx"], rflags=flags)
    offset = at - area.virtual
    area.host[offset : offset + _FRAME.size] = _FRAME.pack(*frame)
    vcpu.write_registers({"rax": value & 0xFFFF_FFFF_FFFF_FFFF, "rip": resume})
