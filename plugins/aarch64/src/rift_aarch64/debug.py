"""What debuggers use of AArch64: :class:`rift_core.isa_debug.IsaDebug`.

Arm ARM, chapter D2 ("AArch64 Self-hosted Debug"); the register sets of core files are those of Linux (``struct
user_pt_regs``, ``struct user_fpsimd_state``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_aarch64 import syndrome
from rift_aarch64.registers import GENERAL, VECTORS
from rift_core.errors import AddressError, UnsupportedError
from rift_core.isa_debug import CoreNote, DebugEvent, Place
from rift_core.memory import Gpa

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.isa import GuestFault, RegisterAccess, SystemState
    from rift_core.isa_debug import GuestAccess
    from rift_core.memory import Gva

_LEVEL_MASK = 0xC  # PSTATE.EL; 0 is EL0
_HARDWARE, _STEPS = frozenset({0x30, 0x31}), frozenset({0x32, 0x33})
_ALIGNMENT_FAULT = 0x21
_BRK, _BRK_MASK = 0xD420_0000, 0xFFE0_001F
_ROOT_MASK = 0x0000_FFFF_FFFF_FFFE  # TTBR without the ASID and CnP
_UPPER_HALF = 1 << 55
_CORE_ORDER = (*GENERAL, "sp", "pc", "pstate")
_NT_FPREGSET, _NT_ARM_TLS = 2, 0x401


class Debug:
    """See :class:`rift_core.isa_debug.IsaDebug`."""

    architecture = "aarch64"
    triple = "aarch64-unknown-none"
    breakpoint = bytes.fromhex("000020d4")  # BRK #0
    exception_return = bytes.fromhex("e0039fd6")  # ERET
    watch_is_late = False
    core_machine = 183  # EM_AARCH64

    def place(self, vcpu: RegisterAccess) -> Place:
        """PC, the stack pointer in use, and PSTATE.EL."""
        values = vcpu.read_registers(("pc", "sp", "pstate"))
        return Place(values["pc"], values["sp"], "supervisor" if values["pstate"] & _LEVEL_MASK else "user")

    def table_root(self, vcpu: RegisterAccess, virtual: Gva) -> Gpa:
        """TTBR0_EL1 or TTBR1_EL1: bit 55 says which, whether or not there is a tag above it."""
        name = "ttbr1_el1" if virtual & _UPPER_HALF else "ttbr0_el1"
        return Gpa(vcpu.read_registers((name,))[name] & _ROOT_MASK)

    def debug_event(self, fault: GuestFault, vcpu: RegisterAccess) -> DebugEvent | None:
        """What the exception class says; PC is at the instruction."""
        if fault.vector == syndrome.BRK:
            return DebugEvent("software", fault.pc)
        if fault.vector in _STEPS:
            return DebugEvent("step", fault.pc)
        if fault.vector in _HARDWARE:
            return DebugEvent("hardware", fault.pc)
        if fault.vector in syndrome.WATCHPOINTS:
            return DebugEvent("watchpoint", fault.pc, fault.address or 0)
        return None

    def own_breakpoint(self, memory: GuestAccess, address: int) -> int | None:
        """At BRK with any number: debuggers step over it themselves."""
        try:
            word = int.from_bytes(memory.read_virtual(address, 4), "little")
        except AddressError:
            return None
        return address if word & _BRK_MASK == _BRK else None

    def signal(self, fault: GuestFault) -> str:
        """As Linux has it."""
        vector = fault.vector
        if vector in syndrome.DATA_ABORTS or vector in syndrome.INSTRUCTION_ABORTS:
            return "SIGBUS" if (fault.code or 0) & 0x3F == _ALIGNMENT_FAULT else "SIGSEGV"
        if vector in (syndrome.PC_ALIGNMENT, syndrome.SP_ALIGNMENT, syndrome.SERROR):
            return "SIGBUS"
        if vector == syndrome.FP_EXCEPTION:
            return "SIGFPE"
        debug = {syndrome.BRK} | _STEPS | _HARDWARE | syndrome.WATCHPOINTS
        return "SIGTRAP" if vector in debug else "SIGILL"

    def undo_fault(self, fault: GuestFault, vcpu: RegisterAccess) -> None:
        """What ERET would do; X30, which the vectors have put aside, comes back as well."""
        registers = fault.registers
        vcpu.write_registers({name: registers[name] for name in _CORE_ORDER})

    def step_by_exception(self, vcpu: RegisterAccess, on: bool) -> None:
        """Steps need PSTATE.SS to be set by an ERET of the guest's: no backend steps this way.

        :raises UnsupportedError: always, when it is to be switched on.
        """
        if on:
            raise UnsupportedError("AArch64 guests are stepped by the hypervisor only")

    def exceptions_to_host(
        self, vcpu: RegisterAccess, memory: GuestAccess, system: SystemState
    ) -> Sequence[tuple[int, bytes]]:
        """Nothing: every hypervisor takes BRK and steps itself."""
        return ()

    def forget_step(self, vcpu: RegisterAccess, memory: GuestAccess, start: int) -> None:
        """Nothing is left: SPSR_EL1.SS means nothing unless the guest steps itself."""

    def core_registers(self, registers: Mapping[str, int]) -> bytes:
        """``struct user_pt_regs``."""
        return struct.pack(f"<{len(_CORE_ORDER)}Q", *(registers.get(name, 0) for name in _CORE_ORDER))

    def core_notes(self, registers: Mapping[str, int]) -> Sequence[CoreNote]:
        """NT_PRFPREG and NT_ARM_TLS."""
        vectors = b"".join(registers.get(name, 0).to_bytes(16, "little") for name in VECTORS)
        status = struct.pack("<II8x", registers.get("fpsr", 0), registers.get("fpcr", 0))
        return (
            CoreNote("CORE", _NT_FPREGSET, vectors + status),
            CoreNote("LINUX", _NT_ARM_TLS, struct.pack("<Q", registers.get("tpidr_el0", 0))),
        )
