"""The native halves as the integers that core hands to backends."""

from __future__ import annotations

from typing import Any

from rift_core.exits import NativeHandler
from rift_handlers._native import ffi, lib


def native_handler(name: str, context: Any = None, owner: object = None) -> NativeHandler:
    """The function ``rift_handlers_<name>`` with its context; ``owner`` keeps alive what the context points to."""
    function = ffi.addressof(lib, f"rift_handlers_{name}")
    address = int(ffi.cast("uintptr_t", function))
    pointer = 0 if context is None else int(ffi.cast("uintptr_t", context))
    return NativeHandler(address, pointer, (lib, context, owner))
