"""Paired measurements on noisy machines: alternate, take the ratio of each pair, report the median."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Result:
    """Seconds for one operation on either side, and the ratio with its 95 % interval."""

    name: str
    what: str
    ours: float
    twin: float
    ratio: float
    low: float
    high: float
    pairs: int
    promise: str = ""

    @property
    def added(self) -> float:
        """Seconds that Rift adds to one operation: the difference of the medians."""
        return self.ours - self.twin


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median: the widest pair of order statistics that the binomial allows."""
    ordered = sorted(values)
    count = len(ordered)
    tail, below = 0.0, 0
    while below < count // 2:
        tail += comb(count, below) / 2**count
        if 2 * tail > 1 - confidence:
            break
        below += 1
    return ordered[max(below - 1, 0)], ordered[min(count - below, count - 1)]


def compare(
    name: str,
    what: str,
    ours: Callable[[], float],
    twin: Callable[[], float],
    *,
    pairs: int = 40,
    promise: str = "",
) -> Result:
    """Run both ``pairs`` times in turn, the order changing; each returns the seconds of one operation."""
    ours()
    twin()
    our_times, twin_times, ratios = [], [], []
    gc.collect()
    gc.disable()
    try:
        for number in range(pairs):
            if number % 2:
                other = twin()
                mine = ours()
            else:
                mine = ours()
                other = twin()
            our_times.append(mine)
            twin_times.append(other)
            ratios.append(mine / other)
    finally:
        gc.enable()
    low, high = median_interval(ratios)
    return Result(
        name,
        what,
        statistics.median(our_times),
        statistics.median(twin_times),
        statistics.median(ratios),
        low,
        high,
        pairs,
        promise,
    )
