"""A made-up ISA and its binding for the fake backend: two plugins of one distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.backend import Binding
from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.backend import CpuFeatures
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa
    from rift_core.memory import AddressSpace, Mapping, MemoryRegion


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    """The visiting cards."""
    return (
        PluginInfo("isa", "toy", "A made-up instruction set"),
        PluginInfo("binding", "fake/toy", "The toy ISA on the fake backend"),
    )


@hookimpl
def rift_isa(config: Section, features: CpuFeatures) -> Isa:
    """The ISA object."""
    from rift_toy_isa.instruction_set import Toy

    return Toy()


@hookimpl
def rift_configure_mmu(
    isa: Isa, mappings: Sequence[Mapping], tables: MemoryRegion, memory: GuestMemory
) -> AddressSpace | None:
    """The page table."""
    from rift_toy_isa.page_table import PageTable

    if isa.name != "toy":
        return None
    table = PageTable(memory)
    table.add_tables(tables)
    table.map_all(mappings)
    return table


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    """The interpreter, for the fake backend only."""
    if (backend, isa) != ("fake", "toy"):
        return None
    from rift_toy_isa.interpreter import Interpreter

    return Binding(backend, isa, implementation=Interpreter())
