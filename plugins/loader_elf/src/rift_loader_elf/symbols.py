"""The symbols of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.binary import NoSymbols, SymbolTable
from rift_core.symbol_index import SymbolIndex
from rift_loader_elf import _native
from rift_loader_elf._native import ffi, lib
from rift_loader_elf.native_error import new_error, raise_error
from rift_loader_elf.relocation import Sections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_core.file_image import FileImage

_SHT_SYMTAB, _SHT_DYNSYM = 2, 11


def read_symbols(image: FileImage, machine: int, bias: int, ranges: Sequence[range]) -> SymbolTable:
    """``.symtab``, or ``.dynsym`` in a stripped file; an empty table for a file that has neither.

    Listed are defined, named symbols but those of sections, files and thread-local data. Addresses include the bias.

    :param ranges: the segments' guest addresses.
    :raises BinaryError: the tables are damaged.
    """
    sections = Sections(image)
    for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
        section = next(sections.find(kind), None)
        if section is None or not section.size:
            continue
        error = new_error()
        names = sections.read(section.link)
        table = lib.rift_elf_symbols_open(image.data, image.size, machine, bias, section, names, error)
        if table == ffi.NULL:
            raise_error(image.path, error)
        return SymbolIndex(_native, table, image.path, ranges, image)
    return NoSymbols()
