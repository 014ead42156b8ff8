"""Whether Hypervisor.framework works here, and how well.

What the system says (platform, Rosetta, hardware) comes first; then a virtual machine is made, which is the only
real test, and small guests are run in it (:mod:`rift_hvf.measure`), once a process.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from rift_core.backend import Check, CpuFeatures, Limits, ProbeResult
from rift_core.errors import HypervisorError
from rift_core.exits import ExitKind
from rift_hvf.system import ENTITLEMENT, is_macos, why_unsupported

if TYPE_CHECKING:
    from rift_hvf import HvfConfig
    from rift_hvf.framework import Framework
    from rift_hvf.measure import Guest, Measured
    from rift_hvf.vm import HvfVm

_ALWAYS = frozenset({"parallel_vcpus", "save_restore"})
_MAX_SLOTS = 512
"""The framework names no limit on regions; layouts need a few dozen."""

_APIC_WINDOW = range(0xFEE0_0000, 0xFEE0_1000)
"""The local APIC's page (Intel SDM volume 3, 10.4.1), which guests expect to be no memory."""

_EXIT_KINDS = frozenset({ExitKind.HALT, ExitKind.MMIO, ExitKind.FAIL_ENTRY, ExitKind.INTERRUPTED, ExitKind.UNKNOWN})
_KINDS_OF_ISA = {
    "x86_64": frozenset({ExitKind.PORT_IO, ExitKind.SHUTDOWN, ExitKind.MEMORY_FAULT}),
    "aarch64": frozenset({ExitKind.HYPERCALL, ExitKind.POWER_OFF, ExitKind.RESET, ExitKind.MEMORY_FAULT}),
}
_OPTIONAL_KINDS = {
    ExitKind.SYSTEM_REGISTER: ("user_msr_exit",),
    ExitKind.HYPERCALL: ("hypercall_exit",),
    ExitKind.DEBUG: ("debug_single_step", "debug_hw_breakpoint", "debug_sw_breakpoint", "debug_watchpoint"),
}

_results: dict[tuple[object, ...], ProbeResult] = {}
_lock = threading.Lock()


def probe(config: HvfConfig) -> ProbeResult:
    """What works here; remembered in the process once it is available. Never raises."""
    key = (config.path, config.address_bits, config.measure, config.system_register_exits)
    known = _results.get(key)
    if known is not None:
        return known
    with _lock:
        result = _results.get(key)
        if result is None:
            result = _probe(config)
            if result.available:
                _results[key] = result
        return result


def _failed(checks: list[Check], name: str, reason: str, remedy: str) -> ProbeResult:
    return ProbeResult(False, reason, remedy, checks=(*checks, Check(name, "fail", reason, remedy)))


def _probe(config: HvfConfig) -> ProbeResult:
    checks: list[Check] = []
    if config.is_system:
        if not is_macos():
            return _failed(
                checks,
                "platform",
                "Hypervisor.framework is a part of macOS",
                "use another backend here: kvm or emulator",
            )
        checks.append(Check("platform", "pass", "macOS"))
        problem = why_unsupported()
        if problem is not None:
            return _failed(checks, "hardware", *problem)
        checks.append(Check("hardware", "pass", "kern.hv_support = 1"))
    try:
        from rift_hvf.framework import open_framework
    except ImportError as missing_module:
        reason = f"rift_hvf._native cannot be loaded: {missing_module}"
        return _failed(checks, "native module", reason, "reinstall riftvm-hvf")
    try:
        framework = open_framework(config.path)
    except HypervisorError as failure:
        remedy = "" if config.is_system else "set framework in [backend], or RIFT_HVF_FRAMEWORK"
        return _failed(checks, "framework", f"the framework cannot be opened: {failure}", remedy)
    checks.append(Check("framework", "pass", f"{config.path} ({framework.isa})"))
    return _with_framework(config, framework, checks)


def _with_framework(config: HvfConfig, framework: Framework, checks: list[Check]) -> ProbeResult:
    from rift_hvf.vm import HvfVm

    try:
        limits = _limits(config, framework)
        vm = HvfVm(
            config,
            framework,
            page_size=limits.page_size,
            gpa_bits=limits.gpa_bits,
            capabilities=_wanted(config, framework.isa),
            exit_kinds=_EXIT_KINDS,
        )
    except HypervisorError as failure:
        reason, remedy = why_no_vm(failure)
        return _failed(checks, "virtual machine", reason, remedy)
    try:
        measured = _experiments(config, framework.isa, vm)
    except HypervisorError as failure:
        return _failed(checks, "guest code", f"a virtual machine can be made, but: {failure}", "")
    finally:
        vm.close()
    if measured is None:
        return _failed(checks, "guest code", "a virtual machine can be made, but not even the smallest guest runs", "")
    checks.append(Check("virtual machine", "pass", "can be made"))
    return _result(config, framework, limits, measured, checks)


def _limits(config: HvfConfig, framework: Framework) -> Limits:
    """What layouts must respect.

    :raises HypervisorError: more address bits are wanted than there are.
    """
    native = framework.limits()
    bits = native.gpa_bits if config.address_bits is None else config.address_bits
    if bits > native.most_gpa_bits:
        raise HypervisorError("hv_vm_create", 0, f"address_bits is {bits}; this machine has {native.most_gpa_bits}")
    end = 1 << bits
    reserved = {"x86_64": _APIC_WINDOW, "aarch64": range(end - native.page, end)}  # the latter for flushes
    return Limits(native.page, bits, _MAX_SLOTS, native.max_vcpus, 1, (reserved[framework.isa],))


def why_no_vm(failure: HypervisorError) -> tuple[str, str]:
    """Reason and remedy of a VM that could not be made."""
    from rift_hvf.errors import HV_BUSY, HV_DENIED, HV_UNSUPPORTED

    sign = "run `rift macos-sign`, and start Rift with the Python that it makes in the venv"
    if failure.code == HV_DENIED:
        return f"the entitlement {ENTITLEMENT} is missing: {sys.executable} is not signed with it", sign
    if failure.code == HV_UNSUPPORTED:
        return (
            f"macOS refuses virtual machines to this process: {failure}",
            f"if this Mac is no virtual machine itself, the entitlement may be missing: {sign}",
        )
    if failure.code == HV_BUSY:
        return "another library in this process has the one virtual machine that macOS gives it", "close that one"
    return f"a virtual machine cannot be made: {failure}", ""


def _guest(isa: str) -> Guest:
    if isa == "x86_64":
        from rift_hvf.guest_x86_64 import X86Guest

        return X86Guest()
    from rift_hvf.guest_aarch64 import Aarch64Guest

    return Aarch64Guest()


def _wanted(config: HvfConfig, isa: str) -> frozenset[str]:
    """What the experiments may try."""
    names = frozenset(_guest(isa).capabilities)
    return names if config.system_register_exits else names - {"user_msr_exit"}


def _experiments(config: HvfConfig, isa: str, vm: HvfVm) -> Measured | None:
    from rift_hvf.measure import Measured, measure

    if not config.measure:
        return Measured(frozenset(), frozenset(), (0x1000, 0x20_0000), 3 if isa == "x86_64" else 0)
    return measure(vm, _guest(isa))


def _result(
    config: HvfConfig, framework: Framework, limits: Limits, measured: Measured, checks: list[Check]
) -> ProbeResult:
    capabilities = measured.capabilities | _ALWAYS
    if not config.system_register_exits:
        capabilities -= {"user_msr_exit"}
    kinds = _EXIT_KINDS | _KINDS_OF_ISA[framework.isa]
    kinds |= {kind for kind, names in _OPTIONAL_KINDS.items() if capabilities.intersection(names)}
    if not config.measure:
        checks.append(Check("guest code", "warn", "not tried", "set measure = true in [backend]"))
    checks.append(Check("CPU in supervisor mode", "pass", ", ".join(sorted(measured.names)) or "only the base set"))
    checks.append(Check("features", "pass", ", ".join(sorted(capabilities))))
    return ProbeResult(
        True,
        "Hypervisor.framework is usable",
        isas=(framework.isa,),
        limits=limits,
        features=CpuFeatures(measured.page_sizes, measured.names, measured.xcr0, measured.id_registers),
        capabilities=capabilities,
        exit_kinds=kinds,
        machine=f"hvf-{framework.isa}" + ("" if is_macos() else "-stand-in"),
        checks=tuple(checks),
    )
