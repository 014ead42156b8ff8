"""Time limits that callers give."""

from __future__ import annotations

import threading


def waitable(seconds: float | None) -> float | None:
    """``seconds`` as Python's own waiting takes them: None, which is for ever, where it cannot wait that long.

    :raises ValueError: it is not a number.
    """
    if seconds is None or seconds <= threading.TIMEOUT_MAX:
        return seconds
    if seconds != seconds:  # NaN
        raise ValueError(f"timeout is {seconds}: give seconds, or None to wait for ever")
    return None
