"""Steps of the host leave no trace in the guest, which hypervisors do not promise: they use its trap flag as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import rift_emulator
from rift_core.backend import Watchpoint
from rift_core.exits import ExitKind
from rift_core.testing.tools import require_backend
from rift_core.testing.x86_64_machine import CODE, DATA, FLAG_TF, STUBS, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def machine() -> Iterator[Machine]:
    require_backend("emulator")
    machine = Machine(rift_emulator)
    yield machine
    machine.close()


def test_steps_are_invisible(machine: Machine) -> None:
    code = b"\x9c\x58\x90\xf4"  # pushfq; pop rax
    machine.start(code)
    machine.vcpu.set_debug(single_step=True)
    while machine.go().kind is ExitKind.DEBUG:
        assert not machine.register("rflags") & FLAG_TF
    assert not machine.register("rax") & FLAG_TF
    assert not machine.register("dr6") & 1 << 14


def test_steps_into_a_handler(machine: Machine) -> None:
    machine.start(b"\x0f\x0b")
    machine.vcpu.set_debug(single_step=True)
    exit = machine.go()
    assert (exit.kind, exit.address) == (ExitKind.DEBUG, STUBS + 8 * 6)
    assert not machine.get(machine.register("rsp") + 16) & FLAG_TF


def test_trap_flag_of_the_guest_while_it_is_stepped(machine: Machine) -> None:
    machine.start(b"\x90\x90\xf4", rflags=2 | FLAG_TF)
    machine.vcpu.set_debug(single_step=True)
    assert machine.go().address == CODE + 1
    machine.vcpu.set_debug()
    frame = machine.frame(machine.go())  # the guest's own exception has not been lost
    assert (frame.vector, frame.rip) == (1, CODE + 1)


@pytest.mark.parametrize(
    ("access", "code", "size"),
    [
        pytest.param("write", b"\x48\x89\x07", 3, id="store"),
        pytest.param("read", b"\x48\x8b\x07", 3, id="load"),
        pytest.param("access", b"\x48\xff\x07", 3, id="both"),  # inc qword [rdi]
        pytest.param("write", b"\x50", 1, id="push"),
    ],
)
def test_watchpoint_comes_behind_the_instruction(machine: Machine, access: str, code: bytes, size: int) -> None:
    stack = code == b"\x50"
    machine.start(b"\x90" + code + b"\x90\xf4", rdi=DATA, rsp=DATA + 8 if stack else DATA + 0x800, rax=0x77)
    machine.vcpu.set_debug(watchpoints=[Watchpoint(DATA, 8, access)])  # type: ignore[arg-type]
    exit = machine.go()
    assert (exit.kind, exit.address, exit.info[:2]) == (ExitKind.DEBUG, CODE + 1 + size, (4, DATA))
    machine.vcpu.set_debug()
    machine.halt(machine.go(), CODE + 2 + size)


def test_watchpoint_is_of_its_access_and_size(machine: Machine) -> None:
    # mov rax, [rdi]; mov [rdi + 8], rax; mov [rdi - 8], rax
    machine.start(b"\x48\x8b\x07\x48\x89\x47\x08\x48\x89\x47\xf8\xf4", rdi=DATA + 0x20)
    machine.vcpu.set_debug(watchpoints=[Watchpoint(DATA + 0x20, 8, "write")])
    machine.halt(machine.go(), CODE + 11)


def test_breakpoint_and_step_together(machine: Machine) -> None:
    machine.start(b"\x90\x90\xf4")
    machine.vcpu.set_debug(single_step=True, breakpoints=[CODE + 1])
    exit = machine.go()
    assert (exit.address, exit.info[0]) == (CODE + 1, 1)
    exit = machine.go()
    assert (exit.address, exit.info[0]) == (CODE + 1, 3)


def test_breakpoints_where_nothing_can_be_executed_leave_no_trace(machine: Machine) -> None:
    """The engine itself looks at the places of breakpoints, and faults there."""
    machine.start(b"\x90" * 4 + b"\xf4", cr2=0x1234)
    places = (0x7000_0000, 0x7100_0000, 0x7200_0000)
    for at in range(1, 4):
        machine.vcpu.set_debug(single_step=True, breakpoints=places)
        assert (machine.go().address, machine.register("cr2")) == (CODE + at, 0x1234)
    machine.vcpu.set_debug()
    machine.halt(machine.go(), CODE + 4)
    assert machine.register("cr2") == 0x1234
