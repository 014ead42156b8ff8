"""Builds ``rift_kvm._native``: the headers are the cdef, minus their preprocessor lines.

The instruction set's own files are chosen by the platform that the extension is built for, which is not this machine's
when cross-compiling.
"""

import sysconfig
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"  # relative when run by setup.py: setuptools refuses absolute sources
COMMON = ["kvm.c", "kvm_ahead.c", "kvm_control.c", "kvm_host.c", "kvm_run.c", "kvm_vm.c", "rift_dispatch.c"]
ISA = {
    "x86_64": [
        "kvm_x86_64.c",
        "kvm_x86_64_exits.c",
        "kvm_x86_64_groups.c",
        "kvm_x86_64_reset.c",
        "kvm_x86_64_registers.c",
        "rift_xsave.c",
    ],
    "aarch64": [
        "kvm_aarch64.c",
        "kvm_aarch64_calls.c",
        "kvm_aarch64_exits.c",
        "kvm_aarch64_faults.c",
        "kvm_aarch64_halt.c",
        "kvm_aarch64_registers.c",
        "kvm_aarch64_state.c",
    ],
}


def declarations(header: str) -> str:
    """A header without its preprocessor lines."""
    lines = (NATIVE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef("".join(declarations(header) for header in ("rift_abi.h", "kvm_binding.h", "kvm.h")))
ffibuilder.set_source(
    "rift_kvm._native",
    '#include "kvm.h"',
    sources=[str(NATIVE / name) for name in COMMON + ISA[sysconfig.get_platform().removeprefix("linux-")]],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    include_dirs=[str(NATIVE)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
)
