"""The libraries that a Mach-O executable looks for beside itself: a copy of it must find them there, too.

Facts: mach-o/loader.h and mach-o/fat.h of Apple's SDK; dyld(1) for ``@executable_path`` and its like.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC_64 = b"\xcf\xfa\xed\xfe"
_FAT_MAGICS = {0xCAFE_BABE: ">2i3I", 0xCAFE_BABF: ">2i2Q2I"}  # the layout of an entry of fat_arch and fat_arch_64
_HEADER_SIZE = 32
_LC_RPATH = 0x8000_001C
_LOADS = frozenset({0xC, 0x8000_0018, 0x8000_001F})  # LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB, LC_REEXPORT_DYLIB
_BESIDE = ("@executable_path/", "@loader_path/")
_BY_SEARCH = "@rpath/"
_MOST_SLICES, _MOST_COMMANDS = 16, 4096


@dataclass(frozen=True, slots=True)
class References:
    """Names of libraries, and the folders that names with ``@rpath`` are looked for in, as the file has them."""

    libraries: tuple[str, ...]
    folders: tuple[str, ...]


def references(data: bytes) -> References | None:
    """What an executable refers to, in all its slices; None if it is no 64-bit Mach-O file, or damaged."""
    libraries: dict[str, None] = {}
    folders: dict[str, None] = {}
    slices = 0
    try:
        for offset in _slices(data):
            if data[offset : offset + 4] == _MAGIC_64:
                _read(data, offset, libraries, folders)
                slices += 1
    except struct.error:
        return None
    return References(tuple(libraries), tuple(folders)) if slices else None


def _slices(data: bytes) -> list[int]:
    """Offsets of the images in a file."""
    magic, count = struct.unpack_from(">2I", data)
    layout = _FAT_MAGICS.get(magic)
    if layout is None:
        return [0]
    size = struct.calcsize(layout)
    return [int(struct.unpack_from(layout, data, 8 + size * at)[2]) for at in range(min(count, _MOST_SLICES))]


def _read(data: bytes, offset: int, libraries: dict[str, None], folders: dict[str, None]) -> None:
    (count,) = struct.unpack_from("<I", data, offset + 16)
    at = offset + _HEADER_SIZE
    for _ in range(min(count, _MOST_COMMANDS)):
        command, size, name = struct.unpack_from("<3I", data, at)
        if size < 8 or at + size > len(data):
            raise struct.error
        if command in _LOADS or command == _LC_RPATH:
            text = data[at + name : at + size].partition(b"\0")[0].decode(errors="replace")
            (folders if command == _LC_RPATH else libraries)[text] = None
        at += size


def links_for(found: References, binary: Path, copy: Path) -> dict[Path, Path]:
    """The symbolic links that a copy of ``binary`` at ``copy`` needs, place to target: the libraries that ``binary``
    finds by its own place, and all that are in the folders where it searches relative to itself, since extension
    modules find theirs there.
    """
    links: dict[Path, Path] = {}
    relative = [tail for tail in map(_beside, found.folders) if tail is not None]
    for name in found.libraries:
        tail = _beside(name)
        if tail is not None:
            tails = [tail]
        elif name.startswith(_BY_SEARCH):
            tails = [f"{folder}/{name.removeprefix(_BY_SEARCH)}" for folder in relative]
        else:
            continue
        for candidate in tails:
            original = _normal(binary.parent / candidate)
            if original.exists():
                links.setdefault(_normal(copy.parent / candidate), original)
                break
    for folder in relative:
        for original in sorted(_normal(binary.parent / folder).glob("*.dylib")):
            links.setdefault(_normal(copy.parent / folder / original.name), original)
    return links


def _beside(name: str) -> str | None:
    """The part behind ``@executable_path/``, or None. For an executable ``@loader_path`` is the same."""
    for prefix in _BESIDE:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
        if name == prefix.rstrip("/"):
            return "."
    return None


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))
