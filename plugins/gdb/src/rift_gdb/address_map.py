"""What a machine's page tables map, and what the layout calls it."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from rift_core.memory import Gpa, Gva, Permission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.engine import Engine

_TOP = 1 << 64


class MappedRun(NamedTuple):
    """Pages that are mapped alike, to one run of guest-physical memory. ``end`` is the first address behind."""

    start: int
    end: int
    physical: Gpa
    permissions: Permission
    name: str


class AddressMap:
    """The machine's own page tables; a guest may have others beside them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._named = sorted((m.virtual, m.end, m.name) for m in engine.plan.mappings)

    def name_of(self, address: int) -> str:
        """What the layout calls the place; empty: something that came later, or nothing."""
        at = bisect_right(self._named, (address, _TOP, "")) - 1
        if at >= 0 and self._named[at][0] <= address < self._named[at][1]:
            return self._named[at][2]
        return ""

    def pages(self) -> Iterator[tuple[int, int]]:
        """Address and size of each mapped page, ascending.

        :raises MappingError: the guest has damaged its page tables.
        """
        engine = self._engine
        for half in engine.isa.virtual_ranges:
            for page, size, _, _ in engine.space.accessed_dirty(Gva(half.start), half.stop - half.start):
                yield page, size

    def next_mapped(self, address: int) -> int:
        """The first mapped address behind one that is not; 2**64: there is none.

        :raises MappingError: the guest has damaged its page tables.
        """
        engine = self._engine
        for half in engine.isa.virtual_ranges:
            start = max(half.start, address - address % engine.isa.page_sizes[0])
            if start < half.stop:
                pages = engine.space.accessed_dirty(Gva(start), half.stop - start)
                found = next((page for page, _, _, _ in pages if page > address), None)
                if found is not None:
                    return found
        return _TOP

    def runs(self) -> Iterator[MappedRun]:
        """All that is mapped.

        :raises MappingError: the guest has damaged its page tables.
        """
        space = self._engine.space
        run: MappedRun | None = None
        for page, size in self.pages():
            walk = space.walk(Gva(page))
            if walk.physical is None:
                continue  # the guest has just unmapped it
            name = self.name_of(page)
            if (
                run is not None
                and (run.end, run.permissions, run.name) == (page, walk.permissions, name)
                and run.physical + (page - run.start) == walk.physical
            ):
                run = run._replace(end=page + size)
                continue
            if run is not None:
                yield run
            run = MappedRun(page, page + size, walk.physical, walk.permissions, name)
        if run is not None:
            yield run
