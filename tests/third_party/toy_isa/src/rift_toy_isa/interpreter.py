"""The toy ISA's binding for the fake backend: one instruction at a time. See the README for the instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.exits import Exit, ExitKind
from rift_toy_isa.instruction_set import NUMBERED, SPECIAL
from rift_toy_isa.page_table import (
    ACCESSED,
    CHAIN_LIMIT,
    DIRTY,
    ENTRY,
    EXECUTE,
    FIRST,
    PAGE,
    PHYSICAL_BITS,
    USER,
    VALID,
    WRITE,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_core.testing.fake_memory import PhysicalMemory

UNDEFINED, ACCESS, PRIVILEGE, MISALIGNED = 1, 2, 3, 4

LENGTHS = {0x00: 1, 0x01: 3, 0x02: 10, 0x0A: 2, 0x0B: 3, 0x0C: 2, 0x0D: 1, 0x0E: 1, 0x0F: 1}
"""Bytes of an instruction; 2 for those that are not listed, 0x03 to 0x09."""

_LAST_OPCODE = 0x0F
_MASK = (1 << 64) - 1


class Fault(Exception):
    """The instruction cannot be executed; nothing has changed."""

    def __init__(self, cause: int, address: int = 0) -> None:
        self.cause = cause
        self.address = address


class Interpreter:
    """See :class:`rift_core.testing.fakes.FakeBinding`."""

    registers: Mapping[str, int] = dict.fromkeys((*NUMBERED, *SPECIAL), 64)
    program_counter = "pc"
    exit_kinds = frozenset({ExitKind.HALT, ExitKind.SHUTDOWN})

    def step(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        """Execute one instruction, or deliver its fault."""
        try:
            return self._execute(state, memory)
        except Fault as fault:
            if state["cause"]:
                return Exit(ExitKind.SHUTDOWN)
            state.update(
                cause=fault.cause,
                epc=state["pc"],
                badaddr=fault.address,
                emode=state["mode"],
                mode=0,
                pc=state["vector"],
            )
            return None

    def complete(self, state: dict[str, Any], exit: Exit, reply: int) -> None:
        """A load from a device: :meth:`_load` has put the register's number into ``raw_reason``."""
        state[NUMBERED[exit.raw_reason]] = reply
        state["pc"] = state["pc"] + 2 & _MASK

    def _execute(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        pc = state["pc"]
        code = self._fetch(state, memory, pc)
        opcode = code[0]
        following = pc + len(code) & _MASK
        target, source = (_register(code[1] >> 4), _register(code[1] & 15)) if 1 <= opcode <= 9 else ("", "")
        exit: Exit | None = None
        match opcode:
            case 0x00:
                _supervisor(state)
                exit = Exit(ExitKind.HALT, pc)
            case 0x01 | 0x02:
                state[target] = int.from_bytes(code[2:], "little")
            case 0x03:
                state[target] = state[target] + state[source] & _MASK
            case 0x04:
                state[target] = state[target] - state[source] & _MASK
            case 0x05 | 0x06:
                exit = self._store(state, memory, state[target], 1 if opcode == 0x05 else 8, state[source])
            case 0x07 | 0x08:
                exit = self._load(state, memory, state[source], 1 if opcode == 0x07 else 8, target)
                if exit is not None:
                    return exit
            case 0x09:
                state[target] = state[source]
            case 0x0A:
                following = following + _signed(code[1]) & _MASK
            case 0x0B:
                if state[_register(code[1] >> 4)]:
                    following = following + _signed(code[2]) & _MASK
            case 0x0C:
                destination = state[_register(code[1] >> 4)]
                stack = state["sp"] - 8 & _MASK
                exit = self._store(state, memory, stack, 8, following)
                state["sp"] = stack
                following = destination
            case 0x0D:
                exit = self._load(state, memory, state["sp"], 8, "pc")
                if exit is not None:
                    raise Fault(ACCESS, state["sp"])  # a stack in a device
                following = state["pc"]
                state["sp"] = state["sp"] + 8 & _MASK
            case 0x0E:
                state["epc"] = following
                state["mode"], following = 0, state["callvec"]
            case 0x0F:
                _supervisor(state)
                state["mode"], following = 1, state["epc"]
        state["pc"] = following
        return exit

    def _fetch(self, state: dict[str, Any], memory: PhysicalMemory, pc: int) -> bytes:
        opcode = self._byte(state, memory, pc)
        if opcode > _LAST_OPCODE:
            raise Fault(UNDEFINED)
        length = LENGTHS.get(opcode, 2)
        return bytes((opcode, *(self._byte(state, memory, pc + at & _MASK) for at in range(1, length))))

    def _byte(self, state: dict[str, Any], memory: PhysicalMemory, address: int) -> int:
        byte = memory.read(self._translate(state, memory, address, EXECUTE), 1)
        if byte is None:
            raise Fault(ACCESS, address)
        return byte

    def _store(self, state: dict[str, Any], memory: PhysicalMemory, address: int, size: int, value: int) -> Exit | None:
        value &= (1 << 8 * size) - 1
        physical = self._data(state, memory, address, size, WRITE)
        return None if memory.write(physical, size, value) else Exit(ExitKind.MMIO, physical, size, value, True)

    def _load(self, state: dict[str, Any], memory: PhysicalMemory, address: int, size: int, target: str) -> Exit | None:
        physical = self._data(state, memory, address, size, 0)
        value = memory.read(physical, size)
        if value is None:
            number = NUMBERED.index(target) if target in NUMBERED else 0
            return Exit(ExitKind.MMIO, physical, size, raw_reason=number)
        state[target] = value
        return None

    def _data(self, state: dict[str, Any], memory: PhysicalMemory, address: int, size: int, wanted: int) -> int:
        if address % size:
            raise Fault(MISALIGNED, address)
        return self._translate(state, memory, address, wanted)

    def _translate(self, state: dict[str, Any], memory: PhysicalMemory, address: int, wanted: int) -> int:
        """Guest-physical address; ``_pages`` is the translation cache.

        :raises Fault: not mapped, or not with these permissions.
        """
        wanted |= USER if state["mode"] else 0
        pages: dict[tuple[int, int], int] = state.setdefault("_pages", {})
        key = (address & ~(PAGE - 1), wanted)
        page = pages.get(key)
        if page is None:
            page = pages[key] = self._walk(state["root"], memory, address, wanted)
        return page | address % PAGE

    @staticmethod
    def _walk(root: int, memory: PhysicalMemory, address: int, wanted: int) -> int:
        """The physical page; marks the entry accessed and, for a store, dirty. Where no memory is, the list ends."""
        page = memory.read(root, 8) or 0
        for _ in range(CHAIN_LIMIT):
            if not page or page % PAGE:
                break
            for at in range(page + FIRST, page + PAGE, ENTRY):
                entry = memory.read(at, 8) or 0
                if not entry & VALID or entry & ~(PAGE - 1) != address & ~(PAGE - 1):
                    continue
                physical = (memory.read(at + 8, 8) or 0) & ~(PAGE - 1)
                if wanted & ~entry or physical >> PHYSICAL_BITS:
                    raise Fault(ACCESS, address)
                marked = entry | ACCESSED | (DIRTY if wanted & WRITE else 0)
                if marked != entry:
                    memory.write(at, 8, marked)
                return physical
            page = memory.read(page, 8) or 0
        raise Fault(ACCESS, address)


def _register(number: int) -> str:
    if number >= len(NUMBERED):
        raise Fault(UNDEFINED)
    return NUMBERED[number]


def _supervisor(state: dict[str, Any]) -> None:
    if state["mode"]:
        raise Fault(PRIVILEGE)


def _signed(byte: int) -> int:
    return byte - 256 if byte & 0x80 else byte
