"""The C twin, compiled into a temporary folder and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rift_kvm
from rift_core import get_include

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rift_core import memory
    from rift_core.machine import Machine

HERE = Path(__file__).parent

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=default")
"""As the native pieces of the plugins are compiled."""

READ_WRITE_FLAGS = 0x1 | 0x2 | 0x20 | 0x40
"""Present, writable, accessed, dirty (SDM volume 3, 4.5.4): what a data page's entry holds."""


class TwinMapping(ctypes.Structure):
    """``struct twin_mapping``."""

    _fields_ = (
        ("virtual_address", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("page", ctypes.c_uint64),
    )


STATE = ("cr3", "cr0", "cr4", "efer", "gdtr.base", "idtr.base", "tr.base", "xcr0")
"""Registers that make up ``struct twin_state``, in its order."""


class TwinState(ctypes.Structure):
    """``struct twin_state``."""

    _fields_ = tuple((name.replace(".", "_"), ctypes.c_uint64) for name in STATE)

    @classmethod
    def of(cls, registers: Mapping[str, int]) -> TwinState:
        """From what Rift has set."""
        return cls(*(registers[name] for name in STATE))


class TwinPart(ctypes.Structure):
    """``struct twin_part``."""

    _fields_ = (("offset", ctypes.c_uint64), ("size", ctypes.c_uint64), ("physical", ctypes.c_uint64))


class TwinPlan(ctypes.Structure):
    """``struct twin_plan``."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("parts", ctypes.POINTER(TwinPart)),
        ("part_count", ctypes.c_size_t),
        ("mappings", ctypes.POINTER(TwinMapping)),
        ("mapping_count", ctypes.c_size_t),
        ("ram_gpa", ctypes.c_uint64),
        ("ram_size", ctypes.c_uint64),
        ("tables", ctypes.c_uint64),
        ("state", TwinState),
        ("entry", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
    )


class Counter(ctypes.Structure):
    """``struct twin_counter``."""

    _fields_ = (("count", ctypes.c_uint64), ("limit", ctypes.c_uint64))


@cache
def library() -> Any:
    """The compiled twin."""
    target = Path(tempfile.mkdtemp(prefix="rift-twin-")) / "twin.so"
    compiler = os.environ.get("CC", "gcc")
    includes = [f"-I{get_include()}", f"-I{rift_kvm.get_include()}"]
    sources = [HERE / "twin.c", HERE / "binding.c"]
    subprocess.run([compiler, *FLAGS, "-shared", "-fPIC", *includes, "-o", target, *sources], check=True)
    loaded = ctypes.CDLL(str(target))
    u64, pointer = ctypes.c_uint64, ctypes.c_void_p
    loaded.twin_open.restype = pointer
    loaded.twin_close.argtypes = [pointer]
    loaded.twin_map.argtypes = [pointer, ctypes.c_uint32, u64, u64, u64, ctypes.c_int]
    loaded.twin_vcpu.argtypes = [pointer, ctypes.POINTER(TwinState)]
    loaded.twin_set.argtypes = [pointer, *[u64] * 4]
    loaded.twin_run.argtypes = [pointer]
    loaded.twin_exits.argtypes = [pointer, u64]
    loaded.twin_exits.restype = u64
    loaded.twin_calls.argtypes = [pointer, *[u64] * 5]
    loaded.twin_calls.restype = u64
    loaded.twin_tables.argtypes = [pointer, u64, u64, ctypes.POINTER(TwinMapping), ctypes.c_size_t]
    loaded.twin_tables.restype = None
    loaded.twin_start.argtypes = [ctypes.POINTER(TwinPlan)]
    loaded.twin_start.restype = u64
    loaded.twin_binding.restype = ctypes.c_size_t
    loaded.twin_plain_loop.argtypes = [u64, ctypes.c_size_t, pointer]
    loaded.twin_plain_loop.restype = u64
    return loaded


@cache
def engine_library() -> Any:
    """The bare engine's twin, which needs no KVM."""
    target = Path(tempfile.mkdtemp(prefix="rift-twin-")) / "engine.so"
    compiler = os.environ.get("CC", "gcc")
    source = HERE / "unicorn_twin.c"
    subprocess.run([compiler, *FLAGS, "-shared", "-fPIC", "-o", target, source], check=True)
    loaded = ctypes.CDLL(str(target))
    u64, pointer = ctypes.c_uint64, ctypes.c_void_p
    loaded.twin_engine_open.argtypes = [ctypes.c_char_p, u64, pointer, *[u64] * 5]
    loaded.twin_engine_open.restype = pointer
    loaded.twin_engine_close.argtypes = [pointer]
    for name in ("twin_engine_run", "twin_engine_halts", "twin_engine_ports"):
        getattr(loaded, name).argtypes = [pointer, u64, u64]
        getattr(loaded, name).restype = u64
    return loaded


@cache
def tables_library() -> Any:
    """The plain loop over AArch64's page tables."""
    target = Path(tempfile.mkdtemp(prefix="rift-twin-")) / "tables.so"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, *FLAGS, "-shared", "-fPIC", "-o", target, HERE / "tables_aarch64.c"], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.twin_tables_aarch64.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.POINTER(TwinMapping)]
    loaded.twin_tables_aarch64.restype = None
    return loaded


@cache
def debugger_library() -> Any:
    """Both ends of the debugger's protocol."""
    target = Path(tempfile.mkdtemp(prefix="rift-twin-")) / "debugger.so"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, *FLAGS, "-pthread", "-shared", "-fPIC", "-o", target, HERE / "debugger.c"], check=True)
    loaded = ctypes.CDLL(str(target))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    loaded.debugger_serve.argtypes = [ctypes.c_int, ctypes.c_char_p, size]
    loaded.debugger_serve.restype = pointer
    loaded.debugger_join.argtypes = [pointer]
    loaded.debugger_join.restype = None
    loaded.debugger_ask.argtypes = [ctypes.c_int, ctypes.c_char_p, size, ctypes.c_char_p, size]
    loaded.debugger_ask.restype = size
    loaded.debugger_packets.argtypes = [ctypes.c_int, ctypes.c_char_p, size, ctypes.c_int, size]
    loaded.debugger_packets.restype = ctypes.c_uint64
    return loaded


def function_address(name: str) -> int:
    """Where one of the twin's functions is, for Rift to call."""
    return ctypes.cast(getattr(library(), name), ctypes.c_void_p).value or 0


def twin_mappings(mappings: Iterable[memory.Mapping]) -> Any:
    """The same mappings for ``twin_tables``."""
    items = [
        TwinMapping(m.virtual, m.physical, m.size, READ_WRITE_FLAGS, m.largest_page or 0x20_0000) for m in mappings
    ]
    return (TwinMapping * len(items))(*items)


class TwinOf:
    """A bare VM over the very memory of a Rift machine, with one vCPU in the state of the machine's own."""

    def __init__(self, machine: Machine, state: dict[str, int]) -> None:
        from rift_core.host_memory import buffer_address

        self.library = library()
        self.handle = self.library.twin_open()
        for slot, region in enumerate(machine.memory.regions):
            self.library.twin_map(self.handle, slot, region.guest_address, region.size, buffer_address(region.host), 0)
        self._keep = machine
        if self.library.twin_vcpu(self.handle, TwinState.of(state)) < 0:
            raise OSError("the twin's vCPU cannot be made")

    def close(self) -> None:
        """Release the VM."""
        self.library.twin_close(self.handle)
