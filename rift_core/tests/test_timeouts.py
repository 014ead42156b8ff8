"""Time limits longer than Python can wait, and those that are none."""

from __future__ import annotations

import math
import threading

import pytest

from rift_core.timeouts import waitable


@pytest.mark.parametrize("seconds", [None, 0, -1.0, 3.5, threading.TIMEOUT_MAX])
def test_what_can_be_waited_for_stays(seconds: float | None) -> None:
    assert waitable(seconds) == seconds


@pytest.mark.parametrize("seconds", [1e300, math.inf])
def test_longer_is_for_ever(seconds: float) -> None:
    assert waitable(seconds) is None


def test_not_a_number() -> None:
    with pytest.raises(ValueError, match="timeout is nan"):
        waitable(math.nan)
