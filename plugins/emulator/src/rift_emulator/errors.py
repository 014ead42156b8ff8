"""From a failed native call to its exception: the only place."""

from __future__ import annotations

from typing import Any

from rift_core.errors import HypervisorError
from rift_emulator._native import ffi, lib

_HINTS = {
    ("native exit handler", 71): "it returned something that is not a verdict",  # EPROTO
}


def raise_error(error: Any, hint: str = "") -> None:
    """Raise the ``HypervisorError`` that a ``struct rift_error`` describes."""
    operation = ffi.string(error.operation).decode()
    code = int(error.code)
    if code < 0:  # the engine's own number
        text = ffi.string(lib.rift_emulator_engine_message(code)).decode()
        raise HypervisorError(operation, 0, hint="; ".join(part for part in (text, hint) if part))
    raise HypervisorError(operation, code, hint=hint or _HINTS.get((operation, code), ""))


def check(status: int, error: Any, hint: str = "") -> int:
    """``status``, unless it is negative.

    :raises HypervisorError: the call failed; ``error`` says how.
    """
    if status < 0:
        raise_error(error, hint)
    return status


def new_error() -> Any:
    """An empty ``struct rift_error``."""
    return ffi.new("struct rift_error *")


__all__ = ["check", "ffi", "lib", "new_error", "raise_error"]
