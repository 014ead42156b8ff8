"""Settings that loaders of executable files share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rift_core.plugin import Section

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _number(value: object) -> object:
    """Accept ``"0x..."`` (TOML has no integer above 2**63 - 1) and ``"64GiB"`` beside plain integers."""
    if not isinstance(value, str):
        return value
    for unit, size in _UNITS.items():
        if value.endswith(unit):
            return int(value.removesuffix(unit)) * size
    return int(value, 0)


PageAddress = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=1 << 64, multiple_of=0x1000)]
"""A guest-virtual address, a multiple of 4096: a number, or a string such as ``"0xffffffff80000000"``."""


class FileLoaderSection(Section):
    """What every loader of files can be told."""

    map_file: bool | Literal["auto"] = Field(
        default="auto",
        description='Map the file privately (true) or copy it into memory (false). "auto" maps files of 1 MiB and '
        "more. A file that is truncated while it is mapped ends the process by SIGBUS: copy files that others "
        "may write to.",
    )
    max_memory: Annotated[int, BeforeValidator(_number), Field(gt=0, lt=1 << 64)] = Field(
        default=64 << 30, description="Refuse files whose segments take more bytes than this in the guest."
    )
