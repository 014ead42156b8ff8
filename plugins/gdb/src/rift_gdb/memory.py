"""Guest memory as a debugger sees it: through the selected thread's page tables, or guest-physical.

Page permissions are the guest's business: a debugger reads and writes whatever is mapped. What is not mapped is an
error, never zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rift_core.errors import AddressError
from rift_core.memory import Gpa, Gva

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_core.engine import Engine
    from rift_core.memory import Walk

_TOP = 1 << 64
_ROOT_BITS = 47  # no ISA chooses page tables by an address's bits below


class Piece(NamedTuple):
    """Guest-physical memory and its bytes in this process."""

    physical: Gpa
    host: memoryview


class View:
    """One way to look at memory.

    :param roots: the page tables that translate an address; the machine's if absent.
    :param physical: addresses are guest-physical.
    """

    def __init__(self, engine: Engine, roots: Callable[[Gva], Gpa] | None = None, *, physical: bool = False) -> None:
        self._engine = engine
        self._roots = roots
        self._known: dict[int, Gpa] = {}  # roots by the upper bits of addresses, which alone decide
        self.physical = physical

    def walk(self, address: int) -> Walk:
        """What the page tables say. :raises AddressError: the view is physical."""
        if self.physical:
            raise AddressError("guest-physical addresses are not translated")
        space = self._engine.space
        if self._roots is None:
            return space.walk(Gva(address))
        root = self._known.get(address >> _ROOT_BITS)
        if root is None:
            root = self._known[address >> _ROOT_BITS] = self._roots(Gva(address))
        return space.walk(Gva(address), None if root == space.root else root)

    def pieces(self, address: int, size: int) -> Iterator[Piece]:
        """A range piece by piece: guest-physical addresses, and the host's bytes.

        :raises AddressError: what comes next is not mapped, or has no memory behind it.
        """
        memory = self._engine.memory
        end = address + size
        if end > _TOP:
            raise AddressError(f"{address:#x}, {size} bytes, goes beyond the end of the address space")
        while address < end:
            if self.physical:
                region = memory.find(address)
                if region is None:
                    raise AddressError(f"guest-physical {address:#x} has no memory behind it")
                step = min(region.end, end) - address
                yield Piece(Gpa(address), memory.view(address, step))
            else:
                walk = self.walk(address)
                if walk.physical is None:
                    raise AddressError(f"{address:#x} is not mapped: {walk.reason}")
                step = min(walk.page_size - address % walk.page_size, end - address)
                yield from self._inside(walk.physical, step)
            address += step

    def _inside(self, physical: int, size: int) -> Iterator[Piece]:
        """A page may lie across regions."""
        memory = self._engine.memory
        while size:
            region = memory.find(physical)
            if region is None:
                raise AddressError(f"guest-physical {physical:#x} has no memory behind it")
            step = min(size, region.end - physical)
            yield Piece(Gpa(physical), memory.view(physical, step))
            physical += step
            size -= step

    def read(self, address: int, size: int) -> bytes:
        """All of it.

        :raises AddressError: some of it cannot be read.
        """
        return b"".join(bytes(piece.host) for piece in self.pieces(address, size))

    def write(self, address: int, data: bytes) -> None:
        """All of it or nothing, whatever the page permissions say.

        :raises AddressError: not mapped, or memory that the host shares read-only.
        """
        pieces = list(self.pieces(address, len(data)))
        if any(piece.host.readonly for piece in pieces):
            raise AddressError(f"{address:#x}, {len(data)} bytes, is memory that the host has given read-only")
        at = 0
        for piece in pieces:
            piece.host[:] = data[at : at + len(piece.host)]
            at += len(piece.host)
            self._engine.vm.code_changed(piece.physical, len(piece.host))
