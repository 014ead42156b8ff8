"""Whether the emulator works here, and what it can do: everything but the engine is the same everywhere."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rift_core.backend import Check, CpuFeatures, Limits, ProbeResult
from rift_core.errors import HypervisorError
from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rift_emulator import EmulatorConfig

GPA_BITS = 40
"""Bits of guest-physical address of the engine's x86-64 CPU (TCG_PHYS_ADDR_BITS); its AArch64 CPU has 44."""

SLOTS = 512
"""The engine aborts the process at 4,096 sections of memory; device pages are sections too."""

_EVERYWHERE = frozenset(
    {
        "debug_hw_breakpoint",
        "debug_hw_breakpoint_user",
        "debug_single_step",
        "debug_single_step_user",
        "debug_sw_breakpoint",
        "debug_sw_breakpoint_user",
        "debug_watchpoint",
        "debug_watchpoint_user",
        "hypercall_exit",
        "inject_exception",
        "inject_interrupt",
        "multiple_vms",
        "profile",
        "readonly_memory",
        "save_restore",
        "user_msr_exit",
        "vector_supervisor",
    }
)
"""``parallel_vcpus`` is absent: the vCPUs of a machine run one at a time."""

CAPABILITIES = {
    "x86_64": _EVERYWHERE
    | {
        "breakpoint_vector",
        "breakpoint_vector_user",
        "software_interrupts",
        "software_interrupts_user",
        "step_vector",
        "step_vector_user",
        "syscall",
    },
    "aarch64": _EVERYWHERE | {"halt_exit"},
}

_KINDS = frozenset(
    {
        ExitKind.HALT,
        ExitKind.MMIO,
        ExitKind.HYPERCALL,
        ExitKind.SYSTEM_REGISTER,
        ExitKind.DEBUG,
        ExitKind.MEMORY_FAULT,
        ExitKind.INTERRUPTED,
        ExitKind.UNKNOWN,
    }
)
EXIT_KINDS = {
    "x86_64": _KINDS | {ExitKind.PORT_IO, ExitKind.SHUTDOWN},
    "aarch64": _KINDS | {ExitKind.POWER_OFF, ExitKind.RESET},
}

_PAGES = (0x1000, 0x20_0000, 0x4000_0000)

_X86_64 = CpuFeatures(
    page_sizes=_PAGES,
    names=frozenset(
        {
            "bmi",
            "cmpxchg16b",
            "fsgsbase",
            "la57",
            "nx",
            "popcnt",
            "rdtscp",
            "smap",
            "smep",
            "sse",
            "syscall",
            "x87",
            "xsave",
        }
    ),
    xcr0=3,
)
"""What the engine's CPU model has and carries out (a test runs each): no AVX, no PCID."""

_AARCH64 = CpuFeatures(
    page_sizes=_PAGES,
    names=frozenset({"asimd", "fp"}),
    id_registers={"id_aa64pfr0_el1": 0x2222, "id_aa64mmfr0_el1": 0x1124, "id_aa64mmfr1_el1": 0},
)
"""A Cortex-A72: Armv8.0, 44 bits of physical address, 4 and 64 KiB pages (a test compares)."""

FEATURES = {"x86_64": _X86_64, "aarch64": _AARCH64}

_results: dict[bool, ProbeResult] = {}
_lock = threading.Lock()


def capabilities_of(config: EmulatorConfig, isa: str) -> frozenset[str]:
    """What a VM of this configuration can do."""
    having = CAPABILITIES.get(isa, _EVERYWHERE)
    return having if config.system_register_exits else having - {"user_msr_exit"}


def exit_kinds_of(config: EmulatorConfig, isa: str) -> frozenset[ExitKind]:
    """Exits that can occur in a VM of this configuration."""
    kinds = EXIT_KINDS.get(isa, _KINDS)
    return kinds if config.system_register_exits else kinds - {ExitKind.SYSTEM_REGISTER}


def probe(config: EmulatorConfig) -> ProbeResult:
    """Whether the engine is installed and is the one that this backend knows. Never raises."""
    with _lock:
        known = _results.get(config.system_register_exits)
        if known is None:
            known = _probe(config)
            if known.available:
                _results[config.system_register_exits] = known
        return known


def _unavailable(reason: str, remedy: str, checks: tuple[Check, ...] = ()) -> ProbeResult:
    return ProbeResult(False, reason, remedy, checks=(*checks, Check("engine", "fail", reason, remedy)))


def _probe(config: EmulatorConfig) -> ProbeResult:
    from rift_emulator import ISAS

    try:
        from rift_emulator import engine
        from rift_emulator.vm import learn_binding
    except ImportError as missing_module:
        return _unavailable(f"rift_emulator._native cannot be loaded: {missing_module}", "reinstall riftvm-emulator")
    remedy = 'install the engine: pip install "unicorn>=2.1.2,<2.2"'
    try:
        version = engine.load()
    except HypervisorError as failure:
        return _unavailable(str(failure), remedy)
    found = Check("engine", "pass", f"Unicorn {'.'.join(map(str, version))}, {engine.library_path()}")
    try:
        for isa in ISAS:
            learn_binding(isa)
    except HypervisorError as failure:
        return _unavailable(str(failure), remedy, (found,))
    checks = (
        found,
        Check(
            "isolation",
            "warn",
            "an emulator is no security boundary: hostile code has crashed the engine",
            "run untrusted guests on a hypervisor, or in a process of their own",
        ),
    )

    def result(isa: str, by_isa: Mapping[str, ProbeResult]) -> ProbeResult:
        capabilities = capabilities_of(config, isa)
        return ProbeResult(
            True,
            "a software CPU, on any host",
            isas=ISAS,
            limits=Limits(gpa_bits=GPA_BITS, max_slots=SLOTS, max_vcpus=64, max_vms=500),
            features=FEATURES[isa],
            capabilities=capabilities,
            exit_kinds=exit_kinds_of(config, isa),
            machine="emulator" if isa == "x86_64" else f"emulator-{isa}",
            emulated=True,
            checks=(*checks, Check("features", "pass", ", ".join(sorted(capabilities)))),
            by_isa=by_isa,
        )

    return result("x86_64", {isa: result(isa, {}) for isa in ISAS[1:]})
