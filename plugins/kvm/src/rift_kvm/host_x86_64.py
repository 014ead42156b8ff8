"""The probe's part for x86-64."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from rift_core.exits import ExitKind
from rift_kvm.host import EXIT_KINDS, Host
from rift_kvm.measure import Measured
from rift_kvm.measure_x86_64 import measure

if TYPE_CHECKING:
    from rift_kvm import KvmConfig

PVM_GPA_BITS = 46
"""kvm_pvm takes guest-physical addresses below 2^46 only."""

_SOFTWARE_CPU = "QEMU TCG CPU"
"""How the brand string of QEMU's software CPUs begins (QEMU: target/i386/cpu.c, models max and base)."""


def machine(measured: Measured) -> str:
    """Which module serves the device: what is loaded, and where that cannot be seen, how it behaves.

    Software interrupts in ring 0 never work on kvm_pvm, and always on the others.
    """
    loaded = [name for name in ("pvm", "amd", "intel") if os.path.isdir(f"/sys/module/kvm_{name}")]
    if "software_interrupts" not in measured.capabilities and (loaded == [] or "pvm" in loaded):
        return "kvm-pvm"
    cpu = _first_cpu()
    flags = cpu.get("flags", "").split()
    if "intel" in loaded and "amd" not in loaded:
        return "kvm-vmx"
    if ("amd" in loaded and "intel" not in loaded) or "svm" in flags:
        return "kvm-svm-emulated" if cpu.get("model name", "").startswith(_SOFTWARE_CPU) else "kvm-svm"
    return "kvm-vmx" if "vmx" in flags else "kvm-unknown"


def _first_cpu() -> dict[str, str]:
    """What /proc/cpuinfo says of the first CPU; empty where it cannot be read."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read().partition("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def gpa_bits(config: KvmConfig, machine: str) -> int:
    """CPUID leaf 0x8000_0008, EAX 7:0 (Intel SDM volume 2, CPUID), of what KVM supports."""
    from rift_kvm.vm import description, host_binding

    bits = 36  # of a CPU without the leaf
    table = description(config.device, host_binding())
    for offset in range(8, len(table) - 39, 40):  # struct kvm_cpuid2: nent, padding, entries of 40 bytes
        function, _, _, eax = struct.unpack_from("<4I", table, offset)
        if function == 0x8000_0008:
            bits = eax & 0xFF
    return min(bits, PVM_GPA_BITS) if machine == "kvm-pvm" else bits


HOST = Host(
    isa="x86_64",
    required={"KVM_CAP_USER_MEMORY": 3, "KVM_CAP_IMMEDIATE_EXIT": 136, "KVM_CAP_XSAVE": 55, "KVM_CAP_XCRS": 56},
    exit_kinds=EXIT_KINDS | {ExitKind.HALT, ExitKind.PORT_IO, ExitKind.SHUTDOWN},
    optional_kinds={
        ExitKind.SYSTEM_REGISTER: ("user_msr_exit",),
        ExitKind.MEMORY_FAULT: ("memory_fault_exit",),
        ExitKind.DEBUG: ("debug_single_step", "debug_hw_breakpoint", "debug_sw_breakpoint", "debug_watchpoint"),
    },
    reserved=(
        range(0xFEE0_0000, 0xFEE0_1000),  # the local APIC's page (Intel SDM volume 3, 10.4.1)
        range(0xFFFB_C000, 0xFFFC_0000),  # identity map and TSS of older VT-x (KVM_SET_IDENTITY_MAP_ADDR, api.rst 4.40)
    ),
    assumed=Measured(page_sizes=(0x1000, 0x20_0000), xcr0=3),
    measure=measure,
    machine=machine,
    gpa_bits=gpa_bits,
    remedies={"kvm-pvm": "without VT-x or SVM, ring 0 is interpreted: keep it small, or use ring 3"},
    level="ring 0",
)
