"""The HVF backend: hook implementations and settings. The native module is loaded when a hook needs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import Binding, ProbeResult, Vm, VmSpec

_SYSTEM_PATH = "/System/Library/Frameworks/Hypervisor.framework/Hypervisor"
"""Where macOS has it. No file is there since macOS 11: the dynamic linker knows the path from its cache."""


class HvfConfig(Section):
    """``[backend] name = "hvf"``."""

    framework: str | None = Field(
        default=None,
        description="Path of the framework's library; by default RIFT_HVF_FRAMEWORK, or else the system's.",
    )
    address_bits: int | None = Field(
        default=None,
        ge=32,
        le=52,
        description="Bits of guest-physical addresses; by default what macOS gives, which is 36 on Apple silicon.",
    )
    system_register_exits: bool = Field(
        default=True,
        description="Whether accesses to unknown system registers are exits; else the guest gets an exception.",
    )
    measure: bool = Field(
        default=True,
        description="Whether the probe runs guest code once a process to learn what works; else it assumes the least.",
    )

    @property
    def path(self) -> str:
        """The library to open."""
        return self.framework or os.environ.get("RIFT_HVF_FRAMEWORK") or _SYSTEM_PATH

    @property
    def is_system(self) -> bool:
        """Whether that is macOS's own."""
        return self.path == _SYSTEM_PATH


def _probe(config: Section) -> ProbeResult:
    from rift_hvf.probe import probe

    return probe(config if isinstance(config, HvfConfig) else HvfConfig())


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    """A backend, and its two bindings."""
    return (
        PluginInfo("backend", "hvf", "macOS Hypervisor.framework", HvfConfig, _probe),
        PluginInfo("binding", "hvf/x86_64", "x86-64 guests on Hypervisor.framework of Intel Macs"),
        PluginInfo("binding", "hvf/aarch64", "AArch64 guests on Hypervisor.framework of Apple silicon"),
    )


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    """One of the two bindings, which are compiled in."""
    if backend != "hvf" or isa not in ("x86_64", "aarch64"):
        return None
    from rift_hvf.vm import make_binding

    return make_binding(isa)


@hookimpl
def rift_create_vm(config: Section, spec: VmSpec) -> Vm | None:
    """The VM, for the ISA of ``spec.binding``."""
    from rift_hvf.vm import create_vm

    return create_vm(config if isinstance(config, HvfConfig) else HvfConfig(), spec)
