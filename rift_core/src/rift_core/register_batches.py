"""Batches of registers by name, for backends with a native piece: names are resolved once, and then it is one
native call a batch.

The native piece numbers its registers by their place in a table of rows with ``name`` and ``bits``; a batch is an
array of these ids and an array of 64-bit words. A register of more than 64 bits takes several words.
"""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, Any

from rift_core.errors import HypervisorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MOST_BATCHES = 256
"""Different tuples of names that are remembered; more only happens when someone makes them up."""


class RegisterTable:
    """A binding's registers: ids and widths by name, and the forms of the batches that were asked for.

    :param ffi: cffi's object of the native piece.
    :param rows: a C array of structs with ``name`` and ``bits``; ``count`` of them.
    """

    def __init__(self, ffi: Any, rows: Any, count: int) -> None:
        self.ffi = ffi
        self.ids = {ffi.string(rows[at].name).decode(): at for at in range(count)}
        self.bits = [int(rows[at].bits) for at in range(count)]
        self._forms: dict[tuple[str, ...], Form] = {}

    def form(self, names: tuple[str, ...]) -> Form:
        """The form of a batch of ``names``.

        :raises HypervisorError: an unknown name.
        """
        form = self._forms.get(names)
        if form is None:
            form = Form(self, names)
            if len(self._forms) >= _MOST_BATCHES:
                self._forms.clear()
            self._forms[names] = form
        return form


class Form:
    """What all batches of one tuple of names have in common."""

    __slots__ = ("count", "ids", "names", "packing", "size", "wide")

    def __init__(self, table: RegisterTable, names: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in table.ids]
        if unknown:
            names_of_them = ", ".join(map(repr, unknown))
            raise HypervisorError("register access", 0, f"this backend knows no register {names_of_them}")
        sizes = [(table.bits[table.ids[name]] + 63) // 64 for name in names]
        self.names = names
        self.count = len(names)
        self.ids = table.ffi.new("uint32_t[]", [table.ids[name] for name in names] or 1)
        self.size = max(sum(sizes), 1)
        self.packing = struct.Struct("<" + "".join("Q" if size == 1 else f"{8 * size}s" for size in sizes))
        self.wide = tuple((at, 8 * size) for at, size in enumerate(sizes) if size > 1)


class Batch:
    """A vCPU's words for one form."""

    __slots__ = ("count", "ids", "names", "packing", "table", "view", "wide", "words")

    def __init__(self, table: RegisterTable, names: tuple[str, ...]) -> None:
        form = table.form(names)
        self.table = table
        self.names, self.count, self.ids = form.names, form.count, form.ids
        self.packing, self.wide = form.packing, form.wide
        self.words = table.ffi.new("uint64_t[]", form.size)
        self.view = memoryview(table.ffi.buffer(self.words))

    def values(self) -> dict[str, int]:
        """What the words hold, by name."""
        values = self.packing.unpack_from(self.view)
        if self.wide:
            numbers = list(values)
            for at, _ in self.wide:
                numbers[at] = int.from_bytes(values[at], "little")
            values = tuple(numbers)
        return dict(zip(self.names, values))  # noqa: B905, of equal length by construction

    def fill(self, values: Iterable[int]) -> None:
        """Set the words.

        :raises HypervisorError: a value is negative, too wide, or no integer.
        """
        try:
            if self.wide:
                numbers: list[Any] = list(values)
                for at, size in self.wide:
                    numbers[at] = operator.index(numbers[at]).to_bytes(size, "little")
                self.packing.pack_into(self.view, 0, *numbers)
            else:
                self.packing.pack_into(self.view, 0, *values)
        except (struct.error, OverflowError, TypeError) as error:
            raise HypervisorError("register access", 0, f"a value does not fit its register: {error}") from None

    def explain(self, values: Mapping[str, int]) -> str:
        """Which value is too wide for its register."""
        for name, value in values.items():
            bits = self.table.bits[self.table.ids[name]]
            if not 0 <= value < 1 << bits:
                return f"{name} has {bits} bits, which {value:#x} does not fit"
        return ""


class Batches:
    """The batches of one vCPU, by their names."""

    __slots__ = ("_batches", "_table")

    def __init__(self, table: RegisterTable) -> None:
        self._table = table
        self._batches: dict[tuple[str, ...], Batch] = {}

    def get(self, names: tuple[str, ...]) -> Batch:
        """The batch for ``names``.

        :raises HypervisorError: an unknown name.
        """
        batch = self._batches.get(names)
        if batch is None:
            batch = Batch(self._table, names)
            if len(self._batches) >= _MOST_BATCHES:
                self._batches.clear()
            self._batches[names] = batch
        return batch
