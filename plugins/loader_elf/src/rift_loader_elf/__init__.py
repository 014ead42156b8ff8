"""The ELF loader: ELF64 executables for x86-64 and AArch64, fixed (ET_EXEC) or static-PIE (ET_DYN).

Importing this module loads neither pyelftools nor the native piece; the hook does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.loader_config import FileLoaderSection, PageAddress
from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

__all__ = ["ElfConfig", "rift_load_binary", "rift_plugin"]


class ElfConfig(FileLoaderSection):
    """Settings of the ELF loader."""

    base: PageAddress | None = Field(
        default=None,
        description="Guest-virtual address of a position-independent file's first page. Default: 0x400000, or where "
        "the file was linked if that is not 0. Files linked at fixed addresses (ET_EXEC) ignore it.",
    )


@hookimpl
def rift_plugin() -> PluginInfo:
    """The visiting card."""
    return PluginInfo("loader", "elf", "ELF64 executables for x86-64 and AArch64: fixed or static-PIE", ElfConfig)


@hookimpl
def rift_load_binary(path: Path, config: Section) -> Binary | None:
    """Load an ELF file; None if the file is not ELF."""
    from rift_loader_elf.loader import load

    return load(path, config if isinstance(config, ElfConfig) else ElfConfig())
