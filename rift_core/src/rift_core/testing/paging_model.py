"""Page tables as the ISA conformance suite sees them: a model to compare with, cases, and memory for tables."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from rift_core.guest_memory import GuestMemory
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rift_core.isa import Isa
    from rift_core.memory import AddressSpace

TABLE_MEMORY = 16 << 20
"""Bytes of table memory, enough for every case here."""

TABLES_AT = 0x8000_0000
_PHYSICAL_LIMIT = 1 << 36


@dataclass(frozen=True)
class Piece:
    """A run of addresses that the model knows: [start, end) onto ``physical``."""

    start: int
    end: int
    physical: int
    permissions: Permission
    caching: Caching

    def cut(self, start: int, end: int) -> Piece:
        return replace(self, start=start, end=end, physical=self.physical + (start - self.start))


@dataclass
class PagingModel:
    """What page tables must say, kept as a list of pieces."""

    pieces: list[Piece] = field(default_factory=list)

    def find(self, address: int) -> Piece | None:
        return next((piece for piece in self.pieces if piece.start <= address < piece.end), None)

    def is_free(self, start: int, end: int) -> bool:
        return not any(piece.start < end and start < piece.end for piece in self.pieces)

    def is_mapped(self, start: int, end: int) -> bool:
        covered = sum(min(p.end, end) - max(p.start, start) for p in self.pieces if p.start < end and start < p.end)
        return covered == end - start

    def map(self, mapping: Mapping) -> None:
        self.pieces.append(Piece(mapping.virtual, mapping.end, mapping.physical, mapping.permissions, mapping.caching))

    def change(self, start: int, end: int, permissions: Permission | None) -> None:
        """New permissions for [start, end), or None to unmap it."""
        result = []
        for piece in self.pieces:
            low, high = max(piece.start, start), min(piece.end, end)
            if low >= high:
                result.append(piece)
                continue
            if piece.start < low:
                result.append(piece.cut(piece.start, low))
            if permissions is not None:
                result.append(replace(piece.cut(low, high), permissions=permissions))
            if high < piece.end:
                result.append(piece.cut(high, piece.end))
        self.pieces = result

    def edges(self, page: int, sizes: Iterable[int]) -> list[int]:
        """Addresses worth a look: around each piece's ends, and around the large-page boundaries next to them."""
        found: set[int] = set()
        for piece in self.pieces:
            for edge in (piece.start, piece.end):
                found.update((edge - page, edge))
                for size in sizes:
                    for boundary in (edge - edge % size, edge - edge % size + size):
                        found.update((boundary - page, boundary))
            found.add(piece.start + (piece.end - piece.start) // 2 // page * page)
        return sorted(address for address in found if 0 <= address < 1 << 64)


class Tables:
    """An address space in memory of its own, and that memory."""

    def __init__(
        self, configure: Callable[..., AddressSpace | None], isa: Isa, mappings: Sequence[Mapping], size: int
    ) -> None:
        self.bytes = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = GuestMemory()
        region = MemoryRegion(Gpa(TABLES_AT), memoryview(self.bytes), Permission.READ | Permission.WRITE, "tables")
        self.memory.add(region)
        space = configure(isa=isa, mappings=mappings, tables=region, memory=self.memory)
        if space is None:
            pytest.fail("rift_configure_mmu answered None for the plugin's own ISA")
        self.space = space


def permission_strategy() -> st.SearchStrategy[Permission]:
    """All combinations; READ is implied."""
    return st.integers(0, 7).map(lambda bits: Permission.READ | Permission(bits << 1))


def mapping_strategy(isa: Isa) -> st.SearchStrategy[Mapping]:
    """Legal mappings near the boundaries of all page sizes, in all halves, at most a little over one largest page."""
    page = isa.page_sizes[0]
    sizes = isa.page_sizes[1:] or (page,)
    margin = max(sizes[-1], 8 * page)  # room at the ends, also where all pages are small

    @st.composite
    def make(draw: st.DrawFn) -> Mapping:
        half = draw(st.sampled_from(isa.virtual_ranges))
        boundary = draw(st.sampled_from(sizes))
        near = draw(st.integers(-3, 3)) * page
        anchor = half.start + 2 * margin + draw(st.integers(0, 2)) * boundary
        if draw(st.booleans()):
            anchor = half.stop - 4 * margin + draw(st.integers(0, 1)) * boundary
        start = anchor + near
        unit = draw(st.sampled_from((page, *sizes)))
        size = max(page, draw(st.integers(1, 3 if unit < sizes[-1] else 1)) * unit + draw(st.integers(-2, 2)) * page)
        physical = draw(st.integers(0, _PHYSICAL_LIMIT // page - 1)) * page
        if draw(st.booleans()):  # congruent to the virtual address, so that large pages fit
            physical = physical - physical % sizes[-1] + start % sizes[-1]
        return Mapping(
            Gva(start),
            Gpa(physical),
            size,
            draw(permission_strategy()),
            "case",
            draw(st.sampled_from(list(Caching))),
            draw(st.sampled_from((0, *isa.page_sizes))),
        )

    return make()


def disjoint(mappings: Iterable[Mapping]) -> list[Mapping]:
    """Those that overlap none before them."""
    result: list[Mapping] = []
    for mapping in mappings:
        if all(mapping.end <= other.virtual or other.end <= mapping.virtual for other in result):
            result.append(mapping)
    return result
