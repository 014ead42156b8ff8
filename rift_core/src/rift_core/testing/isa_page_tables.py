"""Conformance of an ISA: page tables, compared with the model of :mod:`rift_core.testing.paging_model`."""

from __future__ import annotations

import contextlib
import mmap
import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_core.errors import MappingError
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.testing.paging_model import (
    TABLE_MEMORY,
    TABLES_AT,
    PagingModel,
    Piece,
    Tables,
    disjoint,
    mapping_strategy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.isa import Isa
    from rift_core.memory import AddressSpace, Walk

# Fixtures are made once a test and serve all its examples; a test may run in several subclasses.
_RELAXED = (HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow)


def cases(count: int) -> settings:
    """Hypothesis's settings for a test of the suite."""
    return settings(max_examples=count, deadline=None, suppress_health_check=_RELAXED)


@dataclass(frozen=True)
class Edit:
    """One step of a test: what to do with a range."""

    verb: str  # map, unmap, protect
    mapping: Mapping


class PageTableTests:
    """Built, walked and edited as the model says, and safe whatever a guest makes of them."""

    def expected_permissions(self, permissions: Permission) -> Permission:
        """What a walk shows of a page mapped with ``permissions``."""
        return permissions | Permission.READ

    def expected_caching(self, caching: Caching) -> Caching:
        """What a walk shows of a page mapped with ``caching``."""
        return caching

    forged_flags: tuple[int, ...] = (0x3, 0x7, 0x67, 0x403, 0x703, 0x407)
    """Flags of entries that look good, for tables as a hostile guest would make them; override with the ISA's own."""

    def test_walk_from_another_root(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        tables = make((Mapping(Gva(start), Gpa(0), page, Permission.READ),))
        space = tables.space
        assert space.walk(Gva(start), space.root) == space.walk(Gva(start))
        for root in (TABLES_AT - page, 1 << 51, 0):
            walk = space.walk(Gva(start), Gpa(root))
            assert walk.physical is None
            assert walk.reason

    @cases(60)
    @given(data=st.data())
    def test_walk_finds_what_was_mapped(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=6)))
        model = PagingModel()
        for mapping in mappings:
            model.map(mapping)
        tables = make(mappings)
        self._compare(isa, tables.space, model)
        assert 0 <= tables.space.root - TABLES_AT < TABLE_MEMORY

    @cases(60)
    @given(data=st.data())
    def test_edits_follow_the_model(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        few = data.draw(st.booleans())
        least = isa.tables_size(())
        size = least + data.draw(st.integers(0, 11)) * isa.page_sizes[0] if few else TABLE_MEMORY
        tables, model = make((), size), PagingModel()
        possible = ("done", "illegal", "full") if few else ("done", "illegal")
        verbs = st.sampled_from(("map", "map", "unmap", "protect"))
        for edit in data.draw(st.lists(st.builds(Edit, verbs, mapping_strategy(isa)), min_size=2, max_size=10)):
            mapping = edit.mapping
            if edit.verb != "map" and model.pieces and data.draw(st.booleans()):
                mapping = self._inside(isa, model, mapping, data)
            assert self._edit(isa, tables, model, edit.verb, mapping) in possible

    @cases(120)
    @given(data=st.data())
    def test_pieces_cut_out_of_large_pages(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        """With few tables: what is refused for want of them changes nothing either."""
        mapping = data.draw(mapping_strategy(isa))
        large = data.draw(st.sampled_from(isa.page_sizes[1:] or isa.page_sizes))
        start = mapping.virtual - mapping.virtual % large
        size = large + data.draw(st.sampled_from((0, 0, isa.page_sizes[0], large)))
        mapping = mapping._replace(virtual=Gva(start), physical=Gpa(7 * isa.page_sizes[-1]), size=size, largest_page=0)
        spare = data.draw(st.integers(0, 4)) * isa.page_sizes[0]
        tables, model = make((mapping,), isa.tables_size((mapping,)) + spare), PagingModel()
        model.map(mapping)
        for verb in data.draw(st.lists(st.sampled_from(("unmap", "protect", "protect")), min_size=1, max_size=4)):
            if model.pieces:
                part = self._inside(isa, model, data.draw(mapping_strategy(isa)), data)
                assert self._edit(isa, tables, model, verb, part) in ("done", "full")

    @cases(30)
    @given(data=st.data())
    def test_unmapping_everything_gives_the_tables_back(
        self, isa: Isa, make: Callable[..., Tables], data: st.DataObject
    ) -> None:
        tables = make()
        free = tables.space.free_tables
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=4)))
        for mapping in mappings:
            tables.space.map(mapping)
        assert tables.space.free_tables < free
        for mapping in mappings:
            tables.space.unmap(mapping.virtual, mapping.size)
        assert tables.space.free_tables == free

    @cases(30)
    @given(data=st.data())
    def test_the_promised_size_is_enough(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=6)))
        size = isa.tables_size(mappings)
        tables = make(mappings, size)
        model = PagingModel()
        for mapping in mappings:
            model.map(mapping)
        self._compare(isa, tables.space, model)
        fresh = make()
        used = fresh.space.free_tables
        needed = fresh.space.tables_needed(mappings)
        for mapping in mappings:
            fresh.space.map(mapping)
        assert used - fresh.space.free_tables <= needed

    def test_too_little_table_memory_is_refused(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        mapping = Mapping(Gva(start), Gpa(0), 64 * page, Permission.READ, "wide", largest_page=page)
        least = isa.tables_size(())
        with pytest.raises(MappingError):
            make((mapping,), least)
        tables = make((), least)
        image = bytes(tables.bytes)
        with pytest.raises(MappingError):
            tables.space.map(mapping)
        assert bytes(tables.bytes) == image
        more = mmap.mmap(-1, 64 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region = MemoryRegion(Gpa(TABLES_AT + (1 << 30)), memoryview(more), Permission.READ | Permission.WRITE, "more")
        tables.memory.add(region)
        tables.space.add_tables(region)
        tables.space.map(mapping)
        assert tables.space.walk(Gva(start)).physical == 0

    def test_malformed_ranges_are_refused(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        base, last = isa.virtual_ranges[0].start + 16 * page, isa.virtual_ranges[0].stop
        good = Mapping(Gva(base), Gpa(0), page, Permission.READ)
        wrong = [
            good._replace(virtual=Gva(base + 8)),
            good._replace(physical=Gpa(8)),
            good._replace(size=page + 8),
            good._replace(size=0),
            good._replace(size=-page),
            good._replace(physical=Gpa(-page)),
            good._replace(physical=Gpa((1 << 64) - page)),
        ]
        if last < 1 << 64:
            wrong += [good._replace(virtual=Gva(last)), good._replace(virtual=Gva(last - page), size=2 * page)]
        tables = make()
        image = bytes(tables.bytes)
        for mapping in wrong:
            with pytest.raises(MappingError):
                tables.space.map(mapping)
            with pytest.raises(MappingError):
                make((mapping,))
        with pytest.raises(MappingError):
            make((good, good._replace(physical=Gpa(page))))
        with pytest.raises(MappingError):
            tables.space.unmap(Gva(base), page)
        with pytest.raises(MappingError):
            tables.space.protect(Gva(base + 1), page, Permission.READ)
        assert bytes(tables.bytes) == image

    def test_accessed_and_dirty_bits_start_clear(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page, large = isa.page_sizes[0], isa.page_sizes[-1]
        start = isa.virtual_ranges[0].start + 2 * large - page
        tables = make((Mapping(Gva(start), Gpa(0), 3 * page, Permission.READ | Permission.WRITE),))
        fresh = (not isa.keeps_accessed, not isa.keeps_dirty)  # "may have been" where the CPU does not tell
        listed = tables.space.accessed_dirty(Gva(start - page), 8 * page, clear=True)
        assert listed == [(start + number * page, page, *fresh) for number in range(3)]
        walk = tables.space.walk(Gva(start))
        assert (walk.accessed, walk.dirty) == fresh
        tables.space.protect(Gva(start), page, Permission.READ)
        assert tables.space.walk(Gva(start)).dirty == fresh[1], "what may have been written stays so"

    @cases(40)
    @given(data=st.data())
    def test_forged_tables_harm_nobody(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        pages = 8
        page = isa.page_sizes[0]
        tables = make((), pages * page)
        space = tables.space
        random_bits = random.Random(data.draw(st.integers(0, 1 << 32)))
        self._forge(isa, tables, random_bits, data.draw(st.sampled_from(("noise", "pointers", "loop", "low"))))
        for mapping in data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=4)):
            for address in (mapping.virtual, mapping.end - 1, random_bits.getrandbits(64)):
                walk = space.walk(Gva(address))
                assert len(walk.steps) <= 8
                assert (walk.physical is None) == bool(walk.reason)
            for verb in data.draw(st.permutations(("map", "unmap", "protect", "list", "clear"))):
                with contextlib.suppress(MappingError):
                    self._apply(space, verb, mapping)

    def test_a_removed_region_is_forgotten(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        tables = make((Mapping(Gva(start), Gpa(0), page, Permission.READ),))
        assert tables.space.walk(Gva(start)).physical == 0
        tables.memory.remove(Gpa(TABLES_AT))
        walk = tables.space.walk(Gva(start))
        assert walk.physical is None
        assert walk.reason
        with pytest.raises(MappingError):
            tables.space.unmap(Gva(start), page)

    # -- helpers ---------------------------------------------------------------------------------

    def _edit(self, isa: Isa, tables: Tables, model: PagingModel, verb: str, mapping: Mapping) -> str:
        """One edit of tables and model: "done"; or refused, with nothing changed, as "illegal" or "full"."""
        space, start, end = tables.space, mapping.virtual, mapping.end
        legal = model.is_free(start, end) if verb == "map" else model.is_mapped(start, end)
        before = space.free_tables
        image = bytes(tables.bytes) if not legal or len(tables.bytes) < TABLE_MEMORY else b""
        try:
            self._apply(space, verb, mapping)
        except MappingError:
            assert space.free_tables == before
            if image:
                assert bytes(tables.bytes) == image
            return "full" if legal else "illegal"
        assert legal, f"{verb} {mapping} should have been refused"
        if verb == "map":
            model.map(mapping)
        else:
            model.change(start, end, mapping.permissions if verb == "protect" else None)
        self._compare(isa, space, model)
        return "done"

    def _apply(self, space: AddressSpace, verb: str, mapping: Mapping) -> None:
        if verb == "map":
            space.map(mapping)
        elif verb == "unmap":
            space.unmap(mapping.virtual, mapping.size)
        elif verb == "protect":
            space.protect(mapping.virtual, mapping.size, mapping.permissions)
        else:
            space.accessed_dirty(mapping.virtual, mapping.size, clear=verb == "clear")

    def _compare(self, isa: Isa, space: AddressSpace, model: PagingModel) -> None:
        page = isa.page_sizes[0]
        for address in model.edges(page, isa.page_sizes[1:]):
            if not any(address in half for half in isa.virtual_ranges):
                continue
            piece = model.find(address)
            walk = space.walk(Gva(address + 5))
            assert walk.virtual == address + 5
            if piece is None:
                assert walk.physical is None, f"{address:#x} should not be mapped"
                assert walk.reason
                continue
            self._compare_page(isa, piece, address, walk)

    def _compare_page(self, isa: Isa, piece: Piece, address: int, walk: Walk) -> None:
        assert walk.physical == piece.physical + (address - piece.start) + 5, f"{address:#x}: {walk.reason}"
        assert walk.permissions == self.expected_permissions(piece.permissions), f"{address:#x}"
        assert walk.caching == self.expected_caching(piece.caching), f"{address:#x}"
        assert walk.page_size in isa.page_sizes
        assert not walk.reason
        assert walk.steps

    def _inside(self, isa: Isa, model: PagingModel, mapping: Mapping, data: st.DataObject) -> Mapping:
        """A range inside something that is mapped."""
        page = isa.page_sizes[0]
        piece = data.draw(st.sampled_from(model.pieces))
        pages = (piece.end - piece.start) // page
        first = data.draw(st.integers(0, pages - 1))
        most = min(pages - first, 3) if data.draw(st.booleans()) else pages - first
        count = data.draw(st.integers(1, most))
        return mapping._replace(virtual=Gva(piece.start + first * page), size=count * page)

    def _forge(self, isa: Isa, tables: Tables, source: random.Random, how: str) -> None:
        """Fill the tables' memory as a hostile guest would."""
        page = isa.page_sizes[0]
        for index in range(len(tables.bytes) // 8):
            if how == "noise":
                entry = source.getrandbits(64)
            elif how == "low":
                entry = source.getrandbits(12) | 3
            else:  # pointers to tables; for a loop all to the top one
                pages = len(tables.bytes) // page
                target = tables.space.root if how == "loop" else TABLES_AT + source.randrange(pages) * page
                entry = target | source.choice(self.forged_flags)
            struct.pack_into("<Q", tables.bytes, index * 8, entry)
