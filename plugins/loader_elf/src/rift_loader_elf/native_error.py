"""The one place where an error of the native piece becomes an exception."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NoReturn

from elftools.elf.descriptions import describe_e_machine
from elftools.elf.enums import ENUM_E_MACHINE, ENUM_RELOC_TYPE_AARCH64, ENUM_RELOC_TYPE_x64

from rift_core.errors import BinaryError
from rift_loader_elf._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_HEX_LIMIT = 10
_AARCH64_IRELATIVE = 1032  # AAELF64, "Dynamic relocations"


def printable(text: bytes) -> str:
    """Text of a hostile file, fit for a message: at most 200 bytes, nothing that a terminal obeys."""
    shown = text[:200].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown + ("..." if len(text) > 200 else "")


def _name(numbers: Mapping[str, object], value: int) -> str:
    return next((name for name, number in numbers.items() if number == value and name != "_default_"), f"{value:#x}")


def machine_name(value: int) -> str:
    """``e_machine`` in words, such as "ARM"."""
    name = _name(ENUM_E_MACHINE, value)
    described: str = describe_e_machine(name)
    return described if described != "<unknown>" else name


def relocation_name(machine: int, value: int) -> str:
    """A relocation type's name in its psABI, such as ``R_X86_64_IRELATIVE``."""
    if (machine, value) == (lib.RIFT_ELF_AARCH64, _AARCH64_IRELATIVE):  # pyelftools has another name for 1032
        return "R_AARCH64_IRELATIVE"
    numbers = ENUM_RELOC_TYPE_x64 if machine == lib.RIFT_ELF_X86_64 else ENUM_RELOC_TYPE_AARCH64
    return _name(numbers, value)


def new_error() -> Any:
    """A ``struct rift_elf_error *`` for a call."""
    return ffi.new("struct rift_elf_error *")


def raise_error(path: Path, error: Any, *, machine: int = 0, symbol: str | None = None) -> NoReturn:
    """Raise what a native call reported: path, offset, the field, what is wrong with it, its value.

    :param symbol: name of the symbol that ``error.value`` is the index of, where that is known.
    :raises BinaryError: always.
    """
    field = ffi.string(error.error.operation).decode()
    reason = ffi.string(error.reason).decode()
    value = int(error.value)
    shown = str(value) if value < _HEX_LIMIT else f"{value:#x}"
    code = int(error.error.code)
    if field == "e_machine":
        shown = f"{machine_name(value)}, {shown}"
    elif code == errno.ENOTSUP and field == "r_info":
        shown = relocation_name(machine, value)
        if shown.endswith("_IRELATIVE"):
            reason = "indirect functions would run guest code at load time; build without ifuncs (no C library)"
        elif shown.endswith("_COPY"):
            reason = "the relocation copies from a shared library; link with -static-pie or -static"
    elif symbol is not None:
        shown = f"symbol {symbol}"
    raise BinaryError(f"{path}: offset {int(error.offset):#x}: {field}: {reason} ({shown})")
