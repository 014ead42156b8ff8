"""Page tables for 1 GiB in the smallest pages beside the plain C loop that writes the same entries."""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING

from benchmarks.pairs import Result, compare
from benchmarks.twin import TwinMapping, library, tables_library, twin_mappings
from rift_core.backend import CpuFeatures
from rift_core.catalog import Catalog
from rift_core.guest_memory import GuestMemory
from rift_core.hooks import Hooks
from rift_core.host_memory import HostMemory
from rift_core.memory import Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1 << 30
TABLES = 0x30_0000
READ_WRITE = Permission.READ | Permission.WRITE
AARCH64_READ_WRITE = 0b11 | 3 << 8 | 1 << 10 | 1 << 11 | 1 << 53 | 1 << 54
"""What a data page's entry holds: valid page, inner shareable, accessed, not global, PXN, UXN (Arm ARM, "Translation
table descriptor formats")."""


def _measure(name: str, isa_name: str, features: CpuFeatures, bare: Callable[[HostMemory], None], pairs: int) -> Result:
    """1 GiB in the smallest pages; the memory of the tables is touched before."""
    entry = Catalog.installed().get("isa", isa_name)
    hooks = Hooks.for_modules((entry.module,))
    isa = hooks.isa(entry.info.config(), features)
    page = isa.page_sizes[0]
    host = HostMemory(TABLES, "tables")
    memory = GuestMemory()
    region = MemoryRegion(Gpa(0), host.view, READ_WRITE, "tables")
    memory.add(region)
    wanted = [Mapping(Gva(GIB), Gpa(GIB), GIB, READ_WRITE, largest_page=page)]
    empty = bytes(TABLES)

    def timed(build: Callable[[], object]) -> float:
        host.view[:] = empty
        begin = time.perf_counter()
        build()
        return time.perf_counter() - begin

    def ours() -> float:
        return timed(lambda: hooks.configure_mmu(isa, wanted, region, memory))

    def plain() -> float:
        return timed(lambda: bare(host))

    what = f"page tables for 1 GiB in {format_size(page)} pages ({isa_name})"
    return compare(name, what, ours, plain, pairs=pairs, promise="<= 2")


def tables(pairs: int) -> Result:
    """x86-64: 262,144 entries."""
    mapping = [Mapping(Gva(GIB), Gpa(GIB), GIB, READ_WRITE, largest_page=0x1000)]
    plain = twin_mappings(mapping)

    def bare(host: HostMemory) -> None:
        library().twin_tables(ctypes.c_void_p(host.address), 0, 0, plain, 1)

    return _measure("tables", "x86_64", CpuFeatures(), bare, pairs)


def _aarch64(name: str, page_bits: int, features: CpuFeatures, pairs: int) -> Result:
    plain = TwinMapping(GIB, GIB, GIB, AARCH64_READ_WRITE, 1 << page_bits)

    def bare(host: HostMemory) -> None:
        tables_library().twin_tables_aarch64(host.address, page_bits, ctypes.byref(plain))

    return _measure(name, "aarch64", features, bare, pairs)


def tables_aarch64(pairs: int) -> Result:
    """AArch64, 4 KiB granule: 262,144 entries."""
    return _aarch64("tables_aarch64", 12, CpuFeatures(), pairs)


def tables_aarch64_16k(pairs: int) -> Result:
    """AArch64, 16 KiB granule: 65,536 entries."""
    return _aarch64("tables_aarch64_16k", 14, CpuFeatures(page_sizes=(0x4000, 0x200_0000)), pairs)
