"""One guest thread on both sides: what it did here and there, one observation after the other."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rift_core.report import describe_address

if TYPE_CHECKING:
    from rift_tools.instructions import Instruction
    from rift_tools.sides import Observation, Side

_RESUME_FLAG = 1 << 16  # a debugger's, and not the program's
_WITH_REGISTERS = frozenset({"start", "step", "registers"})


@dataclass(frozen=True, slots=True)
class Difference:
    """``sides`` are both observations in words, by backend; ``place`` where the last common one was."""

    number: int
    place: str
    sides: tuple[tuple[str, str], ...]


def _words(side: Side, seen: Observation | None, other: Observation | None) -> str:
    """An observation, of registers only those that differ."""
    if seen is None:
        return "has ended"
    if other is not None and seen.kind == other.kind and seen.kind in _WITH_REGISTERS:
        pairs = [(a, b) for a, b in zip(seen.what, other.what, strict=False) if a != b]
        values = ", ".join(f"{name}={value:#x}" for (name, value), _ in pairs)
        place = describe_address(side.machine.engine.symbols, int(seen.place, 16))
        return f"{seen.kind} at {place}: {values}"
    return f"{seen.kind} {seen.what}"


class Lane:
    """One guest thread on both sides."""

    def __init__(self, name: str, sides: tuple[Side, Side]) -> None:
        self._name = name
        self._sides = sides
        self._queues = [side.queues[name] for side in sides]
        self._place = "the start"
        self._flags = UndefinedFlags()

    def ready(self) -> bool:
        """Both sides have done something."""
        return not any(queue.empty() for queue in self._queues)

    def compare(self, number: int) -> Difference | None:
        """The next observation of each."""
        first, second = (queue.get() for queue in self._queues)
        if not self._same(first, second):
            agreed = self._skip_step(first, second)
            if agreed is None:
                return self._difference(number, (first, second))
            first = agreed
        if first.place:
            pc = int(first.place, 16)
            instruction = self._sides[0].decoder.at(pc, {})
            place = describe_address(self._sides[0].machine.engine.symbols, pc)
            self._place = f"thread {self._name}, {place}: {instruction.text}"
            if first.kind != "registers":
                self._flags.executed(instruction)
        return None

    def _same(self, first: Observation, second: Observation) -> bool:
        return first.kind == second.kind and self._flags.masked(first.what) == self._flags.masked(second.what)

    def _skip_step(self, first: Observation, second: Observation) -> Observation | None:
        """Not every CPU reports a step behind an instruction that made an exit, or at the start of an exception
        handler: one side's step is passed over if the next one then is the other's."""
        if first.kind != "step" or second.kind != "step":
            return None
        for place, (mine, theirs) in enumerate(((first, second), (second, first))):
            if mine.place == theirs.place:
                continue
            self._flags.executed(self._sides[0].decoder.at(int(mine.place, 16), {}))
            try:
                following = self._queues[place].get(timeout=1.0)
            except queue.Empty:
                continue
            if self._same(following, theirs):
                return following
            with self._queues[place].mutex:
                self._queues[place].queue.appendleft(following)
        return None

    def unmatched(self, number: int) -> Difference | None:
        """What one side did and the other, which has ended, did not."""
        seen = [None if queue.empty() else queue.queue[0] for queue in self._queues]
        return self._difference(number, (seen[0], seen[1])) if any(seen) else None

    def _difference(self, number: int, seen: tuple[Observation | None, Observation | None]) -> Difference:
        words = tuple(
            (side.backend, _words(side, mine, theirs))
            for side, mine, theirs in zip(self._sides, seen, reversed(seen), strict=True)
        )
        return Difference(number, self._place, words)


class UndefinedFlags:
    """Bits of RFLAGS that the last instruction to touch them left undefined: CPUs may differ in them."""

    def __init__(self) -> None:
        self._undefined = _RESUME_FLAG

    def executed(self, instruction: Instruction) -> None:
        """An instruction is about to be executed."""
        undefined = self._undefined & ~instruction.flags_written | instruction.flags_undefined
        self._undefined = undefined | _RESUME_FLAG

    def masked(self, what: tuple[Any, ...]) -> tuple[Any, ...]:
        """An observation without them."""
        return tuple(
            (item[0], item[1] & ~self._undefined) if isinstance(item, tuple) and item[:1] == ("rflags",) else item
            for item in what
        )
