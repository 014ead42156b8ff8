"""The AArch64 ISA: registers, page tables, entry state, calling convention, faults.

Sources: "Arm ARM" is Arm's Architecture Reference Manual for A-profile (DDI 0487), "AAPCS64" the procedure call
standard (IHI 0055).

Importing the package loads no native code: the hooks do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_aarch64.config import Aarch64Config
from rift_core.plugin import PluginInfo, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import CpuFeatures
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa
    from rift_core.memory import AddressSpace, Mapping, MemoryRegion
    from rift_core.plugin import Section

__all__ = ["Aarch64Config"]


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo(
        kind="isa", name="aarch64", summary="AArch64: EL1 and EL0, 4 KiB and 16 KiB granules", config=Aarch64Config
    )


@hookimpl
def rift_isa(config: Section, features: CpuFeatures) -> Isa | None:
    if not isinstance(config, Aarch64Config):
        return None
    from rift_aarch64.instruction_set import Aarch64

    return Aarch64(config, features)


@hookimpl
def rift_configure_mmu(
    isa: Isa, mappings: Sequence[Mapping], tables: MemoryRegion, memory: GuestMemory
) -> AddressSpace | None:
    from rift_aarch64.instruction_set import Aarch64

    if not isinstance(isa, Aarch64):
        return None
    from rift_aarch64.address_space import PageTables

    space = PageTables(isa.geometry, memory)
    space.add_tables(tables)
    space.map_all(mappings)
    return space
