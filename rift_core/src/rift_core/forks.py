"""What a fork must not cut in half.

A child inherits descriptors and maps, and gives up those of the machines that it knows of. One that is just being
made or closed on another thread is not known yet, or not any more: it would stay open in the child, and keep the
parent's VM alive. ``with WHOLE:`` a fork by another thread waits for the end of the block.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SECONDS = 10.0
"""How long a fork waits. Nothing in such a block takes a tenth of it; only a hypervisor that hangs does."""


class _Whole:
    """A context manager, reentrant, for any number of threads at once."""

    def __init__(self) -> None:
        self._background: list[Callable[[], None]] = []
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}  # thread ident -> depth
        self._forking = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._forking and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *exception: object) -> None:
        me = threading.get_ident()
        with self._changed:
            depth = self._inside.get(me, 1) - 1
            if depth:
                self._inside[me] = depth
            else:
                self._inside.pop(me, None)
                if self._forking:
                    self._changed.notify_all()

    def before_fork(self, function: Callable[[], None]) -> None:
        """Have ``function`` called before each fork, while nobody is in a block: it waits for what goes on behind."""
        self._background.append(function)

    def _before_fork(self) -> None:
        me = threading.get_ident()
        deadline = time.monotonic() + _MOST_SECONDS
        with self._changed:
            self._forking += 1
            while self._inside.keys() - {me} and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
        for function in self._background:
            function()

    def _after_fork(self) -> None:
        with self._changed:
            self._forking = max(self._forking - 1, 0)
            self._changed.notify_all()


WHOLE = _Whole()
"""``with WHOLE:`` no other thread forks."""

os.register_at_fork(before=WHOLE._before_fork, after_in_parent=WHOLE._after_fork, after_in_child=WHOLE._reset)
