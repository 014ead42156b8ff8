"""How engines end that nobody closes: dropped with their machine, left at the interpreter's exit, forked."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING

from rift_core.errors import StateError

if TYPE_CHECKING:
    from rift_core.engine import Engine

ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
"""Those that are not released yet."""


class _Reaper:
    """Closes the engines of machines that were dropped without close: a finalizer may only signal."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._queue: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        self._started = False

    def start(self) -> None:
        """Have the thread ready before any finalizer needs it."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="rift-reaper", daemon=True).start()

    def put(self, engine: Engine) -> None:
        """Close ``engine`` soon. Called by finalizers: takes no lock."""
        if not engine.forked:
            self._queue.put(engine)

    def _run(self) -> None:
        while True:
            engine = self._queue.get()
            try:
                engine.close()
            except StateError:  # an exit handler does not return: later
                self._queue.put(engine)
            except Exception as error:  # an extension's: told as any thread's, but the other machines need us
                _report(error)
            finally:
                del engine


REAPER = _Reaper()


def _close_all() -> None:
    """At interpreter exit: end and join what still runs."""
    for engine in list(ENGINES):
        try:
            engine.close()
        except Exception as error:
            _report(error)


def _report(error: Exception) -> None:
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


def _forget_in_child() -> None:
    for engine in list(ENGINES):
        engine.forked = True
    ENGINES.clear()
    REAPER.reset()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_in_child)
