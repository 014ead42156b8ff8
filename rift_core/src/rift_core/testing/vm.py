"""A backend's VM with no machine around it: how the kits for backends and CPUs make one, and run its vCPUs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pluggy

from rift_core import hookspecs
from rift_core.backend import VmSpec
from rift_core.exits import Exit, ExitKind
from rift_core.plugin import PROJECT
from rift_core.testing.tools import plugin_info, plugin_module, probe_backend

if TYPE_CHECKING:
    from rift_core.backend import VCpu, Vm

SECONDS = 30.0
"""No guest of a test needs a tenth of this."""


def plugins_of(backend: object, isa: str, *more: object) -> pluggy.PluginManager:
    """A backend's module, whoever has its binding for ``isa``, and ``more``, registered.

    :raises LookupError: nobody has the binding.
    """
    name, _ = probe_backend(backend)
    own = plugin_info(backend, "binding", f"{name}/{isa}") is not None
    binding = backend if own else plugin_module("binding", f"{name}/{isa}")
    if binding is None:
        raise LookupError(f"no binding {name}/{isa} is installed")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for module in dict.fromkeys((backend, *more, binding)):
        manager.register(module)
    return manager


def open_vm(manager: pluggy.PluginManager, backend: object, isa: str, max_vcpus: int) -> Vm:
    """A VM of a backend among ``manager``'s plugins, with its default configuration."""
    name, probe = probe_backend(backend)
    info = plugin_info(backend, "backend")
    section = info.config() if info is not None else None
    binding = manager.hook.rift_binding(backend=name, isa=isa)
    spec = VmSpec(isa, binding, probe.for_isa(isa).features, max_vcpus=max_vcpus)
    vm: Vm = manager.hook.rift_create_vm(config=section, spec=spec)
    return vm


def run_to_exit(vcpu: VCpu, reply: int | None = None) -> Exit:
    """Run until an exit; a stray interruption is passed over, and one that ends a guest that hangs is returned."""
    timer = threading.Timer(SECONDS, vcpu.kick)
    timer.daemon = True
    timer.start()
    try:
        while True:
            exit = vcpu.run(reply)
            if exit.kind is not ExitKind.INTERRUPTED or not timer.is_alive():
                return exit
            reply = None
    finally:
        timer.cancel()
