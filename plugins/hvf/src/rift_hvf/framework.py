"""The opened framework: one object for each path, for the life of the process."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from rift_core.errors import HypervisorError
from rift_core.register_batches import RegisterTable
from rift_hvf.errors import check, ffi, lib, new_error

_MESSAGE_BYTES = 1024


@dataclass(frozen=True)
class Framework:
    """A library that exports the framework's functions, and the binding for its ISA."""

    path: str
    native: Any
    binding: Any
    isa: str
    registers: RegisterTable

    def has(self, function: str) -> bool:
        """Whether it exports a function."""
        return bool(lib.rift_hvf_framework_has(self.native, function.encode()))

    def limits(self) -> Any:
        """A ``struct rift_hvf_limits``.

        :raises HypervisorError: the framework does not tell them.
        """
        limits, error = ffi.new("struct rift_hvf_limits *"), new_error()
        check(lib.rift_hvf_limits(self.native, limits, error), error)
        return limits


_opened: dict[str, Framework] = {}
_lock = threading.Lock()


def open_framework(path: str) -> Framework:
    """The framework at ``path``.

    :raises HypervisorError: it cannot be loaded, or lacks functions that every macOS since 11 has.
    """
    with _lock:
        framework = _opened.get(path)
        if framework is None:
            framework = _opened[path] = _open(path)
        return framework


def _open(path: str) -> Framework:
    message = ffi.new("char[]", _MESSAGE_BYTES)
    native = lib.rift_hvf_framework_open(path.encode(), message, _MESSAGE_BYTES)
    if native == ffi.NULL:
        raise HypervisorError("dlopen", 0, f"{path}: {ffi.string(message).decode(errors='replace')}")
    binding = lib.rift_hvf_framework_binding(native)
    table = RegisterTable(ffi, binding.registers, binding.register_count)
    return Framework(path, native, binding, ffi.string(binding.isa).decode(), table)
