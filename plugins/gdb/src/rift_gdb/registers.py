"""The debuggers' registers: from the ISA's one table to numbers, to the layout of ``g``, and to values.

A register's number is its place in the table's order, part by part (``DebugView.feature``); the target
description numbers them the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rift_core.errors import UnsupportedError
from rift_gdb._native import ffi

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rift_core.isa import Isa, Register
    from rift_core.isa_debug import DebugView


class Row(NamedTuple):
    """A register as debuggers see it. ``place`` and ``size`` are bytes in a ``g`` packet."""

    number: int
    view: DebugView
    register: Register
    place: int
    size: int

    def encode(self, value: int) -> bytes:
        """The view's bytes, little-endian, of the whole register's value."""
        part = value >> self.view.shift & (1 << self.view.bits) - 1
        return part.to_bytes(self.size, "little")

    def merge(self, value: int, data: bytes) -> int:
        """The whole register's value with the view's part replaced.

        :raises ValueError: the view is wider than the register, and ``data`` does not fit it.
        """
        part = int.from_bytes(data, "little")
        mask = (1 << self.view.bits) - 1 << self.view.shift
        merged = value & ~mask | part << self.view.shift
        if merged >> self.register.bits:
            raise ValueError(f"{self.view.name} has {self.register.bits} bits, which {part:#x} does not fit")
        return merged


class Layout:
    """The registers of one machine.

    :param available: names of the registers that its backend has. An optional part of which nothing is there
        is left out; a single register that is missing is shown as unavailable.
    :raises UnsupportedError: the ISA describes none for debuggers.
    """

    def __init__(self, isa: Isa, available: Iterable[str]) -> None:
        have = frozenset(available)
        parts: dict[str, list[tuple[DebugView, Register]]] = {}
        for register in isa.registers:
            if register.debug is not None:
                parts.setdefault(register.debug.feature, []).append((register.debug, register))
        if not parts or isa.debug is None:
            raise UnsupportedError(f"ISA {isa.name} describes no registers for debuggers")
        self.features: dict[str, list[Row]] = {}
        self.rows: list[Row] = []
        place = 0
        for number, (feature, members) in enumerate(parts.items()):
            if number and not any(register.name in have for _, register in members):
                continue
            rows = self.features[feature] = []
            for view, register in members:
                row = Row(len(self.rows), view, register, place, view.bits // 8)
                rows.append(row)
                self.rows.append(row)
                place += row.size
        self.size = place
        self.available = tuple(dict.fromkeys(r.register.name for r in self.rows if r.register.name in have))
        self.moving = frozenset(r.register.name for r in self.rows if r.view.moves)
        self._roles = {row.view.role: row for row in self.rows if row.view.role}
        self.places = ffi.new("uint32_t[]", [row.place for row in self.rows])
        self.sizes = ffi.new("uint32_t[]", [row.size for row in self.rows])

    def of_role(self, role: str) -> Row:
        """The row of the program counter (``pc``), stack pointer (``sp``), ...

        :raises KeyError: none has it.
        """
        return self._roles[role]

    def find(self, name: str) -> Row | None:
        """By the debuggers' name, the ISA's, or the role: "pc", "sp"."""
        return next((r for r in self.rows if name in (r.view.name, r.view.also, r.register.name, r.view.role)), None)


class Image:
    """The registers of one stopped thread, as in ``g``, readable by the native side."""

    def __init__(self, layout: Layout, thread: int, values: Mapping[str, int]) -> None:
        self.layout = layout
        self.thread = thread
        self.values = dict(values)
        self._bytes = bytearray(layout.size)
        self._valid = bytearray(len(layout.rows))
        for row in layout.rows:
            value = self.values.get(row.register.name)
            if value is not None:
                self._bytes[row.place : row.place + row.size] = row.encode(value)
                self._valid[row.number] = 1
        # cffi keeps what a struct points to only as long as somebody else does.
        self._pointers = (ffi.from_buffer("uint8_t[]", self._valid), ffi.from_buffer("uint8_t[]", self._bytes))
        self.native = ffi.new(
            "struct rift_gdb_image *",
            {
                "thread": thread,
                "count": len(layout.rows),
                "size": layout.size,
                "places": layout.places,
                "sizes": layout.sizes,
                "valid": self._pointers[0],
                "bytes": self._pointers[1],
            },
        )

    def part(self, row: Row) -> bytes | None:
        """The register's bytes; None if they are not known."""
        return bytes(self._bytes[row.place : row.place + row.size]) if self._valid[row.number] else None

    def all(self) -> bytes:
        """Content of the answer to ``g``: hexadecimal digits, ``x`` where a value is not known."""
        pieces = []
        for row in self.layout.rows:
            part = self.part(row)
            pieces.append(part.hex() if part is not None else "xx" * row.size)
        return "".join(pieces).encode()
