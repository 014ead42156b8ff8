"""The emulator backend: hook implementations and settings. The native module is loaded when a hook needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import Binding, ProbeResult, Vm, VmSpec

ISAS = ("x86_64", "aarch64")
"""Guest ISAs whose binding is compiled in."""


class EmulatorConfig(Section):
    """``[backend] name = "emulator"``."""

    system_register_exits: bool = Field(
        default=True,
        description="Whether accesses to MSRs that the emulated CPU does not know are exits; else they are #GP in "
        "the guest.",
    )
    code_buffer: int = Field(
        default=32 << 20,
        ge=1 << 20,
        le=1 << 30,
        description="Bytes of address space for translated code in each vCPU; taken as they are needed.",
    )


def get_include() -> str:
    """Folder of ``emulator_binding.h``, for distributions that bring a binding for another ISA."""
    return str(Path(__file__).parent / "native")


def _probe(config: Section) -> ProbeResult:
    from rift_emulator.probe import probe

    return probe(config if isinstance(config, EmulatorConfig) else EmulatorConfig())


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    """A backend, and its bindings."""
    bindings = (PluginInfo("binding", f"emulator/{isa}", f"{isa} guests on the emulator") for isa in ISAS)
    return (
        PluginInfo("backend", "emulator", "Software CPU (Unicorn engine)", EmulatorConfig, _probe),
        *bindings,
    )


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    """A binding that is compiled in."""
    if backend != "emulator" or isa not in ISAS:
        return None
    from rift_emulator.vm import builtin_binding

    return builtin_binding(isa)


@hookimpl
def rift_create_vm(config: Section, spec: VmSpec) -> Vm | None:
    """A VM for the ISA of ``spec.binding``."""
    from rift_emulator.vm import EmulatorVm

    return EmulatorVm(config if isinstance(config, EmulatorConfig) else EmulatorConfig(), spec.binding)
