"""The one place where an error of the native piece becomes an exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from macholib.mach_o import CPU_TYPE_NAMES, LC_NAMES, MH_FILETYPE_NAMES

from rift_core.errors import BinaryError
from rift_loader_macho._native import ffi

if TYPE_CHECKING:
    from pathlib import Path

_HEX_LIMIT = 10
_NAMES = {"cputype": CPU_TYPE_NAMES, "filetype": MH_FILETYPE_NAMES, "cmd": LC_NAMES}


def printable(text: bytes) -> str:
    """Text of a hostile file, fit for a message: at most 200 bytes, nothing that a terminal obeys."""
    shown = text[:200].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown + ("..." if len(text) > 200 else "")


def new_error() -> Any:
    """A ``struct rift_macho_error *`` for a call."""
    return ffi.new("struct rift_macho_error *")


def raise_error(path: Path, error: Any) -> NoReturn:
    """Raise what a native call reported: path, offset, the field, what is wrong with it, its value.

    :raises BinaryError: always.
    """
    field = ffi.string(error.error.operation).decode()
    reason = ffi.string(error.reason).decode()
    value = int(error.value)
    shown = str(value) if value < _HEX_LIMIT else f"{value:#x}"
    name = _NAMES.get(field, {}).get(value)
    if name is not None:
        shown = f"{name}, {shown}"
    raise BinaryError(f"{path}: offset {int(error.offset):#x}: {field}: {reason} ({shown})")
