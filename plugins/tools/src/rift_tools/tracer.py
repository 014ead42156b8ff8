"""What each instruction did: registers and memory that it changed, and the exception that it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rift_core.errors import AddressError, RiftError
from rift_core.exits import Exit, Stop
from rift_core.report import describe_address, describe_walk
from rift_tools.instructions import Decoder, Instruction

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.isa import GuestFault

_ALSO_X86 = ("cr2", "cr3", "fs.base", "gs.base")
LIMIT_REASON = "trace limit"


@dataclass(frozen=True, slots=True)
class Change:
    """A register, or 8 bytes of memory at most, before and after."""

    name: str
    before: int
    after: int


@dataclass(slots=True)
class Step:
    """One instruction of one thread. ``pc`` is where it stands, ``where`` the same with its symbol."""

    number: int
    thread: str
    pc: int
    where: str
    instruction: str
    registers: list[Change] = field(default_factory=list)
    memory: list[Change] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)
    exception: str = ""
    walks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; numbers are integers."""
        return asdict(self)


class _Thread:
    """Where a thread stands: the instruction that comes next, and the state before it."""

    def __init__(self) -> None:
        self.instruction: Instruction | None = None
        self.registers: dict[str, int] = {}
        self.memory: list[tuple[int, int, int]] = []
        self.exits: list[str] = []


class Tracer:
    """A follower that makes steps. ``sink`` gets each; after ``limit`` of them the run ends."""

    def __init__(
        self, engine: Engine, sink: Callable[[Step], None], *, limit: int | None = None, walks: bool = False
    ) -> None:
        self._engine = engine
        self._sink = sink
        self._limit = limit
        self._walks = walks
        self._count = 0
        self._decoder = Decoder(engine.isa, engine)
        self._threads: dict[int, _Thread] = {}
        isa = engine.isa
        known = {register.name for register in isa.registers}
        also = tuple(name for name in _ALSO_X86 if name in known)
        self._names = (isa.program_counter, *isa.general_registers, *also)

    # -- Follower --------------------------------------------------------------------------------

    def started(self, context: Context) -> None:
        """Look at the first instruction."""
        self._threads[context.index] = _Thread()
        self._look(context)

    def stepped(self, context: Context, pc: int) -> Stop | None:
        """Give the step that is over."""
        thread = self._threads[context.index]
        before, instruction = thread.registers, thread.instruction
        step = self._step(context, thread)
        self._look(context)
        if step is not None and instruction is not None:
            step.registers = [
                Change(name, before[name], value)
                for name, value in thread.registers.items()
                if value != before.get(name, value) and name != self._engine.isa.program_counter
            ]
            step.exception = self._exception(context, instruction, pc)
            self._sink(step)
        if self._limit is not None and self._count >= self._limit:
            return Stop(0, LIMIT_REASON)
        return None

    def exited(self, context: Context, exit: Exit) -> None:
        """Keep it for the instruction that is running."""
        self._threads[context.index].exits.append(str(exit))

    def faulted(self, context: Context, fault: GuestFault) -> None:
        """Nothing: the step into the built-in handler has told."""

    def ended(self, context: Context, outcome: Stop | BaseException) -> None:
        """Give the instruction that ended the run."""
        thread = self._threads.get(context.index)
        limited = isinstance(outcome, Stop) and outcome.reason == LIMIT_REASON
        if thread is not None and thread.instruction is not None and not limited:
            step = self._step(context, thread)
            if step is not None:
                self._sink(step)

    # -- the rest --------------------------------------------------------------------------------

    def _step(self, context: Context, thread: _Thread) -> Step | None:
        instruction = thread.instruction
        if instruction is None:
            return None
        self._count += 1
        where = describe_address(self._engine.symbols, instruction.address)
        step = Step(self._count, context.name, instruction.address, where, instruction.text)
        for address, size, before in thread.memory:
            after = self._number(address, size)
            if after is not None and after != before:
                step.memory.append(Change(f"[{address:#x}]", before, after))
        step.exits, thread.exits = thread.exits, []
        if self._walks:
            places = {instruction.address, *(address for address, _, _ in thread.memory)}
            step.walks = [f"{place:#x}: {describe_walk(self._engine.translate(place))}" for place in sorted(places)]
        thread.instruction = None
        return step

    def _look(self, context: Context) -> None:
        """Remember the state before the next instruction."""
        thread, vcpu = self._threads[context.index], context.vcpu
        if vcpu is None:
            return
        thread.registers = vcpu.read_registers(self._names)
        instruction = self._decoder.at(thread.registers[self._engine.isa.program_counter], thread.registers)
        thread.instruction = instruction
        thread.memory = []
        for address, size in instruction.writes:
            size = min(size, 8)
            value = self._number(address, size)
            if value is not None:
                thread.memory.append((address, size, value))

    def _number(self, address: int, size: int) -> int | None:
        try:
            return int.from_bytes(self._engine.read_virtual(address, size), "little")
        except AddressError:
            return None

    def _exception(self, context: Context, instruction: Instruction, pc: int) -> str:
        """In words, if the CPU stands at the first instruction of a handler that nothing has jumped to."""
        entered = getattr(self._engine.isa, "entered_exception", None)
        if entered is None or context.vcpu is None or pc == instruction.address + instruction.size:
            return ""
        try:
            fault: GuestFault | None = entered(context.vcpu, self._engine)
        except RiftError:
            return ""
        if fault is None:
            return ""
        code = f", error code {fault.code:#x}" if fault.code is not None else ""
        address = f", address {fault.address:#x}" if fault.address is not None else ""
        words = f": {fault.words}" if fault.words else ""
        return f"{fault.name}{words}{code}{address}"
