"""Machines for the whole-system tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rift_core import Machine, open_machine
from rift_core.testing.tools import require_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

X86_64 = {
    "add": bytes.fromhex("488d0437c3"),  # lea rax, [rdi+rsi]; ret
    "spin": bytes.fromhex("ebfe"),  # jmp $
    "halt": bytes.fromhex("f4"),  # hlt
    "ud2": bytes.fromhex("0f0b"),
    "null": bytes.fromhex("8b042500000000"),  # mov eax, [0]
    "identity": bytes.fromhex("4889f8c3"),  # mov rax, rdi; ret
    "load": bytes.fromhex("488b07c3"),  # mov rax, [rdi]; ret
    "store": bytes.fromhex("488937c3"),  # mov [rdi], rsi; ret
    "count": bytes.fromhex("48ff07ebfb"),  # inc qword [rdi]; jmp $-3
    "exit": bytes.fromhex("893c2500000070ebfe"),  # mov [0x70000000], edi; jmp $
    "doorbell": bytes.fromhex("893c2500010070c3"),  # mov [0x70000100], edi; ret
    "flood": bytes.fromhex("893c2500010070ebf7"),  # mov [0x70000100], edi; jmp back
    "recurse": bytes.fromhex("e8fbffffff"),  # call $
}
"""One function each, as machine code."""


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with nothing but room for code."""
    opened = require_machine(lambda: open_machine(code=X86_64["halt"], isa="x86_64"))
    with opened:
        yield opened


@pytest.fixture
def run_code() -> Iterator[Callable[..., Machine]]:
    """Make machines whose thread ``main`` runs one of the functions above."""
    made: list[Machine] = []

    def make(name: str | bytes, **options: Any) -> Machine:
        code = X86_64[name] if isinstance(name, str) else name
        made.append(require_machine(lambda: open_machine(code=code, isa="x86_64", **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def functions(machine: Machine) -> dict[str, int]:
    """All functions above, loaded: name to address."""
    return {name: machine.load_code(code) for name, code in X86_64.items()}
