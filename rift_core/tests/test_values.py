"""Arguments and results by ctypes' types; the watchdog."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from rift_core.isa import Argument
from rift_core.values import RESULTS, to_argument
from rift_core.watchdog import Watchdog


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, Argument("integer", 8, 5)),
        (-1, Argument("integer", 8, (1 << 64) - 1)),
        (True, Argument("integer", 8, 1)),
        (1.5, Argument("float", 8, 0x3FF8000000000000)),
        (ctypes.c_float(1.5), Argument("float", 4, 0x3FC00000)),
        (ctypes.c_int32(-2), Argument("integer", 4, (1 << 64) - 2)),
        (ctypes.c_uint8(255), Argument("integer", 1, 255)),
        (ctypes.c_void_p(0x1000), Argument("integer", 8, 0x1000)),
    ],
)
def test_arguments(value: object, expected: Argument) -> None:
    assert to_argument(value) == expected


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_integers_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        to_argument(value)


@pytest.mark.parametrize("value", ["text", b"bytes", None, object(), [1]])
def test_other_objects_are_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(TypeError, match="guest memory"):
        to_argument(value)


def test_results_know_their_sign_and_size() -> None:
    assert RESULTS[ctypes.c_int8].signed
    assert RESULTS[ctypes.c_int8].size == 1
    assert not RESULTS[ctypes.c_uint64].signed
    assert RESULTS[ctypes.c_double].kind == "float"
    assert RESULTS[None].kind == "void"


class Guest:
    def __init__(self, seconds: float = float("inf"), *, polled: bool = False) -> None:
        self.deadline = time.monotonic() + seconds
        self.polled = polled
        self.expired = threading.Event()
        self.ticks = 0

    def expire(self) -> None:
        self.expired.set()

    def poll(self, now: float) -> None:
        self.ticks += 1


def test_a_deadline_expires_also_when_the_watchdog_slept_for_a_later_one() -> None:
    watchdog = Watchdog()
    late, soon = Guest(60), Guest(0.1)
    watchdog.watch(late)
    time.sleep(0.05)
    watchdog.watch(soon)
    assert soon.expired.wait(5)
    assert not late.expired.is_set()
    watchdog.unwatch(late)


def test_what_is_not_watched_any_more_does_not_expire() -> None:
    watchdog = Watchdog()
    guest, other = Guest(0.1), Guest(0.3)
    watchdog.watch(guest)
    watchdog.watch(other)
    watchdog.unwatch(guest)
    assert other.expired.wait(5)
    assert not guest.expired.is_set()


def test_polled_guests_get_a_tick_now_and_then() -> None:
    watchdog = Watchdog()
    guest = Guest(polled=True)
    watchdog.watch(guest)
    deadline = time.monotonic() + 5
    while guest.ticks < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    watchdog.unwatch(guest)
    assert guest.ticks >= 3
