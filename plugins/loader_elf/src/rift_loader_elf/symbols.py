"""The symbols of a file, looked up natively."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rift_core.binary import NoSymbols, Symbol, SymbolTable
from rift_core.memory import Gva
from rift_loader_elf._native import ffi, lib
from rift_loader_elf.native_error import new_error, raise_error
from rift_loader_elf.relocation import Sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rift_loader_elf.image import Image

_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SIMILAR_MAX = 64


def _symbol(found: Any) -> Symbol:
    name = bytes(ffi.buffer(found.name, found.name_size)).decode("utf-8", "backslashreplace")
    return Symbol(name, Gva(found.address), found.size)


class ElfSymbols:
    """``.symtab``, or ``.dynsym`` in a stripped file; an index is built at the first look-up of its kind.

    Listed are defined, named symbols but those of sections, files and thread-local data. Addresses include the
    bias. Several threads may call.
    """

    def __init__(
        self, image: Image, machine: int, bias: int, ranges: Sequence[range], section: Any, names: Any
    ) -> None:
        """:param ranges: the segments' guest addresses, ascending.

        :raises BinaryError: the tables are damaged.
        """
        self._image = image  # keeps the bytes alive that the index points into
        self._ranges = tuple(ranges)
        self._lock = threading.Lock()
        self._length: int | None = None
        error = new_error()
        table = lib.rift_elf_symbols_open(image.data, image.size, machine, bias, section, names, error)
        if table == ffi.NULL:
            raise_error(image.path, error)
        self._table = ffi.gc(table, lib.rift_elf_symbols_close)

    def find(self, name: str) -> Symbol | None:
        """The symbol of that exact name: global before weak before local."""
        found = ffi.new("struct rift_elf_found *")
        error = new_error()
        encoded = name.encode("utf-8", "surrogatepass")
        with self._lock:
            status = lib.rift_elf_symbols_find(self._table, encoded, len(encoded), found, error)
        if status < 0:
            raise_error(self._image.path, error)
        return _symbol(found) if status else None

    def nearest(self, address: int) -> Symbol | None:
        """The innermost function or object around ``address``, else the closest symbol below in its segment."""
        segment = next((where for where in self._ranges if address in where), None)
        if segment is None:
            return None
        found = ffi.new("struct rift_elf_found *")
        error = new_error()
        with self._lock:
            status = lib.rift_elf_symbols_nearest(self._table, address, segment.start, found, error)
        if status < 0:
            raise_error(self._image.path, error)
        return _symbol(found) if status else None

    def similar(self, name: str, limit: int = 5) -> list[str]:
        """Names that are few edits away, or contain the other, best first; at most 64."""
        limit = max(0, min(limit, _SIMILAR_MAX))
        found = ffi.new("struct rift_elf_found[]", _SIMILAR_MAX)
        encoded = name.encode("utf-8", "surrogatepass")
        count = lib.rift_elf_symbols_similar(self._table, encoded, len(encoded), found, limit)
        return [_symbol(found[index]).name for index in range(count)]

    def __iter__(self) -> Iterator[Symbol]:
        """All symbols in the file's order, one at a time."""
        found = ffi.new("struct rift_elf_found *")
        first = 0
        while lib.rift_elf_symbols_next(self._table, first, found):
            yield _symbol(found)
            first = found.index + 1

    def __len__(self) -> int:
        """How many are listed."""
        if self._length is None:
            self._length = int(lib.rift_elf_symbols_count(self._table))
        return self._length


def read_symbols(image: Image, machine: int, bias: int, ranges: Sequence[range]) -> SymbolTable:
    """The file's best symbol table, or an empty one for a file without.

    :raises BinaryError: the tables are damaged.
    """
    sections = Sections(image)
    for kind in (_SHT_SYMTAB, _SHT_DYNSYM):
        section = next(sections.find(kind), None)
        if section is not None and section.size:
            return ElfSymbols(image, machine, bias, ranges, section, sections.read(section.link))
    return NoSymbols()
