"""cffi build script: the headers are the cdef, less their preprocessor lines. Paths stay relative for setuptools."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"
HEADERS = ("rift_abi.h", "rift_table_memory.h", "page_table.h")
SOURCES = ("rift_table_memory.c", "page_table.c", "page_table_map.c", "page_table_edit.c", "page_table_walk.c")


def declarations(name: str) -> str:
    lines = (NATIVE / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef("\n".join(declarations(name) for name in HEADERS))
ffibuilder.set_source(
    "rift_aarch64._native",
    '#include "page_table.h"',
    sources=[str(NATIVE / name) for name in SOURCES],
    include_dirs=[str(NATIVE)],
    depends=[str(NATIVE / name) for name in (*HEADERS, "page_table_internal.h")],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
