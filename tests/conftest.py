"""Machines for the whole-system tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import Machine, open_machine
from rift_core.testing.tools import require_machine

sys.path.insert(0, str(Path(__file__).parent))  # for machine_code: importlib mode does not do it

from machine_code import CODE, ISA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with nothing but room for code."""
    opened = require_machine(lambda: open_machine(code=CODE["halt"], isa=ISA))
    with opened:
        yield opened


@pytest.fixture
def run_code() -> Iterator[Callable[..., Machine]]:
    """Make machines whose thread ``main`` runs one of the functions above."""
    made: list[Machine] = []

    def make(name: str | bytes, **options: Any) -> Machine:
        code = CODE[name] if isinstance(name, str) else name
        made.append(require_machine(lambda: open_machine(code=code, isa=ISA, **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def functions(machine: Machine) -> dict[str, int]:
    """All functions above, loaded: name to address."""
    return {name: machine.load_code(code) for name, code in CODE.items()}
