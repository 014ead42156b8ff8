"""From a failed native call to its exception: the only place."""

from __future__ import annotations

import errno
from typing import Any

from rift_core.errors import HypervisorError
from rift_kvm._native import ffi, lib

_HINTS = {
    ("KVM_CREATE_VCPU", errno.EEXIST): "KVM frees no vCPU before its VM",
    ("sigaction", errno.EBUSY): "somebody else in this process uses the signal: set kick_signal in [backend]",
    ("KVM_RUN", errno.EIO): "the vCPU belongs to another process",
    ("native exit handler", errno.EPROTO): "it returned something that is not a verdict",
}


def raise_error(error: Any, hint: str = "") -> None:
    """Raise the ``HypervisorError`` that a ``struct rift_error`` describes."""
    operation = ffi.string(error.operation).decode()
    raise HypervisorError(operation, error.code, hint=hint or _HINTS.get((operation, error.code), ""))


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
