"""Guest-physical memory that nothing uses yet: page runs, first fit."""

from __future__ import annotations

from rift_core.layout import align_up


class PhysicalHeap:
    """Free guest-physical ranges of some machine's RAM, in whole pages."""

    def __init__(self, page: int) -> None:
        self.page = page
        self._free: list[tuple[int, int]] = []  # (start, end), ascending, never adjacent

    @property
    def free_bytes(self) -> int:
        """Bytes that are left, perhaps in pieces."""
        return sum(end - start for start, end in self._free)

    def release(self, start: int, size: int) -> None:
        """Give a range (back); it is joined with its neighbours."""
        if size <= 0:
            return
        self._free.append((start, start + align_up(size, self.page)))
        self._free.sort()
        joined = [self._free[0]]
        for low, high in self._free[1:]:
            if low <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
            else:
                joined.append((low, high))
        self._free = joined

    def take(self, size: int, alignment: int = 0, congruent_to: int = 0) -> int | None:
        """Start of ``size`` free bytes, congruent to ``congruent_to`` modulo ``alignment``; None if there are none."""
        size = align_up(size, self.page)
        alignment = alignment or self.page
        offset = congruent_to % alignment
        for at, (low, high) in enumerate(self._free):
            start = align_up(low - offset, alignment) + offset
            if start < low:
                start += alignment
            if start + size <= high:
                rest = [(low, start), (start + size, high)]
                self._free[at : at + 1] = [(a, b) for a, b in rest if a < b]
                return start
        return None
