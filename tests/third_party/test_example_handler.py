"""The die of examples/third_party_handler keeps the contract of exit handlers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rift_core.exits import Exit, ExitKind
from rift_core.testing.exit_handler import ExitHandlerConformance, StandInMachine

FILE = Path(__file__).parents[2] / "examples" / "third_party_handler" / "rift_dice.py"


class TestDice(ExitHandlerConformance):
    @pytest.fixture
    def plugin(self) -> Any:
        spec = importlib.util.spec_from_file_location("rift_dice", FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

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
