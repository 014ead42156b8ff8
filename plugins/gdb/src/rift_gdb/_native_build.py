"""cffi build script: the headers are the cdef, less # lines. Paths stay relative: setuptools wants that."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"
HEADERS = ("rift_abi.h", "gdb.h")
SOURCES = ("answers.c", "connection.c", "frame.c")


def declarations(name: str) -> str:
    lines = (NATIVE / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef("\n".join(declarations(name) for name in HEADERS))
ffibuilder.set_source(
    "rift_gdb._native",
    "\n".join(f'#include "{name}"' for name in HEADERS),
    sources=[str(NATIVE / name) for name in SOURCES],
    include_dirs=[str(NATIVE)],
    depends=[str(NATIVE / name) for name in (*HEADERS, "gdb_internal.h")],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
