"""By what means a backend lets its guests be debugged, at each privilege level, as its probe has measured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

    from rift_core.isa import Privilege

Arrival = Literal["exit", "failure", "vector", ""]
"""How a breakpoint instruction or a step comes to the host: a DEBUG exit; an instruction that the hypervisor cannot run
(FAIL_ENTRY); through the guest's own vectors, which report it; not at all."""

_WAYS: dict[Arrival, str] = {
    "exit": "yes",
    "failure": "yes, as something that cannot run",
    "vector": "by the guest's own vectors",
    "": "no",
}

PRIVILEGES: tuple[Privilege, ...] = ("supervisor", "user")


@dataclass(frozen=True, slots=True)
class Means:
    """What works, by privilege."""

    instruction: dict[Privilege, Arrival]
    step: dict[Privilege, Arrival]
    hardware: dict[Privilege, bool]
    watch: dict[Privilege, bool]

    @classmethod
    def of(cls, capabilities: Set[str]) -> Means:
        """From a backend's capabilities (``docs/capabilities.md``)."""

        def has(name: str, privilege: Privilege) -> bool:
            return (name if privilege == "supervisor" else f"{name}_user") in capabilities

        def instruction(privilege: Privilege) -> Arrival:
            if has("debug_sw_breakpoint", privilege):
                return "exit"
            if privilege == "supervisor" and "breakpoint_failure" in capabilities:
                return "failure"
            return "vector" if has("breakpoint_vector", privilege) else ""

        def step(privilege: Privilege) -> Arrival:
            if has("debug_single_step", privilege):
                return "exit"
            return "vector" if has("step_vector", privilege) else ""

        return cls(
            instruction={p: instruction(p) for p in PRIVILEGES},
            step={p: step(p) for p in PRIVILEGES},
            hardware={p: has("debug_hw_breakpoint", p) for p in PRIVILEGES},
            watch={p: has("debug_watchpoint", p) for p in PRIVILEGES},
        )

    def instructions_work(self, privileges: Iterable[Privilege]) -> bool:
        """Whether a breakpoint instruction stops code at all of these levels."""
        return all(self.instruction[p] for p in privileges)

    def hardware_works(self, privileges: Iterable[Privilege]) -> bool:
        """Whether the CPU's debug registers do."""
        return all(self.hardware[p] for p in privileges)

    def watch_works(self, privileges: Iterable[Privilege]) -> bool:
        """Whether they watch data there."""
        return all(self.watch[p] for p in privileges)

    def describe(self) -> list[str]:
        """A line for each level."""
        return [
            f"{p}: steps {_WAYS[self.step[p]]}; breakpoint instructions {_WAYS[self.instruction[p]]}; "
            f"debug registers {'yes' if self.hardware[p] else 'no'}; watchpoints "
            f"{'yes' if self.watch[p] else 'no' if not self.step[p] else 'by stepping'}"
            for p in PRIVILEGES
        ]
