"""A die for guests: a load from its doorbell register rolls it, a store says how many sides it has."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydantic import Field

from rift_core import Exit, ExitHandler, ExitKind, ExitResult, PluginInfo, Resume, Section, VCpu, hookimpl
from rift_core.doorbell import USER_FIRST

if TYPE_CHECKING:
    from rift_core.handler_machine import HandlerMachine


class DiceConfig(Section):
    sides: int = Field(6, gt=0, description="Until the guest says otherwise.")
    seed: int | None = Field(None, description="Makes the rolls the same each time.")


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo("exit_handler", "dice", "A die at the doorbell's first free register", DiceConfig)


@hookimpl
def rift_exit_handlers(config: DiceConfig, machine: HandlerMachine) -> list[ExitHandler]:
    generator, sides = random.Random(config.seed), config.sides

    def handle(vcpu: VCpu, exit: Exit) -> ExitResult:
        nonlocal sides
        if exit.is_write:
            sides = max(exit.value, 1)
            return Resume()
        return Resume(generator.randint(1, sides))

    register = machine.doorbell + USER_FIRST
    return [ExitHandler("dice", frozenset({ExitKind.MMIO}), range(register, register + 1), handle)]
