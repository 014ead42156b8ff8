"""Rift's core: assemble a machine from plugins and run guest threads in it.

Names are imported when first used, so that ``rift --help`` and plugin discovery stay fast.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rift_core.backend import Binding, Check, CpuFeatures, Limits, ProbeResult, VCpu, Vm, VmSpec, Watchpoint
    from rift_core.binary import Binary, Segment, Symbol, SymbolTable
    from rift_core.build_target import BuildError
    from rift_core.config import MachineConfig, load_config
    from rift_core.errors import (
        AddressError,
        BinaryError,
        ConfigError,
        ForkedMachineError,
        GuestCrashError,
        GuestError,
        GuestExitError,
        GuestFaultError,
        HypervisorError,
        LimitError,
        MappingError,
        PluginConflictError,
        PluginError,
        PluginLoadError,
        PluginNotFoundError,
        PluginUnavailableError,
        ReentrancyError,
        RiftError,
        StateError,
        SymbolNotFoundError,
        UnhandledExitError,
        UnsupportedError,
    )
    from rift_core.exits import Exit, ExitHandler, ExitKind, ExitResult, Fault, NativeHandler, Resume, Stop
    from rift_core.host_memory import aligned_buffer
    from rift_core.machine import Machine, open_machine
    from rift_core.memory import AddressSpace, Caching, Gpa, Gva, Mapping, MemoryRegion, Permission, Walk
    from rift_core.plugin import PluginInfo, Section, hookimpl
    from rift_core.sharing import Share
    from rift_core.thread import Thread

__version__ = "0.1.0"

_PLACES = {
    "backend": "Binding Check CpuFeatures Limits ProbeResult VCpu Vm VmSpec Watchpoint",
    "binary": "Binary Segment Symbol SymbolTable",
    "build_target": "BuildError",
    "config": "MachineConfig load_config",
    "errors": (
        "AddressError BinaryError ConfigError ForkedMachineError GuestCrashError GuestError GuestExitError "
        "GuestFaultError HypervisorError LimitError MappingError PluginConflictError PluginError PluginLoadError "
        "PluginNotFoundError PluginUnavailableError ReentrancyError RiftError StateError SymbolNotFoundError "
        "UnhandledExitError UnsupportedError"
    ),
    "exits": "Exit ExitHandler ExitKind ExitResult Fault NativeHandler Resume Stop",
    "host_memory": "aligned_buffer",
    "machine": "Machine open_machine",
    "memory": "AddressSpace Caching Gpa Gva Mapping MemoryRegion Permission Walk",
    "plugin": "PluginInfo Section hookimpl",
    "sharing": "Share",
    "thread": "Thread",
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names.split()}

# Written out, because type checkers read it: a name that is not here is not exported for them.
__all__ = [
    "Binding", "Check", "CpuFeatures", "Limits", "ProbeResult", "VCpu", "Vm", "VmSpec", "Watchpoint", "Binary",
    "Segment", "Symbol", "SymbolTable", "MachineConfig", "load_config", "AddressError", "BinaryError", "BuildError",
    "ConfigError", "ForkedMachineError", "GuestCrashError", "GuestError", "GuestExitError", "GuestFaultError",
    "HypervisorError", "LimitError", "MappingError", "PluginConflictError", "PluginError", "PluginLoadError",
    "PluginNotFoundError", "PluginUnavailableError", "ReentrancyError", "RiftError", "StateError",
    "SymbolNotFoundError", "UnhandledExitError", "UnsupportedError", "Exit", "ExitHandler", "ExitKind",
    "ExitResult", "Fault", "NativeHandler", "Resume", "Stop", "aligned_buffer", "Machine", "open_machine",
    "AddressSpace", "Caching", "Gpa", "Gva", "Mapping", "MemoryRegion", "Permission", "Walk", "PluginInfo",
    "Section", "hookimpl", "Share", "Thread", "get_include",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'rift_core' has no attribute {name!r}")
    value = getattr(import_module(f"rift_core.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def get_include() -> str:
    """The folder of ``rift_abi.h`` and ``rift_dispatch.h``, for plugins that compile against them."""
    return str(Path(__file__).parent / "include")
