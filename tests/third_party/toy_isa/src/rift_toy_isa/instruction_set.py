"""The ISA object: registers, entry state, calls, faults."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core import doorbell as doorbell_page
from rift_core.errors import AddressError
from rift_core.exits import Exit, ExitKind
from rift_core.isa import AreaRequest, GuestFault, Register, SystemState
from rift_core.memory import Gva, Mapping, Permission
from rift_toy_isa.page_table import PAGE, VIRTUAL_BITS, pages_for

if TYPE_CHECKING:
    from collections.abc import Mapping as AnyMapping
    from collections.abc import Sequence

    from rift_core.isa import Area, EntryState, GuestReader, Privilege, RegisterAccess, ResultType

GENERAL = tuple(f"r{number}" for number in range(8))
NUMBERED = (*GENERAL, "sp", "fp")
"""Registers by the number that instructions have for them."""

SPECIAL = ("pc", "root", "mode", "vector", "callvec", "cause", "epc", "badaddr", "emode")
CAUSES = {1: "undefined instruction", 2: "access", 3: "privilege", 4: "misaligned"}
USER_RETURN = 2
"""The system call by which an entry function in user mode returns: see ``rift_core.context``."""

_ARGUMENTS = GENERAL[:4]
_USER_CALL = ("r7", "r0", "r1", "r2", "r3", "r4", "r5")
_MASK = (1 << 64) - 1


def _store_to(address: int) -> bytes:
    """``liq r6, address; stq r6, r0``"""
    return b"\x02\x60" + struct.pack("<Q", address) + b"\x06\x60"


class Toy:
    """The toy ISA of one machine."""

    name = "toy"
    registers: tuple[Register, ...] = tuple(
        [Register(name, 64, "general") for name in NUMBERED] + [Register(name, 64, "control") for name in SPECIAL]
    )
    program_counter = "pc"
    stack_pointer = "sp"
    frame_pointer = "fp"
    general_registers: tuple[str, ...] = NUMBERED
    page_sizes: tuple[int, ...] = (PAGE,)
    virtual_ranges: tuple[range, ...] = (range(1 << VIRTUAL_BITS),)
    capstone = ("", "")
    keeps_accessed = True
    keeps_dirty = True
    default_vectors: tuple[str, ...] = ()
    debug = None

    def tables_size(self, mappings: Sequence[object]) -> int:
        """The root, and a chain of full pages."""
        return PAGE * (1 + pages_for(sum(m.size // PAGE for m in mappings if isinstance(m, Mapping))))

    def system_areas(self) -> tuple[AreaRequest, ...]:
        """A page of supervisor code and one of user code."""
        read, execute = Permission.READ, Permission.EXECUTE
        return (AreaRequest("code", PAGE, read | execute), AreaRequest("user", PAGE, read | execute | Permission.USER))

    def thread_areas(self, privilege: Privilege) -> tuple[AreaRequest, ...]:
        """Nothing but the stack."""
        return ()

    def install_system(self, areas: AnyMapping[str, Area], doorbell: Gva) -> SystemState:
        """Three stubs, each a store to the doorbell; the one for system calls then returns."""
        code, user = areas["code"], areas["user"]
        stubs = {
            "return": _store_to(doorbell + doorbell_page.RETURN),
            "fault": _store_to(doorbell + doorbell_page.FAULT),
            "call": _store_to(doorbell + doorbell_page.USER_CALL) + b"\x0f",
        }
        places = {}
        at = 0
        for name, stub in stubs.items():
            places[name] = code.virtual + at
            code.host[at : at + len(stub)] = stub
            at += 32
        user.host[:4] = bytes((0x01, 0x70, USER_RETURN, 0x0E))  # li r7, 2; sys
        places["user"] = user.virtual
        return SystemState(areas, doorbell, Gva(places["return"]), places)

    def thread_registers(self, system: SystemState, areas: AnyMapping[str, Area], state: EntryState) -> dict[str, int]:
        """All registers of a fresh vCPU."""
        places = _places(system)
        registers = dict.fromkeys((*NUMBERED, *SPECIAL), 0)
        registers.update(root=state.root, vector=places["fault"], callvec=places["call"])
        registers.update(self.call_registers(system, areas, state))
        return registers

    def call_registers(self, system: SystemState, areas: AnyMapping[str, Area], state: EntryState) -> dict[str, int]:
        """Arguments in r0 to r3 and on the stack, behind the return address."""
        user = state.privilege == "user"
        values = [argument.value & _MASK for argument in state.arguments]
        words = [_places(system)["user"] if user else system.return_address, *values[len(_ARGUMENTS) :]]
        stack = areas["stack"]
        offset = state.stack - stack.virtual - 8 * len(words)
        if offset < 0:
            raise AddressError(f"the stack has no room for {len(values)} arguments")
        struct.pack_into(f"<{len(words)}Q", stack.host, offset, *words)
        registers = {"pc": int(state.entry), "sp": stack.virtual + offset, "mode": int(user), "cause": 0}
        registers.update(zip(_ARGUMENTS, values, strict=False))
        return registers

    def result(self, exit: Exit, vcpu: RegisterAccess, kind: ResultType) -> int | float | None:
        """r0, which the exit carries."""
        if kind.kind == "void":
            return None
        data = (exit.value & _MASK).to_bytes(8, "little")[: kind.size]
        if kind.kind == "float":
            return float(struct.unpack("<f" if kind.size == 4 else "<d", data)[0])
        return int.from_bytes(data, "little", signed=kind.signed)

    def read_fault(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> GuestFault | None:
        """What the CPU has noted. The stub has used r6."""
        state = vcpu.read_registers((*NUMBERED, "cause", "epc", "badaddr", "emode"))
        cause = state["cause"]
        registers = {name: state[name] for name in NUMBERED} | {"pc": state["epc"]}
        words = CAUSES.get(cause, "unknown")
        address = state["badaddr"] if cause in (2, 4) else None
        return GuestFault(
            cause, f"fault {cause}", state["epc"], state["sp"], address, None, words, state["emode"] == 1, registers
        )

    def read_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit) -> Exit:
        """Number in r7, arguments in r0 to r5."""
        number, *arguments = vcpu.read_registers(_USER_CALL).values()
        return Exit(ExitKind.USER_CALL, number, info=tuple(arguments))

    def finish_user_call(self, vcpu: RegisterAccess, reader: GuestReader, exit: Exit, value: int) -> None:
        """The result in r0; the stub's eret returns."""
        vcpu.write_registers({"r0": value & _MASK})


def _places(system: SystemState) -> dict[str, int]:
    places: dict[str, int] = system.data  # type: ignore[assignment]
    return places
