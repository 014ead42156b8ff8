"""What macOS says of itself, and of the process."""

from __future__ import annotations

import ctypes
import sys

ENTITLEMENT = "com.apple.security.hypervisor"


def is_macos() -> bool:
    """Whether this is macOS."""
    return sys.platform == "darwin"


def sysctl(name: str) -> int | None:
    """A number of sysctl(3), or None where there is none of that name."""
    if not is_macos():
        return None
    libc = ctypes.CDLL(None)
    value = ctypes.c_int64(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    if libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return value.value


def why_unsupported() -> tuple[str, str] | None:
    """Reason and remedy where the hypervisor cannot work for this process, as far as the system tells; else None."""
    if sysctl("sysctl.proc_translated") == 1:
        return (
            "this Python is an Intel program under Rosetta, where Hypervisor.framework does not work",
            "use an arm64 Python: recreate .venv with one (`file $(which python3)` says what a Python is)",
        )
    if sysctl("kern.hv_support"):
        return None
    if sysctl("kern.hv_vmm_present") == 1:
        return (
            "this macOS is itself a virtual machine, which gets no hypervisor (kern.hv_support is not 1)",
            "run Rift on the Mac itself, or use the emulator: --backend emulator",
        )
    return (
        "this Mac has no hardware support for virtual machines (kern.hv_support is not 1)",
        "Apple silicon has it, and Intel Macs since 2010; use the emulator: --backend emulator",
    )
