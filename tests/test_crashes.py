"""A vCPU that cannot go on: always an error that says where, never silence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from machine_code import ISA

from rift_core import Exit, ExitKind, GuestCrashError, GuestFaultError, Machine, open_machine
from rift_core.testing import fakes
from rift_core.testing.tools import only_where, require_backend, require_machine, require_module

if TYPE_CHECKING:
    from collections.abc import Callable

x86_64_only = only_where(ISA == "x86_64", "the machine code is x86-64's")

# An empty IDT, then an exception: push 0; push 0; lidt [rsp]; ud2
TRIPLE_FAULT = bytes.fromhex("6a00 6a00 0f011c24 0f0b")
FLD1 = bytes.fromhex("d9e8")


@x86_64_only
def test_a_triple_fault_is_told(run_code: Callable[..., Machine]) -> None:
    with pytest.raises(GuestCrashError, match=r"shut its CPU down .*triple fault") as caught:
        run_code(TRIPLE_FAULT).thread("main").start().join(20)
    assert "thread main" in str(caught.value)
    lost = caught.value.exit is not None and caught.value.exit.value == 1
    assert ("rsp" in caught.value.registers) != lost


@x86_64_only
def test_a_hypervisor_that_resets_what_has_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """As KVM on SVM does: where the guest was nobody knows; the exit is made up here, for every host."""
    require_backend("fake")
    monkeypatch.setattr(fakes.FakeVCpu, "run", lambda vcpu, reply=None: Exit(ExitKind.SHUTDOWN, value=1))
    with (
        require_machine(lambda: open_machine(code=TRIPLE_FAULT, isa="x86_64", backend="fake")) as machine,
        pytest.raises(GuestCrashError, match=r"its registers are lost \(thread main\)$") as caught,
    ):
        machine.thread("main").start().join(20)
    assert not caught.value.registers


@x86_64_only
def test_a_triple_fault_in_a_call_leaves_the_machine_usable(machine: Machine, functions: dict[str, int]) -> None:
    with pytest.raises(GuestCrashError, match="triple fault"):
        machine.call(machine.load_code(TRIPLE_FAULT))
    assert machine.call(functions["add"], 20, 22) == 42


@x86_64_only
def test_a_fault_in_the_vectors_is_a_double_fault_on_a_stack_of_its_own(machine: Machine) -> None:
    """The stack is gone when the exception comes: the CPU cannot push its frame."""
    with pytest.raises(GuestFaultError, match="#DF double fault"):
        machine.call(machine.load_code(bytes.fromhex("31e4 0f0b")))  # xor esp, esp; ud2


@pytest.mark.parametrize("capstone", [True, False], ids=["disassembled", "bytes"])
def test_an_instruction_that_the_hypervisor_cannot_run(monkeypatch: pytest.MonkeyPatch, capstone: bool) -> None:
    """As kvm_pvm says it of x87 in ring 0; the exit is made up here, for every host."""
    require_backend("fake")
    exit = Exit(ExitKind.FAIL_ENTRY, 0x40_0000, 2, 1, raw_reason=17, info=(0xE8D9, 0, 0, 0, 0, 0))
    monkeypatch.setattr(fakes.FakeVCpu, "run", lambda vcpu, reply=None: exit)
    if capstone:
        require_module("capstone")
    else:
        monkeypatch.setitem(sys.modules, "capstone", None)
    with (
        require_machine(lambda: open_machine(code=FLD1, isa="x86_64", backend="fake")) as machine,
        pytest.raises(GuestCrashError, match="cannot run the guest's instruction at 0x400000") as caught,
    ):
        machine.thread("main").start().join(20)
    message = str(caught.value)
    assert "bytes: d9 e8" in message
    assert ("=> 0x400000: fld1" in message) == capstone
    assert "rip 0000000000400000" in message
    assert caught.value.registers["rip"] == 0x40_0000
