"""The fake backend as a plugin: light to import, and its binding protocol for made-up ISAs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.backend import Binding, CpuFeatures, VmSpec
from rift_core.errors import HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.host_memory import HostMemory
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing import fakes
from rift_core.testing.faults import CALLS, FaultInjecting

if TYPE_CHECKING:
    from rift_core.testing.fake_memory import PhysicalMemory


def test_import_is_light() -> None:
    code = (
        "import sys, rift_core.testing.fakes as f; f.rift_plugin();"
        "heavy = {'pytest', 'hypothesis', 'cffi', 'rich', 'click', 'numpy', 'rift_core.testing.fake_x86_64'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Accumulator:
    """The smallest ISA: 0 halt, 1 add 1, 2 load the accumulator from the device at 0x9000, 3 jump to 0."""

    registers = {"pc": 16, "acc": 8}  # noqa: RUF012
    program_counter = "pc"
    exit_kinds = frozenset({ExitKind.HALT})

    def step(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        op = memory.read(state["pc"], 1)
        if op == 2:
            return Exit(ExitKind.MMIO, 0x9000, 1)
        state["pc"] = 0 if op == 3 else state["pc"] + 1
        if op == 0 or op is None:
            return Exit(ExitKind.HALT)
        if op == 1:
            state["acc"] = state["acc"] + 1 & 0xFF
        return None

    def complete(self, state: dict[str, Any], exit: Exit, reply: int) -> None:
        state["acc"] = reply
        state["pc"] += 1


def make(code: bytes, module: Any = fakes) -> Any:
    binding = Binding("fake", "accumulator", implementation=Accumulator())
    vm = module.rift_create_vm(fakes.FakeConfig(), VmSpec("accumulator", binding, CpuFeatures()))
    memory = HostMemory(0x1000)
    memory.view[: len(code)] = code
    vm.map_memory(MemoryRegion(Gpa(0), memory.view, Permission.READ | Permission.WRITE))
    return vm


def test_third_isa() -> None:
    vm = make(bytes([1, 2, 1, 1, 0]))
    vcpu = vm.create_vcpu(0)
    exit = vcpu.run()
    assert (exit.kind, exit.address, vcpu.read_registers(["pc"])) == (ExitKind.MMIO, 0x9000, {"pc": 2})
    vcpu.write_registers({"pc": 1})
    assert vcpu.run().kind is ExitKind.MMIO
    assert vcpu.run(0x140).kind is ExitKind.HALT
    assert vcpu.read_registers(["pc", "acc"]) == {"pc": 5, "acc": 0x42}
    assert ExitKind.HALT in vm.exit_kinds
    assert ExitKind.PORT_IO not in vm.exit_kinds
    assert "inject_exception" not in vm.capabilities
    with pytest.raises(UnsupportedError, match="inject_exception"):
        vcpu.inject_exception(1)
    vcpu.close()
    vm.close()


def test_debug_on_third_isa() -> None:
    vm = make(bytes([1, 1, 1, 3]))
    vcpu = vm.create_vcpu(0)
    vcpu.set_debug(breakpoints=[2])
    for round_ in range(3):
        assert vcpu.run() == Exit(ExitKind.DEBUG, 2, info=(3, 0, 0))
        assert vcpu.read_registers(["acc"]) == {"acc": 3 * round_ + 2}
    vcpu.set_debug(single_step=True)
    assert [vcpu.run().address for _ in range(3)] == [3, 0, 1]
    vcpu.close()


def test_vcpu_limits() -> None:
    vm = make(b"")
    vcpu = vm.create_vcpu(3)
    with pytest.raises(HypervisorError, match="exists"):
        vm.create_vcpu(3)
    for index in (-1, 64):
        with pytest.raises(HypervisorError):
            vm.create_vcpu(index)
    vcpu.close()
    vm.create_vcpu(3).close()
    vm.close()
    with pytest.raises(StateError):
        vm.create_vcpu(0)


def test_state_of_another_isa_is_refused() -> None:
    from rift_core.testing.fake_x86_64 import X86_64

    vm = make(b"")
    state = vm.create_vcpu(0).save()
    binding = Binding("fake", "x86_64", implementation=X86_64())
    other = fakes.rift_create_vm(fakes.FakeConfig(), VmSpec("x86_64", binding, CpuFeatures())).create_vcpu(0)
    with pytest.raises(HypervisorError, match="accumulator"):
        other.restore(state)


class TestFaultInjecting:
    def test_chosen_call_fails_once(self) -> None:
        faults = FaultInjecting(fakes, "create_vcpu", after=1)
        vm = make(b"", faults)
        vm.create_vcpu(0)
        assert not faults.fired
        with pytest.raises(HypervisorError, match="create_vcpu"):
            vm.create_vcpu(1)
        assert faults.fired
        vm.create_vcpu(1)

    def test_calls_of_vcpus(self) -> None:
        faults = FaultInjecting(fakes, "run", error=HypervisorError("KVM_RUN", 14))
        vcpu = make(b"\0", faults).create_vcpu(0)
        with pytest.raises(HypervisorError, match="KVM_RUN"):
            vcpu.run()
        assert vcpu.run().kind is ExitKind.HALT

    def test_failing_creation(self) -> None:
        with pytest.raises(HypervisorError, match="create_vm"):
            make(b"", FaultInjecting(fakes, "create_vm"))

    def test_in_place_of_the_installed_backend(self) -> None:
        module = ModuleType("backend")
        module.rift_create_vm = fakes.rift_create_vm  # type: ignore[attr-defined]
        with FaultInjecting(module, "map_memory") as faults, pytest.raises(HypervisorError):
            make(b"", module)
        assert faults.fired
        make(b"", module)
        assert module.rift_create_vm is fakes.rift_create_vm

    def test_is_the_same_plugin(self) -> None:
        faults = FaultInjecting(fakes, "run")
        assert faults.rift_plugin() == fakes.rift_plugin()
        assert faults.rift_binding("fake", "x86_64") is not None
        assert faults.rift_binding("fake", "vax") is None

    def test_unknown_call(self) -> None:
        with pytest.raises(ValueError, match="create_vcpu"):
            FaultInjecting(fakes, "create_cpu")

    def test_calls_are_methods(self) -> None:
        for name in CALLS - {"create_vm"}:
            assert hasattr(fakes.FakeVm, name) or hasattr(fakes.FakeVCpu, name)
