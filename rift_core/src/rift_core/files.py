"""What a file is, told by its content: a configuration, a source, or an executable."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Literal

from rift_core.errors import BinaryError

if TYPE_CHECKING:
    from pathlib import Path

_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"\xfe\xed\xfa\xcf",
    b"\xfe\xed\xfa\xce",
    b"\xca\xfe\xba\xbe",
    b"\xca\xfe\xba\xbf",
    b"MZ",
)
"""ELF; Mach-O of 64 and 32 bits, in both byte orders, and universal; PE, which some loader may know."""

SOURCE_SUFFIXES = (".c", ".S", ".s")
"""C, assembler that goes through the preprocessor, and assembler that does not: the compiler goes by the name too."""

_SOURCE_MARKS = ("#include", "int main", "void ", ".globl")

FileKind = Literal["configuration", "source", "executable"]


def is_source(path: Path) -> bool:
    """Whether a file is a C or assembler source, by its name."""
    return path.suffix in SOURCE_SUFFIXES


def kind_of(path: Path) -> FileKind:
    """What ``path`` is.

    :raises BinaryError: it cannot be read, or is none of them.
    """
    try:
        if not path.is_file():
            raise BinaryError(f"{path}: {'is no regular file' if path.exists() else 'there is no such file'}")
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except (OSError, ValueError) as error:
        raise BinaryError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if head.startswith(_EXECUTABLE_MAGIC):
        return "executable"
    if is_source(path):
        return "source"
    if path.suffix.lower() == ".toml":
        return "configuration"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "executable"  # a loader may know it; if none does, it says so
    if not text.strip():
        raise BinaryError(f"{path} is empty: give a configuration (TOML), a C source, or an executable")
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        if any(mark in text for mark in _SOURCE_MARKS):
            raise BinaryError(
                f"{path} looks like a source, but the compiler goes by the name: call it *.c, *.S or *.s"
            ) from None
        raise BinaryError(f"{path} is neither TOML, nor a C source, nor an executable") from None
    except (ValueError, RecursionError):
        pass  # numbers or nesting beyond what tomllib takes: the configuration's own messages say it
    return "configuration"
