"""The backend over frameworks that have nothing in common with the first stand-ins but the facts."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING

import life
import pytest

from rift_core import open_machine
from rift_core.exits import ExitKind
from rift_core.testing.tools import require_tool
from rift_hvf import HvfConfig
from rift_hvf.probe import _probe

if TYPE_CHECKING:
    from pathlib import Path

FOUND = {
    "x86_64": {
        "inject_exception", "inject_interrupt", "readonly_memory", "user_msr_exit", "hypercall_exit",
        "software_interrupts", "software_interrupts_user", "debug_single_step", "debug_single_step_user",
        "debug_hw_breakpoint", "debug_hw_breakpoint_user", "debug_sw_breakpoint", "debug_sw_breakpoint_user",
        "debug_watchpoint", "debug_watchpoint_user",
    },
    "aarch64": {"hypercall_exit", "halt_exit", "readonly_memory"},
}  # fmt: skip
GUEST = """
#include <rift_guest.h>

uint64_t visits;

int main(void) {
    rift_printf("hello from %s\\n", rift_privilege_name());
    return 0;
}

int add(int left, int right) {
    ++visits;
    return left + right;
}
"""


@pytest.fixture(params=("x86_64", "aarch64"))
def other(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A framework, and its ISA."""
    path: Path = request.getfixturevalue("other_x86_64" if request.param == "x86_64" else "other_arm64")
    return path, request.param


def test_a_vcpu_lives(other: tuple[Path, str]) -> None:
    path, isa = other
    with life.Life(path, isa) as one:
        for _ in range(3):
            assert one.sum() == life.TOTAL
        one.vcpu.park()
        one.vcpu.adopt()
        assert one.sum() == life.TOTAL


def test_kicks_arrive_whenever_they_are_made(other: tuple[Path, str]) -> None:
    """Requests to exit stick: one that comes while the vCPU is outside ends its next run, once."""
    path, isa = other
    with life.Life(path, isa) as one:
        one.put(life.FOREVER[isa])
        for pause in (0.0, 0.002, 0.02):
            for _ in range(10):
                thread = threading.Timer(pause, one.vcpu.kick)
                thread.start()
                begun = time.monotonic()
                assert one.vcpu.run().kind is ExitKind.INTERRUPTED
                assert time.monotonic() - begun < 5
                thread.join()
        one.vcpu.kick()
        assert one.vcpu.run().kind is ExitKind.INTERRUPTED
        assert one.sum() == life.TOTAL


def test_the_probe(other: tuple[Path, str]) -> None:
    path, isa = other
    result = _probe(HvfConfig(framework=str(path)))
    assert result.available, result.reason
    assert FOUND[isa] <= result.capabilities


def test_a_machine(other: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, isa = other
    source = tmp_path / "guest.c"
    source.write_text(GUEST)
    configuration = {
        "binary": {"path": str(source)}, "isa": {"name": isa}, "backend": {"name": "hvf", "framework": str(path)},
    }  # fmt: skip
    require_tool("clang")
    monkeypatch.setenv("RIFT_CC", "clang")
    console = io.StringIO()
    with open_machine(configuration, console=console) as machine:
        assert machine.run(timeout=30).status == 0
        assert [machine.call("add", at, 2) for at in range(5)] == [2, 3, 4, 5, 6]
        assert machine.symbol("visits").view().cast("Q")[0] == 5
    assert console.getvalue() == f"hello from {'ring 0' if isa == 'x86_64' else 'EL1'}\n"


def test_a_whole_life_in_ring_0(other_x86_64: Path) -> None:
    for _ in range(3):
        assert life.whole(other_x86_64, "x86_64") == 2 * life.TOTAL
