"""Tables for people: as wide as they need when nobody watches, and folded, never cut off, on a narrow terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNBOUNDED = 10_000
"""Columns of output that is no terminal: a pipe or a file has no width, and addresses must arrive whole."""


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _UNBOUNDED
    return made


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; ``right`` are the columns that are aligned at their right edge."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
