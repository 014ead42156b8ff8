"""The KVM backend: hook implementations and settings. The native module is loaded when a hook needs it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import Binding, ProbeResult, Vm, VmSpec

_KICK_SIGNAL = signal.SIGRTMIN + 6 if sys.platform == "linux" else 40
"""A real-time signal that no well-known library claims; glibc keeps the two below SIGRTMIN for itself."""


class KvmConfig(Section):
    """``[backend] name = "kvm"``."""

    device: str = Field(default="/dev/kvm", description="The device file.")
    kick_signal: int = Field(
        default=_KICK_SIGNAL,
        ge=1,
        le=64,
        description="Signal that makes a vCPU leave the guest; nobody else in the process may use it.",
    )

    @field_validator("kick_signal")
    @classmethod
    def _can_be_handled(cls, number: int) -> int:
        if number not in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            raise ValueError(f"signal {number} cannot be handled by a process; a real-time signal is best (34 to 64)")
        return number

    system_register_exits: bool = Field(
        default=True,
        description="Whether accesses to MSRs that KVM does not know are exits; else they are #GP in the guest.",
    )
    measure: bool = Field(
        default=True,
        description="Whether the probe runs guest code once per boot to learn what works; else it assumes the least.",
    )


def get_include() -> str:
    """Folder of ``kvm_binding.h``, for distributions that bring a binding for another ISA."""
    return str(Path(__file__).parent / "native")


def _probe(config: Section) -> ProbeResult:
    from rift_kvm.probe import probe

    return probe(config if isinstance(config, KvmConfig) else KvmConfig())


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    """A backend, and its bindings: KVM runs guests of the host's own ISA, so that one of them is compiled in."""
    return (
        PluginInfo("backend", "kvm", "Linux KVM", KvmConfig, _probe),
        PluginInfo("binding", "kvm/x86_64", "x86-64 guests on KVM, on x86-64 hosts"),
        PluginInfo("binding", "kvm/aarch64", "AArch64 guests on KVM, on AArch64 hosts"),
    )


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    """The binding that is compiled in: the one for this machine's own CPU.

    :raises PluginUnavailableError: it is the other one.
    """
    from rift_kvm.host import ISAS, host_isa

    if backend != "kvm" or isa not in ISAS.values():
        return None
    if isa != host_isa():
        from rift_core.errors import PluginUnavailableError

        raise PluginUnavailableError(
            f"binding kvm/{isa}: KVM runs guests of its host's own ISA, which is {host_isa() or 'another'} here: "
            f"use an {isa} machine, or another backend"
        )
    from rift_kvm.vm import host_binding

    return host_binding()


@hookimpl
def rift_create_vm(config: Section, spec: VmSpec) -> Vm | None:
    """A VM for the ISA of ``spec.binding``."""
    from rift_kvm.vm import create_vm

    return create_vm(config if isinstance(config, KvmConfig) else KvmConfig(), spec)
