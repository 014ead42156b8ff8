"""Relocating a position-independent file: which tables it has, and the native piece applied to them."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rift_core.errors import BinaryError
from rift_core.file_image import check_unshared
from rift_loader_elf._native import ffi, lib
from rift_loader_elf.native_error import new_error, raise_error
from rift_loader_elf.structure import Names, file_offset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.file_image import FileImage
    from rift_loader_elf.structure import Structure

RELA_SIZE = 24
RELR_SIZE = 8
SYMBOL_SIZE = 24
TABLES_MAX = 64
"""Relocation sections of one file; linkers write two."""

BSS_LIMIT = 16 << 20
"""A segment whose .bss is relocated is copied; not more than this many bytes in all."""

_SHT_STRTAB, _SHT_RELA, _SHT_REL, _SHT_DYNSYM, _SHT_RELR = 3, 4, 9, 11, 19
_SHF_ALLOC = 2


@dataclass(frozen=True, slots=True)
class Table:
    """Relocations at [offset, offset + size) of the file, with the tables of the symbols that they name."""

    is_relr: bool
    offset: int
    size: int
    symbols_offset: int = 0
    symbols_size: int = 0
    names_offset: int = 0
    names_size: int = 0


class Sections:
    """The section headers of an image."""

    def __init__(self, image: FileImage) -> None:
        self._image = image

    def find(self, kind: int, flags: int = 0) -> Iterator[Any]:
        """Each section of that ``sh_type`` with all of those ``sh_flags``, as ``struct rift_elf_section``."""
        first = 0
        while True:
            section = ffi.new("struct rift_elf_section *")
            error = new_error()
            status = lib.rift_elf_section_find(self._image.data, self._image.size, first, kind, flags, section, error)
            if status < 0:
                raise_error(self._image.path, error)
            if status == 0:
                return
            yield section
            first = section.index + 1

    def read(self, index: int) -> Any:
        """The section of that index.

        :raises BinaryError: there is none.
        """
        section = ffi.new("struct rift_elf_section *")
        error = new_error()
        if lib.rift_elf_section_read(self._image.data, self._image.size, index, section, error) < 0:
            raise_error(self._image.path, error)
        return section


def _tag_table(
    image: FileImage, structure: Structure, tags: dict[str | int, int], address: str, size: str
) -> tuple[int, int]:
    if address not in tags or tags.get(size) == 0:
        return 0, 0
    if size not in tags:
        raise BinaryError(f"{image.path}: offset {structure.dynamic_offset:#x}: PT_DYNAMIC: {address} without {size}")
    return file_offset(image, structure.loads, tags[address], tags[size], address, structure.dynamic_offset), tags[size]


def _dynamic_tables(image: FileImage, structure: Structure, tags: dict[str | int, int]) -> Iterator[Table]:
    """The tables that PT_DYNAMIC names (gABI, "Dynamic Section")."""
    for tag, expected in (("DT_RELAENT", RELA_SIZE), ("DT_RELRENT", RELR_SIZE), ("DT_SYMENT", SYMBOL_SIZE)):
        if tags.get(tag, expected) != expected:
            raise BinaryError(
                f"{image.path}: offset {structure.dynamic_offset:#x}: PT_DYNAMIC: {tag} is {tags[tag]}, not {expected}"
            )
    if tags.get("DT_PLTRELSZ") and tags.get("DT_PLTREL", 7) != 7:  # 7: DT_RELA
        raise BinaryError(
            f"{image.path}: offset {structure.dynamic_offset:#x}: PT_DYNAMIC: DT_PLTREL is "
            f"{tags['DT_PLTREL']:#x}; only DT_RELA (7) is supported"
        )
    symbols_offset = symbols_size = 0
    if "DT_SYMTAB" in tags:  # its size is told nowhere: up to the end of its segment
        start = tags["DT_SYMTAB"]
        symbols_offset = file_offset(image, structure.loads, start, 0, "DT_SYMTAB", structure.dynamic_offset)
        load = next(load for load in structure.loads if load.address <= start <= load.address + load.file_size)
        symbols_size = load.offset + load.file_size - symbols_offset
    names = _tag_table(image, structure, tags, "DT_STRTAB", "DT_STRSZ")
    for is_relr, address, size in (
        (True, "DT_RELR", "DT_RELRSZ"),  # first: it adds to what stands there, the others overwrite
        (False, "DT_RELA", "DT_RELASZ"),
        (False, "DT_JMPREL", "DT_PLTRELSZ"),
    ):
        offset, length = _tag_table(image, structure, tags, address, size)
        if length:
            yield Table(is_relr, offset, length, symbols_offset, symbols_size, *names)


def _section_tables(image: FileImage) -> Iterator[Table]:
    """The tables of allocated sections, for files whose linker script has discarded ``.dynamic``.

    Without ``.dynamic`` a linker may have discarded ``.dynsym`` as well and let ``sh_link`` name ``.symtab``,
    whose indices are others: only SHT_DYNSYM is believed.
    """
    sections = Sections(image)
    for section in sections.find(_SHT_REL, _SHF_ALLOC):
        if section.size:
            raise BinaryError(
                f"{image.path}: offset {section.offset:#x}: section {section.index} holds REL relocations (without "
                "addends), which are not supported"
            )
    for section in sections.find(_SHT_RELR, _SHF_ALLOC):
        if section.size:
            yield Table(True, section.offset, section.size)
    for section in sections.find(_SHT_RELA, _SHF_ALLOC):
        if not section.size:
            continue
        symbols = sections.read(section.link)
        if symbols.type != _SHT_DYNSYM:
            yield Table(False, section.offset, section.size)
            continue
        names = sections.read(symbols.link)
        names_range = (names.offset, names.size) if names.type == _SHT_STRTAB else (0, 0)
        yield Table(False, section.offset, section.size, symbols.offset, symbols.size, *names_range)


def relocation_tables(image: FileImage, structure: Structure) -> list[Table]:
    """All relocations of the file, in the order in which they are to be applied.

    :raises BinaryError: a table lies outside the file, or is of a kind that is not served.
    """
    if structure.tags is not None:
        return list(_dynamic_tables(image, structure, structure.tags))
    tables = list(islice(_section_tables(image), TABLES_MAX + 1))
    if len(tables) > TABLES_MAX:
        raise BinaryError(f"{image.path}: more than {TABLES_MAX} sections hold relocations")
    return tables


class _Targets:
    """Segments as the native piece wants them: the file's bytes, or the copies that replace them."""

    def __init__(self, image: FileImage, structure: Structure, bias: int, copies: dict[int, bytearray]) -> None:
        self.count = len(structure.loads)
        self.cdata = ffi.new("struct rift_elf_target[]", self.count)
        self._keep = [ffi.from_buffer("uint8_t[]", copy) for copy in copies.values()]
        pointers = dict(zip(copies, self._keep, strict=True))
        for index, (target, load) in enumerate(zip(self.cdata, structure.loads, strict=True)):
            target.address = (load.address + bias) % (1 << 64)
            target.memory_size = load.memory_size
            target.bytes = pointers.get(index, image.data + load.offset)
            target.size = len(copies[index]) if index in copies else load.file_size


def _symbol_name(image: FileImage, table: Table, index: int) -> str:
    entry = image.view[table.symbols_offset + index * SYMBOL_SIZE :][:SYMBOL_SIZE]
    name = int.from_bytes(entry[:4], "little")
    return f"{index}, {Names(image, table.names_offset, table.names_size).get_string(name)}"


def _run(image: FileImage, machine: int, bias: int, tables: list[Table], targets: _Targets, *, write: bool) -> None:
    relocator = ffi.new("struct rift_elf_relocator *")
    relocator.bytes = image.data
    relocator.size = image.size
    relocator.bias = bias
    relocator.machine = machine
    relocator.write = write
    relocator.targets = targets.cdata
    relocator.target_count = targets.count
    for table in tables:
        relocator.symbols_offset = table.symbols_offset
        relocator.symbols_size = table.symbols_size
        error = new_error()
        apply = lib.rift_elf_relr_apply if table.is_relr else lib.rift_elf_rela_apply
        if apply(relocator, table.offset, table.size, error) != 0:
            code = int(error.error.code)
            symbol = _symbol_name(image, table, int(error.value)) if code == errno.ENOENT else None
            raise_error(image.path, error, machine=machine, symbol=symbol)


def relocate(image: FileImage, structure: Structure, bias: int, buffers: list[memoryview]) -> list[memoryview]:
    """Apply all relocations to ``buffers``, the file's part of each load, and return the loads' bytes.

    Everything is checked before the first word is written. A buffer is replaced by a longer copy where words
    of a ``.bss`` are relocated.

    :raises BinaryError: a table is damaged, a relocation or a symbol cannot be served.
    """
    tables = relocation_tables(image, structure)
    if not tables:
        return buffers
    targets = _Targets(image, structure, bias, {})
    _run(image, structure.machine, bias, tables, targets, write=False)
    count = len(buffers)
    check_unshared(
        image.path,
        ((load.offset, load.file_size, bool(targets.cdata[i].touched)) for i, load in enumerate(structure.loads)),
    )
    longer = {index: int(targets.cdata[index].needed) for index in range(count) if targets.cdata[index].needed}
    if sum(longer.values()) > BSS_LIMIT:
        raise BinaryError(
            f"{image.path}: relocations in .bss reach {max(longer.values()):#x} bytes into a segment; at most "
            f"{BSS_LIMIT:#x} bytes are served"
        )
    copies = {}
    for index, size in longer.items():
        copies[index] = bytearray(size)
        copies[index][: len(buffers[index])] = buffers[index]
    _run(image, structure.machine, bias, tables, _Targets(image, structure, bias, copies), write=True)
    return [memoryview(copies[index]) if index in copies else buffer for index, buffer in enumerate(buffers)]
