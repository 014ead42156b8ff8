"""Page tables for 1 GiB in 4 KiB pages beside the plain C loop that writes the same entries."""

from __future__ import annotations

import ctypes
import time

from benchmarks.pairs import Result, compare
from benchmarks.twin import library, twin_mappings
from rift_core.backend import CpuFeatures
from rift_core.catalog import Catalog
from rift_core.guest_memory import GuestMemory
from rift_core.hooks import Hooks
from rift_core.host_memory import HostMemory
from rift_core.memory import Gpa, Gva, Mapping, MemoryRegion, Permission

GIB = 1 << 30
TABLES = 0x30_0000
READ_WRITE = Permission.READ | Permission.WRITE


def tables(pairs: int) -> Result:
    """262,144 entries; the memory of the tables is touched before."""
    entry = Catalog.installed().get("isa", "x86_64")
    hooks = Hooks.for_modules((entry.module,))
    isa = hooks.isa(entry.info.config(), CpuFeatures())
    host = HostMemory(TABLES, "tables")
    host.view[:] = bytes(TABLES)
    memory = GuestMemory()
    region = MemoryRegion(Gpa(0), host.view, READ_WRITE, "tables")
    memory.add(region)
    wanted = [Mapping(Gva(GIB), Gpa(GIB), GIB, READ_WRITE, largest_page=0x1000)]
    plain = twin_mappings(wanted)
    empty = bytes(TABLES)

    def clear() -> None:
        host.view[:] = empty

    def ours() -> float:
        clear()
        begin = time.perf_counter()
        hooks.configure_mmu(isa, wanted, region, memory)
        return time.perf_counter() - begin

    def bare() -> float:
        clear()
        begin = time.perf_counter()
        library().twin_tables(ctypes.c_void_p(host.address), 0, 0, plain, 1)
        return time.perf_counter() - begin

    return compare("tables", "page tables for 1 GiB in 4 KiB pages", ours, bare, pairs=pairs, promise="<= 2")
