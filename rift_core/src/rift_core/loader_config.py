"""Settings that loaders of executable files share, and where they put a file that may stand anywhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from rift_core.errors import BinaryError
from rift_core.plugin import Section
from rift_core.sizes import Size  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_BASE = 0x40_0000
"""Where a position-independent file begins that is linked at 0, unless ``base`` says otherwise: the address of
traditional x86-64 executables."""

_PAGE = 0x1000
_MODULUS = 1 << 64
_HEXADECIMAL = re.compile(r"\s*0x[0-9a-f_]+\s*", re.IGNORECASE | re.ASCII)


def _address(value: object) -> object:
    """``"0xffffffff80000000"`` to a number: TOML has no integer above 2**63 - 1."""
    if not isinstance(value, str):
        return value
    if not _HEXADECIMAL.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is not an address: write a number, or a string such as 0x400000")
    return int(value, 16)


PageAddress = Annotated[
    int,
    BeforeValidator(_address),
    Field(ge=0, lt=1 << 64, multiple_of=_PAGE, strict=True),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 64, "multipleOf": _PAGE},
                {"type": "string", "pattern": r"^\s*0[xX][0-9a-fA-F_]+\s*$"},
            ]
        }
    ),
]
"""A guest-virtual address, a multiple of 4096: a number, or a string such as ``"0xffffffff80000000"``."""


class FileLoaderSection(Section):
    """What every loader of files can be told."""

    map_file: bool | Literal["auto"] = Field(
        default="auto",
        description='Map the file privately (true) or copy it into memory (false). "auto" maps files of 1 MiB and '
        "more. A file that is truncated while it is mapped ends the process by SIGBUS: copy files that others "
        "may write to.",
    )
    max_memory: Annotated[Size, Field(gt=0)] = Field(
        default=64 << 30, description="Refuse files whose segments take more bytes than this in the guest."
    )


def bias_of(path: Path, lowest: int, highest: int, alignment: int, base: int | None) -> int:
    """What is added to every address of a position-independent file, modulo 2**64.

    :param lowest: first address that the file uses; ``highest``: the one behind its last.
    :param alignment: bytes of which the result is a multiple.
    :param base: address of the file's first page; :data:`DEFAULT_BASE` if None.
    :raises BinaryError: it would reach beyond the address space.
    """
    start = DEFAULT_BASE if base is None else base
    start = -(-start // alignment) * alignment
    first = lowest // alignment * alignment
    if highest - first + start >= _MODULUS:
        raise BinaryError(
            f"{path}: the file does not fit into the address space at base {start:#x}; choose a lower one"
        )
    return (start - first) % _MODULUS
