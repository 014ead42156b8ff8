"""One thread of the process that ends what takes too long.

A guest that spins makes no exit, so whatever must happen on time comes from outside: deadlines, limits
on rates, and a heartbeat for guests that run on the process's main thread. The heartbeat makes such a
guest leave every 50 ms, so that a Python signal handler runs even when its signal arrived just before
the guest was entered; it is the same for every backend.

Watching must be cheap, since a call into the guest does it: an entry in a dictionary, and a wake-up of
the thread only if it would sleep too long. It keeps ticking for a while when nothing is left.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

from rift_core.interrupts import HELD

TICK = 0.05
"""Seconds between two looks at what wants to be polled."""

_NEVER = float("inf")
_LINGER = 20
"""Ticks to go on for when nothing wants to be polled any more."""


class Watched(Protocol):
    """What can be watched. Both are called on the watchdog's thread and must neither block nor raise."""

    deadline: float  # time.monotonic(); infinity: none
    polled: bool  # wants poll() every TICK

    def expire(self) -> None:
        """The deadline has passed; called once, the deadline is infinity afterwards."""

    def poll(self, now: float) -> None:
        """A tick."""


class Watchdog:
    """Watches any number of guests; its thread is a daemon, started when first needed."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._watched: dict[int, Watched] = {}
        self._condition = threading.Condition(threading.Lock())
        self._wake_at = 0.0  # when the thread will look next; infinity: it must be woken
        self._started = False
        self._ticking = False  # the thread looks every TICK; cleared before its last look at what there is

    def watch(self, guest: Watched) -> None:
        """Begin to watch ``guest``; again after its deadline has changed."""
        self._watched[id(guest)] = guest
        if self._ticking and guest.deadline == _NEVER:
            return
        due = min(guest.deadline, time.monotonic() + TICK) if guest.polled else guest.deadline
        if due < self._wake_at or not self._started:
            with self._condition:
                if not self._started:
                    with HELD:  # else it might be thought to run and does not
                        threading.Thread(target=self._run, name="rift-watchdog", daemon=True).start()
                        self._started = True
                self._condition.notify()

    def unwatch(self, guest: Watched) -> None:
        """Stop watching it; harmless when it is not watched."""
        self._watched.pop(id(guest), None)

    def _run(self) -> None:
        linger = 0
        while True:
            now = time.monotonic()
            linger = _LINGER if self._look(now) else max(linger - 1, 0)
            with self._condition:
                self._ticking = linger > 0
                self._wake_at = self._next(now, now + TICK if linger else _NEVER)
                # A guest that came between that look and the store has not seen it: look once more.
                self._wake_at = self._next(now, self._wake_at)
                pause = self._wake_at - time.monotonic()
                if pause > 0:
                    self._condition.wait(None if pause == _NEVER else min(pause, threading.TIMEOUT_MAX))

    def _look(self, now: float) -> bool:
        """Expire and poll; whether anything wants to be polled. Keeps no reference to a guest while it waits."""
        polled = False
        for guest in list(self._watched.values()):
            if guest.deadline <= now:
                guest.deadline = _NEVER
                guest.expire()
            if guest.polled:
                guest.poll(now)
                polled = True
        return polled

    def _next(self, now: float, due: float) -> float:
        for guest in list(self._watched.values()):
            due = min(due, guest.deadline, now + TICK if guest.polled else due)
        return due


WATCHDOG = Watchdog()
"""The process's own."""

os.register_at_fork(after_in_child=WATCHDOG._reset)
