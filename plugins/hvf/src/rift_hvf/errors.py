"""From a failed native call to its exception: the only place."""

from __future__ import annotations

import errno
import os
from typing import Any

from rift_core.errors import HypervisorError
from rift_hvf._native import ffi, lib

# hv_error.h of the macOS 11.0 SDK; 0xfae94008 is HV_EXISTS on arm64 and HV_FAULT on x86-64
HV_ERROR = 0xFAE9_4001
HV_BUSY = 0xFAE9_4002
HV_BAD_ARGUMENT = 0xFAE9_4003
HV_DENIED = 0xFAE9_4007
HV_UNSUPPORTED = 0xFAE9_400F
NAMES = {
    HV_ERROR: "HV_ERROR",
    HV_BUSY: "HV_BUSY",
    HV_BAD_ARGUMENT: "HV_BAD_ARGUMENT",
    0xFAE9_4004: "HV_ILLEGAL_GUEST_STATE",
    0xFAE9_4005: "HV_NO_RESOURCES",
    0xFAE9_4006: "HV_NO_DEVICE",
    HV_DENIED: "HV_DENIED",
    0xFAE9_4008: "HV_EXISTS or HV_FAULT",
    HV_UNSUPPORTED: "HV_UNSUPPORTED",
}

_HINTS = {
    ("hv_vm_create", errno.EBUSY): "macOS gives a process one virtual machine: close the other machine first",
    ("hv_vm_create", errno.EAGAIN): "threads of the process still hold vCPUs of its last machine: let them end first",
    ("hv_vm_create", HV_BUSY): "another library in this process has made a virtual machine, and macOS gives one only",
    ("hv_vm_create", HV_DENIED): "this Python is not signed for the hypervisor: run `rift macos-sign`",
    ("hv_vm_create", HV_UNSUPPORTED): "see `rift doctor`",
    ("native exit handler", errno.EPROTO): "it returned something that is not a verdict",
}


def code_of(error: Any) -> int:
    """An errno, or the framework's code as an unsigned number, which is how its header writes it."""
    code = int(error.code)
    return code & 0xFFFF_FFFF if code < 0 else code


def raise_error(error: Any, hint: str = "") -> None:
    """Raise the ``HypervisorError`` that a ``struct rift_error`` describes."""
    operation = ffi.string(error.operation).decode()
    code = code_of(error)
    hint = hint or _HINTS.get((operation, code), "")
    if code >= HV_ERROR:
        raise HypervisorError(operation, code, f"{NAMES.get(code, 'unknown code')} ({code:#x})", hint)
    raise HypervisorError(operation, code, f"{os.strerror(code)} (errno {code})", hint)


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


__all__ = ["check", "code_of", "ffi", "lib", "new_error", "raise_error"]
