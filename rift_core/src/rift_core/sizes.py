"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[_letter] = 1024**_power
_PATTERN = re.compile(r"\s*(0x[0-9a-f_]+|[0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(value: Any) -> Any:
    """``64``, ``"64KiB"``, ``"1.5 GiB"``, ``"0x1000"`` to bytes; anything but a string is passed on.

    Units: B, KiB MiB GiB TiB (1024), the same without B or iB, kB MB GB TB (1000); case does not matter.
    :raises ValueError: not a size, or not whole bytes.
    """
    if not isinstance(value, str):
        return value
    match = _PATTERN.fullmatch(value)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{value!r} is not a size: write a number of bytes, or one with a unit such as 64KiB, 16MiB, 1GiB"
        )
    number = match[1].replace("_", "")
    size = (
        int(number, 16) * unit
        if number.lower().startswith("0x")
        else float(number) * unit
        if "." in number
        else int(number) * unit
    )
    if size != int(size):
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """``65536`` to ``64 KiB``: the largest unit that divides it, else bytes."""
    for power, letter in reversed(list(enumerate("KMGT", start=1))):
        if size >= 1024**power and size % 1024**power == 0:
            return f"{size // 1024**power} {letter}iB"
    return f"{size} bytes" if size != 1 else "1 byte"
