"""Breakpoint instructions in guest memory: put in before the guest goes on, taken out when it has stopped.

While the guest is stopped its memory is its own: whoever reads it sees the program. What the guest has
overwritten meanwhile is not restored, but is the program from then on; a page that was mapped anew is found by
its address the next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rift_core.errors import AddressError

if TYPE_CHECKING:
    from rift_core.engine import Engine
    from rift_gdb.memory import Piece, View


class _Patch(NamedTuple):
    pieces: tuple[Piece, ...]
    original: bytes


class Patches:
    """The instructions that are in memory now."""

    def __init__(self, engine: Engine, instruction: bytes) -> None:
        self._engine = engine
        self._instruction = instruction
        self._inside: dict[int, _Patch] = {}

    def __contains__(self, address: int) -> bool:
        return address in self._inside

    def __bool__(self) -> bool:
        return bool(self._inside)

    def insert(self, address: int, view: View) -> bool:
        """Put one in; False if there is no memory that can be written."""
        if address in self._inside:
            return True
        try:
            pieces = tuple(view.pieces(address, len(self._instruction)))
        except AddressError:
            return False
        if any(piece.host.readonly for piece in pieces):
            return False
        self._inside[address] = _Patch(pieces, b"".join(bytes(piece.host) for piece in pieces))
        self._write(pieces, self._instruction)
        return True

    def remove(self) -> None:
        """Take all out, the last one first: they may overlap."""
        for patch in reversed(self._inside.values()):
            if b"".join(bytes(piece.host) for piece in patch.pieces) == self._instruction:
                self._write(patch.pieces, patch.original)
        self._inside.clear()

    def _write(self, pieces: tuple[Piece, ...], data: bytes) -> None:
        at = 0
        for piece in pieces:
            piece.host[:] = data[at : at + len(piece.host)]
            at += len(piece.host)
            self._engine.vm.code_changed(piece.physical, len(piece.host))
