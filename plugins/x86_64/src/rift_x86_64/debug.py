"""What debuggers use of x86-64: :class:`rift_core.isa_debug.IsaDebug`.

SDM volume 3, "Debug, Branch Profile, ..." (DR6, #DB, #BP); the register sets of core files are those of Linux
(``struct user_regs_struct``, ``struct user_i387_struct``, XSAVE's standard format: SDM volume 1, 13.4).
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from rift_core.errors import AddressError
from rift_core.isa_debug import CoreNote, DebugEvent, Place
from rift_core.memory import Gpa
from rift_x86_64 import descriptors
from rift_x86_64.builtin_code import STUB_SIZE
from rift_x86_64.entry import CODE_AND_STACK_SEGMENTS, CODE_AREA
from rift_x86_64.paging import SMALL_PAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.isa import GuestFault, Privilege, RegisterAccess, SystemState
    from rift_core.isa_debug import GuestAccess
    from rift_core.memory import Gva

_DEBUG_VECTOR, _BREAKPOINT_VECTOR = 1, 3
_SIGNALS = {
    0: "SIGFPE", 1: "SIGTRAP", 3: "SIGTRAP", 6: "SIGILL", 7: "SIGILL", 11: "SIGBUS", 12: "SIGBUS", 16: "SIGFPE",
    17: "SIGBUS", 18: "SIGBUS", 19: "SIGFPE",
}  # fmt: skip
_TRAP_FLAG = 1 << 8
_INT_3 = bytes.fromhex("cd03")
_CODE_SELECTORS = frozenset(CODE_AND_STACK_SEGMENTS[level]["cs.selector"] & ~3 for level in CODE_AND_STACK_SEGMENTS)
_DR6_STEP = 1 << 14
_DR6_POINTS = 0xF
_DR6_CLEAR = 0xFFFF_0FF0
_ROOT_MASK = 0x000F_FFFF_FFFF_F000  # CR3 without PCID and cache control

_CORE_ORDER = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "", "rip", "cs.selector", "rflags", "rsp", "ss.selector", "fs.base", "gs.base", "ds.selector", "es.selector",
    "fs.selector", "gs.selector",
)  # fmt: skip
"""``struct user_regs_struct``; the gap is orig_rax, -1 outside a system call."""

_NO_SYSTEM_CALL = (1 << 64) - 1
_NT_FPREGSET, _NT_X86_XSTATE = 2, 0x202
_FXSAVE = struct.Struct("<HHBBHQQII")
_XSAVE_AVX, _XSAVE_END = 576, 832
_XCR0_PLACE, _XSTATE_BV_PLACE = 464, 512
_X87, _SSE, _AVX = 1, 2, 4


class Debug:
    """See :class:`rift_core.isa_debug.IsaDebug`."""

    architecture = "i386:x86-64"
    triple = "x86_64-unknown-none"
    breakpoint = b"\xcc"  # INT3
    exception_return = b"\x48\xcf"  # IRETQ
    watch_is_late = True
    core_machine = 62  # EM_X86_64

    def place(self, vcpu: RegisterAccess) -> Place:
        """RIP, RSP, and the level in CS."""
        values = vcpu.read_registers(("rip", "rsp", "cs.selector"))
        return Place(values["rip"], values["rsp"], _privilege(values["cs.selector"]))

    def table_root(self, vcpu: RegisterAccess, virtual: Gva) -> Gpa:
        """CR3, whatever the address."""
        return Gpa(vcpu.read_registers(("cr3",))["cr3"] & _ROOT_MASK)

    def debug_event(self, fault: GuestFault, vcpu: RegisterAccess) -> DebugEvent | None:
        """#BP, with RIP behind INT3; #DB, told apart by DR6, whose bits no CPU clears."""
        if fault.vector == _BREAKPOINT_VECTOR:
            return DebugEvent("software", fault.pc - len(self.breakpoint))
        if fault.vector != _DEBUG_VECTOR:
            return None
        values = vcpu.read_registers(("dr0", "dr1", "dr2", "dr3", "dr6", "dr7"))
        vcpu.write_registers({"dr6": _DR6_CLEAR})
        status = values["dr6"]
        if status & _DR6_POINTS and not status & _DR6_STEP:
            number = (status & _DR6_POINTS & -(status & _DR6_POINTS)).bit_length() - 1
            data = values["dr7"] >> 16 + 4 * number & 3  # R/W: 0 execution
            address = values[f"dr{number}"]
            return DebugEvent("watchpoint", fault.pc, address) if data else DebugEvent("hardware", fault.pc)
        return DebugEvent("step", fault.pc)

    def own_breakpoint(self, memory: GuestAccess, address: int) -> int | None:
        """Behind INT3, or INT 3 in two bytes, of which the event gives the second."""
        for start, form in ((address, self.breakpoint), (address - 1, _INT_3)):
            with contextlib.suppress(AddressError):
                if memory.read_virtual(start, len(form)) == form:
                    return start + len(form)
        return None

    def signal(self, fault: GuestFault) -> str:
        """As Linux has it."""
        return _SIGNALS.get(fault.vector, "SIGSEGV")

    def undo_fault(self, fault: GuestFault, vcpu: RegisterAccess) -> None:
        """What IRETQ would do; the vectors leave all other registers as they were."""
        registers = fault.registers
        values = {name: registers[name] for name in ("rip", "rsp", "rflags")}
        values.update(CODE_AND_STACK_SEGMENTS["user" if fault.user else "supervisor"])
        values.update({name: registers[name] for name in ("cs.selector", "ss.selector")})
        vcpu.write_registers(values)

    def step_by_exception(self, vcpu: RegisterAccess, on: bool) -> None:
        """RFLAGS.TF."""
        flags = vcpu.read_registers(("rflags",))["rflags"]
        wanted = flags | _TRAP_FLAG if on else flags & ~_TRAP_FLAG
        if wanted != flags:
            vcpu.write_registers({"rflags": wanted})

    def exceptions_to_host(
        self, vcpu: RegisterAccess, memory: GuestAccess, system: SystemState
    ) -> Sequence[tuple[int, bytes]]:
        """The gates of #DB and #BP in the IDT lead to the built-in stubs."""
        table = vcpu.read_registers(("idtr.base",))["idtr.base"]
        stubs = system.areas[CODE_AREA].virtual
        vectors = (_DEBUG_VECTOR, _BREAKPOINT_VECTOR)
        return [(table + 16 * vector, descriptors.gate(vector, stubs + STUB_SIZE * vector)) for vector in vectors]

    def forget_step(self, vcpu: RegisterAccess, memory: GuestAccess, start: int) -> None:
        """RFLAGS.TF, which some hypervisors step with, is in the frame: IRETQ would bring it back, and #DB with it.

        The frame is looked for in a page's length of the stack, from its top on.
        """
        top = vcpu.read_registers(("rsp",))["rsp"]
        stack = _read_up(memory, top, SMALL_PAGE)
        wanted, at = struct.pack("<Q", start & _NO_SYSTEM_CALL), -8
        while (at := stack.find(wanted, at + 8)) >= 0:
            if at % 8 or at + 24 > len(stack):
                at -= at % 8  # the search goes on at the next word
                continue
            selector, flags = struct.unpack_from("<QQ", stack, at + 8)
            if selector & ~3 in _CODE_SELECTORS and flags & _TRAP_FLAG:
                memory.write_virtual(top + at + 16, struct.pack("<Q", flags & ~_TRAP_FLAG))

    def core_registers(self, registers: Mapping[str, int]) -> bytes:
        """``struct user_regs_struct``."""
        values = [registers.get(name, 0) if name else _NO_SYSTEM_CALL for name in _CORE_ORDER]
        return struct.pack(f"<{len(values)}Q", *values)

    def core_notes(self, registers: Mapping[str, int]) -> Sequence[CoreNote]:
        """NT_PRFPREG, and NT_X86_XSTATE where the machine has AVX."""
        image = _fxsave(registers)
        notes = [CoreNote("CORE", _NT_FPREGSET, bytes(image))]
        if "ymm0" in registers:
            image += bytes(_XSAVE_END - len(image))
            struct.pack_into("<Q", image, _XCR0_PLACE, _X87 | _SSE | _AVX)
            struct.pack_into("<Q", image, _XSTATE_BV_PLACE, _X87 | _SSE | _AVX)
            for number in range(16):
                at = _XSAVE_AVX + 16 * number
                image[at : at + 16] = (registers.get(f"ymm{number}", 0) >> 128).to_bytes(16, "little")
            notes.append(CoreNote("LINUX", _NT_X86_XSTATE, bytes(image)))
        return notes


def _read_up(memory: GuestAccess, address: int, size: int) -> bytes:
    """As much as is mapped of ``size`` bytes."""
    end, data = address + size, b""
    while address < end:
        piece = min(end - address, SMALL_PAGE - address % SMALL_PAGE)
        try:
            data += memory.read_virtual(address, piece)
        except AddressError:
            break
        address += piece
    return data


def _privilege(selector: int) -> Privilege:
    return "user" if selector & 3 == 3 else "supervisor"


def _fxsave(registers: Mapping[str, int]) -> bytearray:
    """The image of FXSAVE64 (SDM volume 1, 10.5.1)."""
    tag = registers.get("ftag", 0xFFFF)
    abridged = sum(1 << place for place in range(8) if tag >> 2 * place & 3 != 3)
    image = bytearray(512)
    _FXSAVE.pack_into(
        image, 0,
        registers.get("fctrl", 0x37F), registers.get("fstat", 0), abridged, 0, registers.get("fop", 0) & 0x7FF,
        registers.get("fioff", 0) | registers.get("fiseg", 0) << 32,
        registers.get("fooff", 0) | registers.get("foseg", 0) << 32,
        registers.get("mxcsr", 0x1F80), 0xFFFF,
    )  # fmt: skip
    for number in range(8):
        at = 32 + 16 * number
        image[at : at + 10] = registers.get(f"st{number}", 0).to_bytes(10, "little")
    for number in range(16):
        at = 160 + 16 * number
        image[at : at + 16] = registers.get(f"xmm{number}", 0).to_bytes(16, "little")
    return image
