"""Settings of the x86-64 ISA: the ``[isa]`` table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rift_core.plugin import Section

PAGE_SIZES = {"4KiB": 0x1000, "2MiB": 0x20_0000, "1GiB": 0x4000_0000}


class X86_64Config(Section):  # noqa: N801 - the ISA's name
    """What can be chosen about the guest's CPU state."""

    largest_page: Literal["4KiB", "2MiB", "1GiB"] = Field(
        default="1GiB", description="Largest page of the guest's page tables; the CPU's own limit also holds."
    )
    smap: bool = Field(
        default=False,
        description="Set CR4.SMAP where the CPU has it: the supervisor reaches user pages only between STAC and CLAC.",
    )
