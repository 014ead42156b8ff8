"""x86-64 for the fake backend: the binding ``fake/x86_64``.

A CPU in long mode from its first instruction on, integer instructions only: what a compiler makes of C
with ``-mgeneral-regs-only``, and what system code needs. Anything else is #UD in the guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.exits import Exit, ExitKind
from rift_core.testing.fake_x86_64_access import EFER_LMA, MASK64, ExitRequest, GuestException
from rift_core.testing.fake_x86_64_decode import GENERAL
from rift_core.testing.fake_x86_64_delivery import TF, UNDEFINED, code_of
from rift_core.testing.fake_x86_64_system import FEATURES, MSRS, System

if TYPE_CHECKING:
    from rift_core.testing.fake_memory import PhysicalMemory

__all__ = ["FEATURES", "X86_64"]

_TRAPS = frozenset({3, 4})  # INT3, INTO: return behind the instruction
_ERROR_BYTES = 15


def _registers() -> dict[str, int]:
    names = dict.fromkeys((*GENERAL, "rip", "rflags"), 64)
    for segment in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"):
        names |= {f"{segment}.base": 64, f"{segment}.limit": 32, f"{segment}.selector": 16, f"{segment}.attributes": 16}
    for table in ("gdtr", "idtr"):
        names |= {f"{table}.base": 64, f"{table}.limit": 16}
    names |= dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", *MSRS.values()), 64)
    names |= dict.fromkeys(("dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "xcr0"), 64)
    names |= {f"xmm{n}": 128 for n in range(16)} | {f"st{n}": 80 for n in range(8)} | {"mxcsr": 32}
    names |= dict.fromkeys(("fctrl", "fstat", "ftag", "fop", "fiseg", "foseg"), 16)
    return names | {"fioff": 32, "fooff": 32}


class X86_64:  # noqa: N801 - the architecture's name
    """Implements :class:`rift_core.testing.fakes.FakeBinding`."""

    registers = _registers()
    program_counter = "rip"
    exit_kinds = frozenset(
        {
            ExitKind.HALT,
            ExitKind.PORT_IO,
            ExitKind.HYPERCALL,
            ExitKind.SYSTEM_REGISTER,
            ExitKind.SHUTDOWN,
            ExitKind.FAIL_ENTRY,
        }
    )
    capabilities = frozenset({"syscall", "user_msr_exit"})

    def reset(self, index: int) -> dict[str, int]:
        """As after power-on (Intel SDM volume 3A, table 9-1), as far as long mode does not replace it."""
        return {
            "rip": 0xFFF0,
            "rflags": 2,
            "cr0": 0x6000_0010,
            "rdx": 0x600,
            "dr6": 0xFFFF_0FF0,
            "dr7": 0x400,
            "xcr0": 1,
            "mxcsr": 0x1F80,
            "fctrl": 0x37F,
            "ftag": 0xFFFF,
            "pat": 0x0007_0406_0007_0406,
            "apic_base": 0xFEE0_0800 | (0x100 if index == 0 else 0),
        }

    def step(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        """One instruction, with whatever exception it raises delivered."""
        if not state["efer"] & EFER_LMA:
            return Exit(ExitKind.FAIL_ENTRY, state["rip"])
        one = System(state, memory)
        trace = state["rflags"] & TF
        try:
            exit = _execute(one)
        except ExitRequest as request:
            return _fail_entry(one) if request.exit.kind is ExitKind.FAIL_ENTRY else request.exit
        except GuestException as fault:
            rip = one.next if fault.software or fault.vector in _TRAPS else one.rip
            exit = one.deliver(fault, rip)
            trace = 0
        state.pop("_replies", None)
        if trace and exit is None:
            state["dr6"] |= 1 << 14
            exit = one.deliver(GuestException(1), state["rip"])
        return exit

    def complete(self, state: dict[str, Any], exit: Exit, reply: int) -> bool:
        """Note the reply; the instruction runs once more and finds it."""
        state.setdefault("_replies", []).append(reply)
        return True

    def inject(self, state: dict[str, Any], memory: PhysicalMemory, vector: int, code: int | None) -> Exit | None:
        """Deliver an exception before the next instruction."""
        return System(state, memory).deliver(GuestException(vector, code_of(vector, code), state["cr2"]), state["rip"])


def _execute(one: System) -> Exit | None:
    op = one.opcode()
    if one.locked:
        with one.memory.lock:
            _decode(one, op)
    elif op in (0x86, 0x87):  # XCHG with memory is atomic without a prefix
        with one.memory.lock:
            one.integer(op)
    else:
        _decode(one, op)
    one.state["rip"] = one.next & MASK64
    return one.exit


def _decode(one: System, op: int) -> None:
    if op == 0x0F:
        op = one.byte()
        known = one.extended(op) or one.extended_system(op)
    else:
        known = one.integer(op) or one.system(op)
    if not known:
        raise GuestException(UNDEFINED)


def _fail_entry(one: System) -> Exit:
    """The exit with the instruction's bytes, as far as they can be read."""
    code = b""
    try:
        while len(code) < _ERROR_BYTES:
            code += bytes([one.fetch(one.rip + len(code), 1)])
    except (GuestException, ExitRequest):
        pass
    words = tuple(int.from_bytes(code[at : at + 8], "little") for at in range(0, len(code), 8))
    return Exit(ExitKind.FAIL_ENTRY, one.rip, len(code), info=words)
