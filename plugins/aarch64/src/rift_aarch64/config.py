"""Settings of the AArch64 ISA: the ``[isa]`` table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rift_core.plugin import Section

PAGE_SIZES = {"4KiB": 0x1000, "16KiB": 0x4000, "2MiB": 0x20_0000, "32MiB": 0x200_0000, "1GiB": 0x4000_0000}


class Aarch64Config(Section):
    """What can be chosen about the guest's CPU state."""

    granule: Literal["auto", "4KiB", "16KiB"] = Field(
        default="auto", description="Smallest page of the guest's page tables; auto: the smallest that the CPU has."
    )
    largest_page: Literal["4KiB", "16KiB", "2MiB", "32MiB", "1GiB"] = Field(
        default="1GiB",
        description="Largest page of the guest's page tables; what the granule and the CPU have also holds.",
    )
    contiguous: bool = Field(
        default=False,
        description="Mark runs of pages that one TLB entry can hold (64 KiB, 32 MiB; 2 MiB, 1 GiB with the 16 KiB "
        "granule). Accessed and dirty bits are then those of the whole run.",
    )
