"""Builds ``rift_emulator._native``: the headers are the cdef, minus their preprocessor lines."""

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"  # relative when run by setup.py: setuptools refuses absolute sources
SOURCES = [
    "unicorn_engine.c",
    "emulator_clock.c",
    "emulator_code.c",
    "emulator_control.c",
    "emulator_debug.c",
    "emulator_device.c",
    "emulator_host.c",
    "emulator_layout.c",
    "emulator_profile.c",
    "emulator_run.c",
    "emulator_turn.c",
    "emulator_vcpu.c",
    "emulator_vm.c",
    "emulator_aarch64.c",
    "emulator_aarch64_calls.c",
    "emulator_aarch64_exceptions.c",
    "emulator_aarch64_layout.c",
    "emulator_aarch64_memory.c",
    "emulator_aarch64_registers.c",
    "emulator_aarch64_state.c",
    "emulator_aarch64_traps.c",
    "emulator_x86_64.c",
    "emulator_x86_64_delivery.c",
    "emulator_x86_64_hooks.c",
    "emulator_x86_64_image.c",
    "emulator_x86_64_intercepts.c",
    "emulator_x86_64_layout.c",
    "emulator_x86_64_memory.c",
    "emulator_x86_64_ports.c",
    "emulator_x86_64_registers.c",
    "emulator_x86_64_syscall.c",
    "rift_dispatch.c",
]


def declarations(header: str) -> str:
    """A header without its preprocessor lines."""
    lines = (NATIVE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef("".join(declarations(header) for header in ("rift_abi.h", "emulator_binding.h", "emulator.h")))
ffibuilder.set_source(
    "rift_emulator._native",
    '#include "emulator.h"',
    sources=[str(NATIVE / name) for name in SOURCES],
    depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
    include_dirs=[str(NATIVE)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-pthread"],
)
