"""The fake backend: virtual machines that are interpreted in Python, for tests on any host.

It keeps the whole contract of :mod:`rift_core.backend` and nothing of a hypervisor's speed: some
50,000 instructions a second. What it interprets is the business of its bindings; ``fake/x86_64`` is
built in, and any distribution may bring another (see :class:`FakeBinding`).
"""

from __future__ import annotations

import errno
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rift_core.backend import Binding, CpuFeatures, Limits, ProbeResult
from rift_core.errors import AddressError, HypervisorError, StateError
from rift_core.exits import ExitKind
from rift_core.plugin import PluginInfo, Section, hookimpl
from rift_core.testing.fake_memory import PhysicalMemory
from rift_core.testing.fake_vcpu import FakeBinding, FakeVCpu

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from rift_core.backend import VmSpec
    from rift_core.exits import ExitHandler
    from rift_core.memory import Gpa, MemoryRegion
    from rift_core.testing.fake_native import NativeTable

__all__ = ["FakeBinding", "FakeConfig", "FakeVCpu", "FakeVm", "capabilities_of", "exit_kinds_of", "probe"]

GPA_BITS = 46
MAX_SLOTS = 64
MAX_VCPUS = 64

_CAPABILITIES = frozenset(
    {"parallel_vcpus", "multiple_vms", "readonly_memory", "debug_single_step", "debug_hw_breakpoint", "save_restore"}
)
"""What the backend adds whatever the ISA; a binding with ``inject`` adds ``inject_exception``."""

_BASE_KINDS = frozenset({ExitKind.MMIO, ExitKind.DEBUG, ExitKind.INTERRUPTED})


class FakeVm:
    """A virtual machine of the fake backend: see :class:`rift_core.backend.Vm`."""

    def __init__(self, spec: VmSpec) -> None:
        interpreter = spec.binding.implementation
        if interpreter is None:
            raise HypervisorError("create_vm", errno.EINVAL, f"binding fake/{spec.isa} has no implementation")
        self.isa = spec.isa
        self.interpreter: FakeBinding = interpreter  # type: ignore[assignment]
        self.memory = PhysicalMemory(GPA_BITS, MAX_SLOTS)
        self.natives: NativeTable | None = None
        self._max_vcpus = min(spec.max_vcpus, MAX_VCPUS)
        self._vcpus: dict[int, FakeVCpu] = {}
        self._closed = False

    @property
    def capabilities(self) -> frozenset[str]:
        return capabilities_of(self.interpreter)

    @property
    def exit_kinds(self) -> frozenset[ExitKind]:
        return exit_kinds_of(self.interpreter)

    def map_memory(self, region: MemoryRegion) -> None:
        self._check_open()
        self.memory.add(region)

    def unmap_memory(self, guest_address: Gpa) -> None:
        self._check_open()
        try:
            self.memory.remove(guest_address)
        except AddressError as error:
            raise HypervisorError("unmap_memory", errno.ENOENT, str(error)) from error

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        self.flush_translations()

    def flush_translations(self) -> None:
        for vcpu in list(self._vcpus.values()):
            vcpu.drop_translations()

    def atomic(self) -> AbstractContextManager[None]:
        return nullcontext()

    def install(self, handler: ExitHandler) -> None:
        self._check_open()
        if handler.native is None:
            return
        if self.natives is None:
            try:
                from rift_core.testing.fake_native import NativeTable
            except ImportError:
                return  # without cffi the exits come to the handler's Python half
            self.natives = NativeTable()
        self.natives.add(handler)

    def create_vcpu(self, index: int) -> FakeVCpu:
        self._check_open()
        if not 0 <= index < self._max_vcpus:
            raise HypervisorError("create_vcpu", errno.EINVAL, f"index {index} is not below {self._max_vcpus}")
        if index in self._vcpus:
            raise HypervisorError("create_vcpu", errno.EEXIST, f"vCPU {index} exists")
        vcpu = self._vcpus[index] = FakeVCpu(self, index)
        return vcpu

    def forget(self, vcpu: FakeVCpu) -> None:
        """The vCPU was closed."""
        self._vcpus.pop(vcpu.index, None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._vcpus.clear()
        self.memory.clear()
        self.natives = None

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the virtual machine is closed")


def capabilities_of(interpreter: FakeBinding) -> frozenset[str]:
    """Capabilities of the fake backend with this binding."""
    own: frozenset[str] = getattr(interpreter, "capabilities", frozenset())
    injects = {"inject_exception"} if hasattr(interpreter, "inject") else set()
    return _CAPABILITIES | own | injects


def exit_kinds_of(interpreter: FakeBinding) -> frozenset[ExitKind]:
    """Exits that can occur with this binding."""
    own: frozenset[ExitKind] = getattr(interpreter, "exit_kinds", frozenset())
    return _BASE_KINDS | own


class FakeConfig(Section):
    """``[backend] name = "fake"`` has no keys."""


def probe(config: Section) -> ProbeResult:
    """Always available."""
    from rift_core.testing.fake_x86_64 import FEATURES, X86_64

    interpreter = X86_64()
    return ProbeResult(
        available=True,
        reason="interpreted in Python: works everywhere, for tests",
        limits=Limits(gpa_bits=GPA_BITS, max_slots=MAX_SLOTS, max_vcpus=MAX_VCPUS, max_vms=1 << 16),
        features=CpuFeatures(page_sizes=(0x1000, 0x20_0000, 0x4000_0000), names=FEATURES),
        capabilities=capabilities_of(interpreter),
        exit_kinds=exit_kinds_of(interpreter),
        machine="fake",
    )


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    return (
        PluginInfo("backend", "fake", "Interprets a subset of the guest ISA in Python, for tests", FakeConfig, probe),
        PluginInfo("binding", "fake/x86_64", "x86-64 for the fake backend: long mode, integer instructions"),
    )


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    if (backend, isa) != ("fake", "x86_64"):
        return None
    from rift_core.testing.fake_x86_64 import X86_64

    return Binding(backend, isa, implementation=X86_64())


@hookimpl
def rift_create_vm(config: Section, spec: VmSpec) -> FakeVm:
    return FakeVm(spec)
