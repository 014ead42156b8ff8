"""What a process holds: file descriptors, threads, memory maps. For tests that nothing is left behind."""

from __future__ import annotations

import gc
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


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts at one moment; -1 where the system does not tell."""

    descriptors: int
    threads: int
    maps: int

    def grown(self, later: Holdings, allowed_maps: int) -> str:
        """What ``later`` has more of, in words; empty if nothing."""
        parts = []
        if later.descriptors > self.descriptors:
            parts.append(f"file descriptors: {self.descriptors} before, {later.descriptors} after")
        if later.threads > self.threads:
            names = ", ".join(thread.name for thread in threading.enumerate())
            parts.append(f"threads: {self.threads} before, {later.threads} after ({names})")
        if later.maps > self.maps + allowed_maps:
            parts.append(f"memory maps: {self.maps} before, {later.maps} after")
        return "; ".join(parts)


def holdings() -> Holdings:
    """Count now, after a garbage collection."""
    gc.collect()
    tasks, maps = _PROC / "task", _PROC / "maps"
    return Holdings(
        descriptors=len(list(_DEV_FD.iterdir())) if _DEV_FD.exists() else -1,
        threads=len(list(tasks.iterdir())) if tasks.exists() else threading.active_count(),
        maps=maps.read_bytes().count(b"\n") if maps.exists() else -1,
    )


@contextmanager
def no_leaks(*, allowed_maps: int = 8) -> Iterator[None]:
    """Fail if the block leaves more descriptors, threads or memory maps than it found.

    Do once before the block what is made once a process (imports, caches, helper threads). The allocator
    may keep ``allowed_maps`` more maps: a leak shows as one for each of many repetitions.

    :raises AssertionError: with the counts.
    """
    before = holdings()
    yield
    deadline = time.monotonic() + _SETTLE_SECONDS
    while grown := before.grown(holdings(), allowed_maps):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {grown}")
        time.sleep(0.02)
