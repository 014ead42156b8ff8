"""One daemon thread a process that looks after consoles whose bytes still wait in C."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rift_handlers.console import Console

INTERVAL = 0.05
"""Seconds that a byte waits at most before a person sees it."""

_STOP_SECONDS = 1.0  # how long the interpreter's end waits for a write in progress


class Flusher:
    """Flushes each console once an interval, until it has been quiet for a whole one."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._consoles: set[Console] = set()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def watch(self, console: Console) -> bool:
        """Flush ``console`` from now on. False: the interpreter is ending, nobody will."""
        with self._changed:
            if self._stopped:
                return False
            self._consoles.add(console)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rift-console", daemon=True)
                self._thread.start()
            self._changed.notify()
            return True

    def stop(self) -> None:
        """Let a write in progress end, and do no other: a daemon thread must not hold a stream's lock when the
        interpreter goes away."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._consoles and not self._stopped:
                    self._changed.wait()
                self._changed.wait_for(lambda: self._stopped, INTERVAL)
                if self._stopped:
                    return
            self._tick_all()

    def _tick_all(self) -> None:
        """Not under the lock: a write may take as long as a pipe's reader likes."""
        for console in list(self._consoles):
            if not console.tick():
                with self._changed:
                    if not console.armed:
                        self._consoles.discard(console)


FLUSHER = Flusher()
atexit.register(FLUSHER.stop)
os.register_at_fork(after_in_child=FLUSHER._reset)
