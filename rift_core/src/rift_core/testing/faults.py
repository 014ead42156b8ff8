"""Fault injection: a backend that fails at a chosen call, to drive every clean-up path."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from rift_core.errors import HypervisorError
from rift_core.hooks import Hooks
from rift_core.plugin import PluginInfo, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import Binding, Vm, VmSpec
    from rift_core.plugin import Section

CALLS = frozenset(
    {
        "create_vm",
        "map_memory",
        "unmap_memory",
        "code_changed",
        "flush_translations",
        "install",
        "create_vcpu",
        "read_registers",
        "write_registers",
        "run",
        "inject_exception",
        "inject_interrupt",
        "set_debug",
        "save",
        "restore",
        "park",
        "adopt",
    }
)
"""Where a fault can be injected: the methods of ``Vm`` and ``VCpu`` that may fail, and ``create_vm``."""


class FaultInjecting:
    """A backend plugin that behaves like ``backend`` but for one call.

    It can be registered in place of ``backend``; or, as a context manager, it makes every VM of ``backend``
    that is created in the ``with`` block fail::

        with FaultInjecting(fakes, fail_at="create_vcpu") as fault, pytest.raises(HypervisorError):
            open_machine(code=..., backend="fake").thread("main").start().join()
        assert fault.fired

    :param backend: the plugin's module.
    :param fail_at: the call, one of :data:`CALLS`.
    :param after: how many calls succeed before the one that fails; later ones succeed again.
    :param error: what it raises instead of doing anything; ``HypervisorError(fail_at, EIO)`` unless given.
    """

    def __init__(self, backend: Any, fail_at: str, after: int = 0, error: Exception | None = None) -> None:
        if fail_at not in CALLS:
            raise ValueError(f"fail_at {fail_at!r} is none of {', '.join(sorted(CALLS))}")
        self._backend = backend
        self._create_vm = backend.rift_create_vm
        self._fail_at = fail_at
        self._left = after
        self._error = error
        self.fired = False

    @hookimpl
    def rift_plugin(self) -> PluginInfo | Sequence[PluginInfo]:
        declared: PluginInfo | Sequence[PluginInfo] = self._backend.rift_plugin()
        return declared

    @hookimpl
    def rift_binding(self, backend: str, isa: str) -> Binding | None:
        bind = getattr(self._backend, "rift_binding", None)
        return bind(backend, isa) if bind is not None else None

    @hookimpl
    def rift_create_vm(self, config: Section, spec: VmSpec) -> Vm | None:
        self.check("create_vm")
        vm = self._create_vm(config, spec)
        return _Proxy(vm, self) if vm is not None else None

    def check(self, call: str) -> None:
        """Fail if this is the call."""
        if call != self._fail_at or self.fired:
            return
        if self._left > 0:
            self._left -= 1
            return
        self.fired = True
        raise self._error if self._error is not None else HypervisorError(call, errno.EIO, hint="injected")

    def __enter__(self) -> FaultInjecting:
        self._backend.rift_create_vm = self.rift_create_vm
        Hooks.for_modules.cache_clear()  # a hook that was registered before keeps the function of that time
        return self

    def __exit__(self, *_: object) -> None:
        self._backend.rift_create_vm = self._create_vm
        Hooks.for_modules.cache_clear()


class _Proxy:
    """A ``Vm`` or ``VCpu`` whose calls pass the check first."""

    def __init__(self, target: Any, faults: FaultInjecting) -> None:
        self._target = target
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name not in CALLS:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._faults.check(name)
            result = value(*args, **kwargs)
            return _Proxy(result, self._faults) if name == "create_vcpu" else result

        return call
