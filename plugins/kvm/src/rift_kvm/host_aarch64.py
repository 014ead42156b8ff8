"""The probe's part for AArch64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.exits import ExitKind
from rift_kvm.host import EXIT_KINDS, Host
from rift_kvm.measure import Measured
from rift_kvm.measure_aarch64 import measure

if TYPE_CHECKING:
    from rift_kvm import KvmConfig

_VM_IPA_SIZE = 165
"""KVM_CAP_ARM_VM_IPA_SIZE (include/uapi/linux/kvm.h)."""

DEFAULT_GPA_BITS = 40
"""Where a kernel cannot choose: Documentation/virt/kvm/api.rst, 4.2 KVM_CREATE_VM."""


def machine(measured: Measured) -> str:
    """KVM behaves alike in its modes (VHE, nVHE), and does not tell a user which one it is in."""
    return "kvm-arm"


def gpa_bits(config: KvmConfig, machine: str) -> int:
    """What KVM can give a VM at most."""
    from rift_kvm.errors import check, lib, new_error

    error = new_error()
    device = check(lib.rift_kvm_device_open(config.device.encode(), error), error)
    try:
        bits = check(lib.rift_kvm_device_extension(device, _VM_IPA_SIZE, error), error)
    finally:
        lib.rift_kvm_device_close(device)
    return bits or DEFAULT_GPA_BITS


HOST = Host(
    isa="aarch64",
    required={
        "KVM_CAP_USER_MEMORY": 3,
        "KVM_CAP_IMMEDIATE_EXIT": 136,
        "KVM_CAP_ONE_REG": 70,
        "KVM_CAP_ARM_PSCI_0_2": 102,
    },
    exit_kinds=EXIT_KINDS | {ExitKind.POWER_OFF, ExitKind.RESET},
    optional_kinds={
        ExitKind.HALT: ("halt_exit",),
        ExitKind.HYPERCALL: ("hypercall_exit",),
        ExitKind.MEMORY_FAULT: ("memory_fault_exit",),
        ExitKind.DEBUG: ("debug_single_step", "debug_hw_breakpoint", "debug_sw_breakpoint", "debug_watchpoint"),
    },
    reserved=(),
    assumed=Measured(page_sizes=(0x1000, 0x20_0000, 0x4000_0000)),
    measure=measure,
    machine=machine,
    gpa_bits=gpa_bits,
    remedies={},
    level="EL1",
)
