"""The die of examples/third_party_handler keeps the contract of exit handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rift_core.exits import Exit, ExitKind
from rift_core.testing.exit_handler import ExitHandlerConformance, StandInMachine
from rift_core.testing.tools import load_module

FILE = Path(__file__).parents[2] / "examples" / "third_party_handler" / "rift_dice.py"


class TestDice(ExitHandlerConformance):
    @pytest.fixture
    def plugin(self) -> Any:
        return load_module(FILE)

    @pytest.fixture
    def config(self, plugin: Any) -> Any:
        return plugin.DiceConfig(seed=1)

    @pytest.fixture
    def samples(self, machine: StandInMachine) -> list[Exit]:
        register = machine.doorbell + 0x100
        return [
            Exit(ExitKind.MMIO, register, 8),
            Exit(ExitKind.MMIO, register, 8, 20, True),
            Exit(ExitKind.MMIO, register, 8),
        ]
