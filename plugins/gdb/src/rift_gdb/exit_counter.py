"""Counts exits by kind, for ``monitor exits``: only while somebody wants it, since it costs every exit a little."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import VCpu
    from rift_core.dispatch import Dispatcher
    from rift_core.exits import Exit


class ExitCounter:
    """Exits as they reach Python; those that native handlers serve are not among them."""

    def __init__(self) -> None:
        self.counts: Counter[ExitKind] = Counter()
        self._stops: list[Callable[[], None]] = []

    def start(self, dispatcher: Dispatcher) -> None:
        """Begin, or begin again at 0."""
        self.stop()
        self.counts.clear()
        self._stops = [dispatcher.observe(kind, self._note) for kind in ExitKind]

    def stop(self) -> None:
        """End; what was counted stays."""
        for stop in self._stops:
            stop()
        self._stops = []

    def _note(self, vcpu: VCpu, exit: Exit) -> None:
        self.counts[exit.kind] += 1
