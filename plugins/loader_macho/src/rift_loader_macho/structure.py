"""The structure of a file, read by macholib after the native piece has checked every offset and count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from macholib import mach_o
from macholib.ptypes import sizeof

from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_loader_macho._native import ffi, lib
from rift_loader_macho.native_error import new_error, printable, raise_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.file_image import FileImage

ISAS = {lib.RIFT_MACHO_X86_64: "x86_64", lib.RIFT_MACHO_ARM64: "aarch64"}
"""Rift's names of the CPU types that can be loaded."""

_HEADER_SIZE = sizeof(mach_o.mach_header_64)
_SG_READ_ONLY = 0x10
"""Of segment_command_64.flags: only readable once the pointers in it are set, as __DATA_CONST (<mach-o/loader.h>)."""

_LIBRARIES = frozenset(
    {
        mach_o.LC_LOAD_DYLIB,
        mach_o.LC_LOAD_WEAK_DYLIB,
        mach_o.LC_REEXPORT_DYLIB,
        mach_o.LC_LAZY_LOAD_DYLIB,
        mach_o.LC_LOAD_UPWARD_DYLIB,
    }
)


@dataclass(frozen=True, slots=True)
class MachoImage:
    """One image of a file: all of a thin one. ``cdata`` is its ``struct rift_macho_image *``; offsets inside it count
    from ``origin`` of the file."""

    file: FileImage = field(repr=False)
    origin: int
    size: int
    others: tuple[str, ...]
    """What else the universal file holds, and this image; empty for a thin one."""
    cdata: Any = field(repr=False)

    @classmethod
    def of(cls, file: FileImage, origin: int, size: int, others: tuple[str, ...] = ()) -> MachoImage:
        """The image at [origin, origin + size) of the file, which must hold them."""
        cdata = ffi.new("struct rift_macho_image *", {"bytes": file.data + origin, "size": size, "origin": origin})
        return cls(file, origin, size, others, cdata)

    @property
    def path(self) -> Path:
        """The file's."""
        return self.file.path

    def bytes_at(self, offset: int, size: int) -> memoryview:
        """Those bytes of the image, writable."""
        return self.file.view[self.origin + offset : self.origin + offset + size]


@dataclass(frozen=True, slots=True)
class Load:
    """One LC_SEGMENT_64: addresses as in the file, without slide. ``at`` is where in the image the command stands;
    ``offset`` is 0 where ``file_size`` is; ``protection`` is what holds when pointers are set."""

    at: int
    name: str
    address: int
    memory_size: int
    offset: int
    file_size: int
    protection: int

    @property
    def is_hole(self) -> bool:
        """Takes no memory: empty, or a place such as ``__PAGEZERO`` where nothing may be."""
        return not self.memory_size or not (self.file_size or self.protection)


@dataclass(frozen=True, slots=True)
class Structure:
    """What the loader needs to know.

    ``loads`` are all segments in the file's order, which fixups number them by. ``dyld_info`` and ``symbols`` are the
    commands as macholib reads them, ``chained_fixups`` offset and size, None where there is none. ``libraries`` are
    the names that imports number from 1 on.
    """

    summary: Any = field(repr=False)
    loads: tuple[Load, ...]
    symbols: Any
    dynamic_symbols: Any
    dyld_info: Any
    chained_fixups: tuple[int, int] | None
    libraries: tuple[str, ...]

    @property
    def isa(self) -> str:
        """In Rift's words."""
        return ISAS[self.summary.cpu]

    @property
    def position_independent(self) -> bool:
        """Whether it may stand elsewhere than where it was linked."""
        return self.summary.type == lib.RIFT_MACHO_BUNDLE or bool(
            self.summary.type == lib.RIFT_MACHO_EXECUTE and self.summary.flags & lib.RIFT_MACHO_PIE
        )


class Slice(NamedTuple):
    """Where an image lies in a universal file, and for which CPU; ``entry`` is the offset of its description."""

    cpu: int
    subtype: int
    offset: int
    size: int
    entry: int


def slices(file: FileImage) -> list[Slice]:
    """The images of a universal file; empty for a thin one.

    :raises BinaryError: the list of a universal file is damaged.
    """
    found, error = ffi.new("struct rift_macho_slice[]", lib.RIFT_MACHO_SLICES_MAX), new_error()
    count = lib.rift_macho_slices(file.data, file.size, found, error)
    if count < 0:
        raise_error(file.path, error)
    entries = [Slice(s.cpu, s.subtype, s.offset, s.size, s.entry) for s in found[0:count]]
    return entries if entries[0].entry else []


def _parsed(image: MachoImage, kind: Any, at: int) -> Any:
    """A structure at an offset of the image, by macholib."""
    return kind.from_str(bytes(image.bytes_at(at, sizeof(kind))), _endian_="<")


def _commands(image: MachoImage, summary: Any) -> Iterator[tuple[int, int, int]]:
    """Offset, ``cmd`` and ``cmdsize`` of each load command."""
    at, end = _HEADER_SIZE, _HEADER_SIZE + summary.commands_size
    for _ in range(summary.commands):
        command = _parsed(image, mach_o.load_command, at)
        if command.cmdsize < sizeof(mach_o.load_command) or command.cmdsize > end - at:
            raise BinaryError(f"{image.path}: offset {image.origin + at:#x}: the file changed while it was read")
        yield at, int(command.cmd), int(command.cmdsize)
        at += command.cmdsize


def _segment(image: MachoImage, at: int) -> Load:
    segment = _parsed(image, mach_o.segment_command_64, at + sizeof(mach_o.load_command))
    file_size = int(segment.filesize)
    protection = int(segment.initprot) & 7
    if int(segment.flags) & _SG_READ_ONLY and protection:
        protection = Permission.READ.value
    return Load(
        at=at,
        name=printable(segment.segname.rstrip(b"\0")),
        address=int(segment.vmaddr),
        memory_size=int(segment.vmsize),
        offset=int(segment.fileoff) if file_size else 0,
        file_size=file_size,
        protection=protection,
    )


def _library(image: MachoImage, at: int, size: int) -> str:
    library = bytes(image.bytes_at(at, size))
    start = int(mach_o.dylib_command.from_str(library[8:24].ljust(16, b"\0"), _endian_="<").name)
    return printable(library[start:].split(b"\0")[0]) if 8 <= start < size else "?"


def read_structure(image: MachoImage, max_memory: int) -> Structure:
    """Check the image in C, then read its commands.

    :raises BinaryError: the file is damaged, or of a kind that cannot be loaded.
    """
    summary, error = ffi.new("struct rift_macho_summary *"), new_error()
    if lib.rift_macho_image_check(image.cdata, max_memory, summary, error) != 0:
        raise_error(image.path, error)
    loads: list[Load] = []
    libraries: list[str] = []
    for at, kind, size in _commands(image, summary):
        if kind == mach_o.LC_SEGMENT_64:
            loads.append(_segment(image, at))
        elif kind in _LIBRARIES:
            libraries.append(_library(image, at, size))

    def single(at: int, kind: Any) -> Any:
        return _parsed(image, kind, at + sizeof(mach_o.load_command)) if at else None

    chained = single(summary.chained_fixups_at, mach_o.linkedit_data_command)
    return Structure(
        summary=summary,
        loads=tuple(loads),
        symbols=single(summary.symbols_at, mach_o.symtab_command),
        dynamic_symbols=single(summary.dynamic_symbols_at, mach_o.dysymtab_command),
        dyld_info=single(summary.dyld_info_at, mach_o.dyld_info_command),
        chained_fixups=(int(chained.dataoff), int(chained.datasize)) if chained is not None else None,
        libraries=tuple(libraries),
    )
