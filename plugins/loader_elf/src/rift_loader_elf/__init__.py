"""The ELF loader: ELF64 executables for x86-64 and AArch64, fixed (ET_EXEC) or static-PIE (ET_DYN).

Importing this module loads neither pyelftools nor the native piece; the hook does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.binary import Binary

__all__ = ["ElfConfig", "rift_load_binary", "rift_plugin"]

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _number(value: object) -> object:
    """Accept ``"0x..."`` (TOML has no integer above 2**63 - 1) and ``"64GiB"`` beside plain integers."""
    if not isinstance(value, str):
        return value
    for unit, size in _UNITS.items():
        if value.endswith(unit):
            return int(value.removesuffix(unit)) * size
    return int(value, 0)


class ElfConfig(Section):
    """Settings of the ELF loader."""

    base: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=1 << 64, multiple_of=0x1000)] | None = Field(
        default=None,
        description="Guest-virtual address of a position-independent file's first page. Default: 0x400000, or where "
        "the file was linked if that is not 0. Files linked at fixed addresses (ET_EXEC) ignore it.",
    )
    map_file: bool | Literal["auto"] = Field(
        default="auto",
        description='Map the file privately (true) or copy it into memory (false). "auto" maps files of 1 MiB and '
        "more. A file that is truncated while it is mapped ends the process by SIGBUS: copy files that others "
        "may write to.",
    )
    max_memory: Annotated[int, BeforeValidator(_number), Field(gt=0, lt=1 << 64)] = Field(
        default=64 << 30, description="Refuse files whose segments take more bytes than this in the guest."
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
