"""The thread that ends what takes too long, without machines."""

from __future__ import annotations

import threading
import time

from rift_core.watchdog import Watchdog


class Guest:
    polled = False

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired = threading.Event()

    def expire(self) -> None:
        self.expired.set()

    def poll(self, now: float) -> None:
        raise AssertionError("it did not want to be polled")


def test_deadlines_beyond_what_can_be_waited_for() -> None:
    watchdog = Watchdog()
    late, soon = Guest(1e300), Guest(time.monotonic() + 0.2)
    watchdog.watch(late)
    watchdog.watch(soon)
    assert soon.expired.wait(20)
    time.sleep(0.1)  # it waits for the late one alone
    again = Guest(time.monotonic() + 0.05)
    watchdog.watch(again)
    assert again.expired.wait(20)
    assert not late.expired.is_set()
