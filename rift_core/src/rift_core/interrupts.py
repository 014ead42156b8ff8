"""Ctrl-C may come at any moment; what must not be cut in half holds it back for that long.

Python raises KeyboardInterrupt between any two instructions of the main thread. Where that would leave half a
change behind (memory that the guest has and nobody owns, a thread that runs and is thought not to), ``with
HELD:`` makes the interrupt wait for the end of the block. Only SIGINT, only on the main thread, and only for as
long as the block: nothing in it may wait for a guest.

What a call into the guest does is too frequent for that (it costs several microseconds). There a lock is
the state: ``with lock:`` acquires and releases whole, whatever arrives (see :class:`~rift_core.context.Context`).
"""

from __future__ import annotations

import os
import threading

# What stands behind the functions of the module signal, which look at every argument and result for its place in an
# enumeration: 10 us a block, where a machine is made in a few hundred.
from _signal import getsignal
from _signal import signal as set_signal
from signal import SIGINT
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


class _MainThread:
    """``ident`` of the thread on which Python runs signal handlers; another one in a child that a thread forked."""

    def __init__(self) -> None:
        self.update()

    def update(self) -> None:
        self.ident = threading.main_thread().ident


MAIN_THREAD = _MainThread()


class _HeldInterrupts:
    """A context manager, reentrant; on other threads than the main one it does nothing."""

    def __init__(self) -> None:
        self._depth = 0
        self._holder = 0  # ident of the thread whose interrupts are held
        self._previous: Any = None
        self._arrived: tuple[int, FrameType | None] | None = None
        self._handler = self._hold  # one object, to be recognised by identity

    def __enter__(self) -> None:
        if self._depth:
            if threading.get_ident() == self._holder:
                self._depth += 1
            return
        me = threading.get_ident()
        if me != MAIN_THREAD.ident:
            return
        previous = getsignal(SIGINT)
        if callable(previous):  # the default and "ignore" raise nothing; None is not Python's to replace
            self._previous = previous
            self._holder = me
            try:
                set_signal(SIGINT, self._handler)  # from here on nothing interrupts
            except ValueError:  # a subinterpreter, where no Python signal handler runs
                return
            self._depth = 1

    def __exit__(self, *exception: object) -> None:
        if not self._depth or threading.get_ident() != self._holder:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        previous, self._previous = self._previous, None
        self._depth = 0  # now: what follows may be interrupted
        try:
            if getsignal(SIGINT) is self._handler:
                set_signal(SIGINT, previous)
        finally:  # not before: one that arrives in between must not be lost
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            previous(*arrived)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._arrived = (number, frame)

    def _forked(self) -> None:
        """In a child that was forked by another thread: the block of the main thread will never end."""
        if self._depth and threading.get_ident() != self._holder:
            self._depth = 0
            self._arrived = None
            if getsignal(SIGINT) is self._handler:
                set_signal(SIGINT, self._previous)


HELD = _HeldInterrupts()
"""``with HELD:`` an interrupt waits until the end of the block."""

os.register_at_fork(after_in_child=MAIN_THREAD.update)
os.register_at_fork(after_in_child=HELD._forked)
