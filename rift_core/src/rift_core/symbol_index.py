"""Look-up of symbols by a loader's native piece, which compiles ``include/rift_symbols.c`` and ``rift_similar.c``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rift_core.binary import Symbol
from rift_core.errors import BinaryError
from rift_core.memory import Gva

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


_MOST_KNOWN = 1024


class SymbolIndex:
    """A :class:`~rift_core.binary.SymbolTable` over a file's own table; several threads may call.

    Nothing is read until the first look-up, which builds the index of its kind.
    """

    def __init__(self, native: Any, table: Any, path: Path, ranges: Sequence[range], owner: object) -> None:
        """:param native: the loader's compiled module; its cdef has ``rift_symbols.h``.
        :param table: ``struct rift_symbols *``, which is closed with this object.
        :param ranges: the segments' guest addresses.
        :param owner: kept alive; what the table points into.
        """
        self._ffi, self._lib = native.ffi, native.lib
        self._path = path
        self._owner = owner
        self._ranges = tuple(ranges)
        self._lock = threading.Lock()
        self._length: int | None = None
        self._known: dict[str, Symbol | None] = {}
        self._table = self._ffi.gc(table, self._lib.rift_symbols_close)

    def _symbol(self, found: Any) -> Symbol:
        name = bytes(self._ffi.buffer(found.name, found.name_size)).decode("utf-8", "backslashreplace")
        return Symbol(name, Gva(found.address), found.size)

    def _one(self, found: Any, function: Any, *arguments: Any) -> bool:
        """Whether a look-up filled in ``struct rift_found *``."""
        error = self._ffi.new("struct rift_error *")
        with self._lock:
            status = function(self._table, *arguments, found, error)
        if status < 0:
            raise BinaryError(f"{self._path}: no memory for the index of its symbols")
        return bool(status)

    def find(self, name: str) -> Symbol | None:
        """The symbol of that exact name: global before weak before local."""
        if name in self._known:
            return self._known[name]
        encoded = name.encode("utf-8", "surrogatepass")
        found = self._ffi.new("struct rift_found *")
        symbol = self._symbol(found) if self._one(found, self._lib.rift_symbols_find, encoded, len(encoded)) else None
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[name] = symbol
        return symbol

    def nearest(self, address: int) -> Symbol | None:
        """The innermost function or object around ``address``, else the closest symbol below in its segment."""
        segment = next((where for where in self._ranges if address in where), None)
        if segment is None:
            return None
        found = self._ffi.new("struct rift_found *")
        return self._symbol(found) if self._one(found, self._lib.rift_symbols_nearest, address, segment.start) else None

    def similar(self, name: str, limit: int = 5) -> list[str]:
        """Names that are few edits away, or contain the other, best first; at most 64."""
        limit = max(0, min(limit, self._lib.RIFT_SYMBOL_SIMILAR_MAX))
        found = self._ffi.new("struct rift_found[]", self._lib.RIFT_SYMBOL_SIMILAR_MAX)
        encoded = name.encode("utf-8", "surrogatepass")
        count = self._lib.rift_symbols_similar(self._table, encoded, len(encoded), found, limit)
        return [self._symbol(found[index]).name for index in range(count)]

    def __iter__(self) -> Iterator[Symbol]:
        """All symbols in the file's order, one at a time."""
        found = self._ffi.new("struct rift_found *")
        first = 0
        while self._one(found, self._lib.rift_symbols_next, first):
            first = found.index + 1
            yield self._symbol(found)

    def __len__(self) -> int:
        """How many are listed."""
        if self._length is None:
            self._length = int(self._lib.rift_symbols_count(self._table))
        return self._length
