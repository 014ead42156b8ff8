"""The Mach-O loader: 64-bit executables, bundles and firmware images for x86-64 and arm64, thin and universal.

Importing this module loads neither macholib nor the native piece; the hook does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.loader_config import FileLoaderSection, PageAddress
from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

__all__ = ["MachoConfig", "rift_load_binary", "rift_plugin"]


class MachoConfig(FileLoaderSection):
    """Settings of the Mach-O loader."""

    base: PageAddress | None = Field(
        default=None,
        description="Guest-virtual address of a position-independent file's first page. Default: where the file was "
        "linked, or 0x400000 if that is 0, as it is in bundles. Files linked at fixed addresses ignore it.",
    )


@hookimpl
def rift_plugin() -> PluginInfo:
    """The visiting card."""
    summary = "64-bit Mach-O for x86-64 and arm64: executables, bundles, firmware images, universal files"
    return PluginInfo("loader", "macho", summary, MachoConfig)


@hookimpl
def rift_load_binary(path: Path, config: Section, isa: str) -> Binary | None:
    """Load a Mach-O file; None if the file is not Mach-O."""
    from rift_loader_macho.loader import load

    return load(path, config if isinstance(config, MachoConfig) else MachoConfig(), isa)
