"""Typed calls of the hooks: one method each, and "nobody answered" becomes an error that names who should have.

Making a plugin manager costs more than making a virtual machine, so there is one for each set of modules.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pluggy

from rift_core import hookspecs
from rift_core.errors import PluginError
from rift_core.exits import ExitHandler, Stop
from rift_core.plugin import PROJECT, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import ModuleType

    from rift_core.backend import Binding, CpuFeatures, VCpu, Vm, VmSpec
    from rift_core.binary import Binary
    from rift_core.context import Context
    from rift_core.dispatch import Dispatcher
    from rift_core.errors import RiftError
    from rift_core.exits import Exit, ExitResult
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import GuestFault, Isa
    from rift_core.memory import AddressSpace, Mapping, MemoryRegion
    from rift_core.plugin import Section
    from rift_core.thread import Thread


def name_of(module: object) -> str:
    """A plugin's name in messages: that of its module, or of the class where it is another object."""
    return str(getattr(module, "__name__", type(module).__name__))


class _Defaults:
    """Core's own implementations: the last to be asked."""

    @hookimpl(trylast=True)
    def rift_run_vcpu(self, thread: Thread, dispatcher: Dispatcher) -> Stop:
        return thread.context.loop(dispatcher)


class Hooks:
    """The hooks of one set of plugins."""

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(_Defaults(), "rift-core")
        self.modules = tuple(modules)
        try:
            for module in self.modules:
                self._manager.register(module)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"plugin {name_of(error.plugin)} implements a hook that does not exist, or otherwise: {error}"
            ) from error
        if os.environ.get("RIFT_TRACE_HOOKS") == "1":
            self._manager.add_hookcall_monitoring(_trace_before, _trace_after)
        self._bindings: dict[tuple[str, str], Binding] = {}
        hook = self._manager.hook
        self._silent = {
            name: not getattr(hook, name).get_hookimpls()
            for name in (
                "rift_thread_started",
                "rift_thread_stopped",
                "rift_machine_closing",
                "rift_exit_unanswered",
            )
        }
        self.watches_runs = bool(hook.rift_run_started.get_hookimpls() or hook.rift_run_ended.get_hookimpls())

    @staticmethod
    @lru_cache(maxsize=64)
    def for_modules(modules: tuple[ModuleType, ...]) -> Hooks:
        """The hooks of these modules; made once a process."""
        return Hooks(modules)

    def load_binary(self, path: Path, config: Section, isa: str) -> Binary | None:
        """``rift_load_binary``; None: another format."""
        binary: Binary | None = self._manager.hook.rift_load_binary(path=path, config=config, isa=isa)
        return binary

    def binding(self, backend: str, isa: str) -> Binding:
        """``rift_binding``.

        :raises PluginError: nobody joins the two.
        """
        binding: Binding | None = self._bindings.get((backend, isa))
        if binding is None:
            binding = self._manager.hook.rift_binding(backend=backend, isa=isa)
            if binding is None:
                raise PluginError(f"no binding {backend}/{isa} came from rift_binding of {self._asked()}")
            self._bindings[backend, isa] = binding
        return binding

    def isa(self, config: Section, features: CpuFeatures) -> Isa:
        """``rift_isa``.

        :raises PluginError: the plugin returned nothing.
        """
        isa: Isa | None = self._manager.hook.rift_isa(config=config, features=features)
        if isa is None:
            raise PluginError(f"no ISA came from rift_isa of {self._asked()} for settings {type(config).__name__}")
        return isa

    def create_vm(self, config: Section, spec: VmSpec) -> Vm:
        """``rift_create_vm``.

        :raises PluginError: the plugin returned nothing.
        """
        vm: Vm | None = self._manager.hook.rift_create_vm(config=config, spec=spec)
        if vm is None:
            raise PluginError(f"backend {spec.binding.backend!r}: no VM came from rift_create_vm of {self._asked()}")
        return vm

    def configure_mmu(
        self, isa: Isa, mappings: Sequence[Mapping], tables: MemoryRegion, memory: GuestMemory
    ) -> AddressSpace:
        """``rift_configure_mmu``.

        :raises PluginError: the plugin returned nothing.
        """
        space: AddressSpace | None = self._manager.hook.rift_configure_mmu(
            isa=isa, mappings=mappings, tables=tables, memory=memory
        )
        if space is None:
            raise PluginError(f"ISA {isa.name!r}: no page tables came from rift_configure_mmu of {self._asked()}")
        return space

    def exit_handlers(self, module: ModuleType, config: Section, machine: Any) -> list[ExitHandler]:
        """``rift_exit_handlers`` of one plugin.

        :raises PluginError: the plugin does not implement it, or returns something else.
        """
        found = self._only(module).rift_exit_handlers(config=config, machine=machine)
        if not found:
            raise PluginError(f"plugin {name_of(module)} declares an exit handler but gives none in rift_exit_handlers")
        made = [handler for handlers in found for handler in handlers]
        for handler in made:
            if not isinstance(handler, ExitHandler):
                raise PluginError(
                    f"plugin {name_of(module)}: rift_exit_handlers gave {type(handler).__name__}, not ExitHandler"
                )
        return made

    def machine_opened(self, module: ModuleType, machine: Any, config: Section) -> object:
        """``rift_machine_opened`` of one plugin."""
        results = self._only(module).rift_machine_opened(machine=machine, config=config)
        return results[0] if results else None

    def extended(self, module: ModuleType) -> Hooks:
        """These hooks and those of one more plugin."""
        return self if module in self.modules else Hooks.for_modules((*self.modules, module))

    def run_vcpu(self, thread: Thread, vcpu: VCpu, dispatcher: Dispatcher) -> Stop:
        """``rift_run_vcpu``."""
        stop: Stop = self._manager.hook.rift_run_vcpu(thread=thread, vcpu=vcpu, dispatcher=dispatcher)
        return stop

    def run_started(self, context: Context) -> None:
        """``rift_run_started``; asked only if ``watches_runs``."""
        self._manager.hook.rift_run_started(context=context)

    def run_ended(self, context: Context) -> None:
        """``rift_run_ended``; asked only if ``watches_runs``."""
        self._manager.hook.rift_run_ended(context=context)

    def exit_unanswered(
        self, context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
    ) -> ExitResult | None:
        """``rift_exit_unanswered``; None: the run ends."""
        if self._silent["rift_exit_unanswered"]:
            return None
        result: ExitResult | None = self._manager.hook.rift_exit_unanswered(
            context=context, exit=exit, fault=fault, describe=describe
        )
        return result

    def thread_started(self, thread: Thread) -> None:
        """``rift_thread_started``."""
        if not self._silent["rift_thread_started"]:
            self._manager.hook.rift_thread_started(thread=thread)

    def thread_stopped(self, thread: Thread, outcome: Stop | BaseException) -> None:
        """``rift_thread_stopped``."""
        if not self._silent["rift_thread_stopped"]:
            self._manager.hook.rift_thread_stopped(thread=thread, outcome=outcome)

    def machine_closing(self, machine: Any) -> None:
        """``rift_machine_closing``."""
        if not self._silent["rift_machine_closing"]:
            self._manager.hook.rift_machine_closing(machine=machine)

    def call_optional(self, name: str, **arguments: Any) -> list[Any]:
        """A hook that a plugin owns: what the others answer that implement it with ``hookimpl(optionalhook=True)``."""
        caller = getattr(self._manager.hook, name, None)
        return caller(**arguments) if caller is not None else []

    def _asked(self) -> str:
        """The plugins that were asked, for messages."""
        return ", ".join(name_of(module) for module in self.modules) or "nobody"

    def _only(self, module: ModuleType) -> pluggy.HookRelay:
        """The hooks of this plugin alone."""
        return Hooks.for_modules((module,))._manager.hook


def _trace_before(hook_name: str, hook_impls: Sequence[Any], kwargs: Any) -> None:
    names = ", ".join(impl.plugin_name for impl in hook_impls)
    print(f"rift hook {hook_name} ({', '.join(kwargs)}) -> {names}", file=sys.stderr)


def _trace_after(outcome: Any, hook_name: str, hook_impls: Sequence[Any], kwargs: Any) -> None:
    error = outcome.exception
    print(f"rift hook {hook_name}: {'raised ' + repr(error) if error else 'done'}", file=sys.stderr)
