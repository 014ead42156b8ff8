"""The x86-64 ISA: registers, page tables, entry state, calling convention, faults.

Sources: "SDM" is Intel's Software Developer's Manual, "APM" AMD's Architecture Programmer's Manual,
"psABI" the System V Application Binary Interface, AMD64 supplement.

Importing the package loads no native code: the hooks do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.plugin import PluginInfo, hookimpl
from rift_x86_64.config import X86_64Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import CpuFeatures
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa
    from rift_core.memory import AddressSpace, Mapping, MemoryRegion
    from rift_core.plugin import Section

__all__ = ["X86_64Config"]


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo(kind="isa", name="x86_64", summary="x86-64: long mode, 4-level page tables", config=X86_64Config)


@hookimpl
def rift_isa(config: Section, features: CpuFeatures) -> Isa | None:
    if not isinstance(config, X86_64Config):
        return None
    from rift_x86_64.instruction_set import X86_64

    return X86_64(config, features)


@hookimpl
def rift_configure_mmu(
    isa: Isa, mappings: Sequence[Mapping], tables: MemoryRegion, memory: GuestMemory
) -> AddressSpace | None:
    from rift_x86_64.instruction_set import X86_64

    if not isinstance(isa, X86_64):
        return None
    from rift_x86_64.address_space import PageTables

    space = PageTables(isa.page_sizes[-1], memory)
    space.add_tables(tables)
    space.map_all(mappings)
    return space
