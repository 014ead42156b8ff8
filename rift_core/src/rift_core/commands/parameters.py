"""Values that several commands take, and what click says of wrong ones."""

from __future__ import annotations

import threading
from typing import Any

import click


def integer(text: str) -> int:
    """An argument of a guest's function: 12, -1, 0x1000.

    :raises click.BadParameter: it is no number, or 64 bits cannot hold it, signed or not.
    """
    try:
        number = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r}: arguments of the entry function are integers (12, 0x1000)") from None
    if not -(1 << 63) <= number < 1 << 64:
        raise click.BadParameter(f"{text}: arguments of the entry function have 64 bits")
    return number


class Seconds(click.FloatRange):
    """A time limit, which Python's own waiting must be able to keep."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; neither NaN nor infinity is one."""
        number = super().convert(value, param, ctx)
        if not number <= threading.TIMEOUT_MAX:
            self.fail(f"{value} is no number of seconds that can be waited for", param, ctx)
        return number
