"""What a process holds: file descriptors, threads, memory maps. For tests that nothing is left behind."""

from __future__ import annotations

import gc
import mmap
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTLE_SECONDS = 5.0  # reapers and ending threads get this long before a difference counts
_PROC = Path("/proc/self")
_DEV_FD = Path("/dev/fd")
_STATM = _PROC / "statm"

TELLS_RESIDENT = _STATM.exists()
"""Whether the system says how much of a process is in memory."""

_ARENA = 64 << 20  # HEAP_MAX_SIZE of glibc's malloc/arena.c: the size and alignment of a thread's heap


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts at one moment; -1 where the system does not tell.

    ``named`` are maps of files, guest memory (a memfd) and vCPUs; ``maps`` are the anonymous ones, without the stacks
    and heaps of threads: the C library keeps some of those when their threads have ended, as many as it likes.
    """

    descriptors: int
    threads: int
    named: int
    maps: int

    def grown(self, later: Holdings, allowed_maps: int) -> str:
        """What ``later`` has more of, in words; empty if nothing."""
        parts = []
        if later.named > self.named:
            parts.append(f"maps of files and devices: {self.named} before, {later.named} after")
        if later.descriptors > self.descriptors:
            parts.append(f"file descriptors: {self.descriptors} before, {later.descriptors} after")
        if later.threads > self.threads:
            names = ", ".join(thread.name for thread in threading.enumerate())
            parts.append(f"threads: {self.threads} before, {later.threads} after ({names})")
        if later.maps > self.maps + allowed_maps:
            parts.append(f"anonymous maps: {self.maps} before, {later.maps} after")
        return "; ".join(parts)


def holdings() -> Holdings:
    """Count now, after a garbage collection."""
    gc.collect()
    tasks, maps = _PROC / "task", _PROC / "maps"
    named, anonymous = _count_maps(maps.read_text()) if maps.exists() else (-1, -1)
    return Holdings(
        descriptors=len(list(_DEV_FD.iterdir())) if _DEV_FD.exists() else -1,
        threads=len(list(tasks.iterdir())) if tasks.exists() else threading.active_count(),
        named=named,
        maps=anonymous,
    )


def resident() -> int:
    """Bytes of this process that are in memory; for tests that are skipped where :data:`TELLS_RESIDENT` is false."""
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE


def _count_maps(text: str) -> tuple[int, int]:
    """Named and anonymous maps in a ``/proc/self/maps``, see :class:`Holdings`.

    AddressSanitizer keeps what was freed in anonymous maps of its own: -1 where it is loaded.
    """
    named = anonymous = 0
    guard_end = arena_end = 0
    for line in text.splitlines():
        where, permissions, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in where.split("-"))
        if name:
            named += 1
        elif permissions == "---p" and end - start == mmap.PAGESIZE:
            guard_end = end  # the guard below a thread's stack
        elif start == guard_end:
            continue  # the stack
        elif start % _ARENA == 0 and end - start <= _ARENA:
            arena_end = start + _ARENA
        elif start >= arena_end:
            anonymous += 1
    return named, -1 if "/libasan.so" in text else anonymous


@contextmanager
def no_leaks(*, allowed_maps: int = 8) -> Iterator[None]:
    """Fail if the block leaves more descriptors, threads or memory maps than it found.

    Do once before the block what is made once a process (imports, caches, helper threads). The allocator
    may keep ``allowed_maps`` more anonymous maps: a leak shows as one for each of many repetitions.

    :raises AssertionError: with the counts.
    """
    before = holdings()
    yield
    deadline = time.monotonic() + _SETTLE_SECONDS
    while grown := before.grown(holdings(), allowed_maps):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {grown}")
        time.sleep(0.02)
