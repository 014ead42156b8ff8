"""The symbols of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rift_core.binary import NoSymbols, Symbol, SymbolTable
from rift_core.symbol_index import SymbolIndex
from rift_loader_macho import _native
from rift_loader_macho._native import ffi, lib
from rift_loader_macho.native_error import new_error, raise_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_loader_macho.structure import MachoImage, Structure


class MachoSymbols(SymbolIndex):
    """``LC_SYMTAB``, by the names of the sources: C's ``main``, which the file spells ``_main``.

    Names that assembler defined without an underscore are there too, and the file's own spelling is understood where
    no C name is meant.
    """

    def find(self, name: str) -> Symbol | None:
        """The symbol of that name: first as C spells it, then as the file does; global before local."""
        found = self.find_spelled("_" + name) if name else None
        if found is None:
            found = self.find_spelled(name)
        return replace(found, name=name) if found is not None and found.name != name else found

    def find_spelled(self, name: str) -> Symbol | None:
        """The symbol whose name in the file is exactly that."""
        return super().find(name)


def read_symbols(image: MachoImage, structure: Structure, slide: int, ranges: Sequence[range]) -> SymbolTable:
    """The image's symbols, or an empty table for one without. Addresses include the slide.

    :param ranges: the segments' guest addresses.
    :raises BinaryError: the tables are damaged.
    """
    symbols = structure.symbols
    if symbols is None or not symbols.nsyms or not symbols.strsize:
        return NoSymbols()
    table = ffi.new(
        "struct rift_macho_symbol_table *",
        (int(symbols.symoff), int(symbols.nsyms), int(symbols.stroff), int(symbols.strsize)),
    )
    error = new_error()
    opened = lib.rift_macho_symbols_open(image.cdata, slide, table, structure.summary, error)
    if opened == ffi.NULL:
        raise_error(image.path, error)
    return MachoSymbols(_native, opened, image.path, ranges, image)
