"""Builds ``rift_hvf._native``: the headers are the cdef, minus their preprocessor lines.

Both bindings are always compiled: nothing is linked against the framework, and which binding is used follows from
the framework that is opened. So the same sources are tested on Linux, over stand-ins for the framework.
"""

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"  # relative when run by setup.py: setuptools refuses absolute sources


def declarations(header: str) -> str:
    """A header without its preprocessor lines."""
    lines = (NATIVE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef("".join(declarations(header) for header in ("rift_abi.h", "hvf_binding.h", "hvf.h")))
ffibuilder.set_source(
    "rift_hvf._native",
    '#include "hvf.h"',
    sources=[str(path) for path in sorted(NATIVE.glob("*.c"))],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    include_dirs=[str(NATIVE)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
)
