"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[_letter] = 1024**_power
_PATTERN = re.compile(r"\s*(0x[0-9a-f_]+(?=\s|$)|[0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)

MAXIMUM = 1 << 52
"""No size is larger: 52 bits are the widest physical address of x86-64 (SDM volume 3, 4.1.4) and of AArch64
(Arm ARM, FEAT_LPA)."""


def parse_size(value: Any) -> Any:
    """``64``, ``"64KiB"``, ``"1.5 GiB"``, ``"0x1000"`` to bytes; anything but a string is passed on.

    Units: B, KiB MiB GiB TiB (1024), the same without iB, kB MB GB TB (1000); case does not matter.
    :raises ValueError: not a size, or not whole bytes.
    """
    if isinstance(value, bool):
        raise ValueError("a size is a number of bytes, or a string with a unit such as 64KiB")
    if not isinstance(value, str):
        return value
    match = _PATTERN.fullmatch(value)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{value[:40]!r} is not a size: write a number of bytes, or one with a unit such as 64KiB, 16MiB, 1GiB"
        )
    number = match[1].replace("_", "")
    size = Fraction(int(number, 16)) if number[:2].lower() == "0x" else Fraction(number)
    size *= unit
    if size.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return size.numerator


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=0, lt=MAXIMUM, strict=True),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": MAXIMUM},
                {"type": "string", "pattern": r"^\s*(0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(\.[0-9]+)?\s*[A-Za-z]*)\s*$"},
            ]
        }
    ),
]
"""The type of a configuration key that takes bytes: a number, or a string such as ``"64MiB"``. For plugins too."""


def format_size(size: int) -> str:
    """``65536`` to ``64 KiB``: the largest unit that divides it, else bytes."""
    for power, letter in reversed(list(enumerate("KMGT", start=1))):
        if size >= 1024**power and size % 1024**power == 0:
            return f"{size // 1024**power} {letter}iB"
    return f"{size} bytes" if size != 1 else "1 byte"
