"""Tables as the commands print them: fitted to a terminal, and complete where a program reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


def columns(*names: str, right: Iterable[str] = (), wrap: str = "") -> Table:
    """A table without lines. Columns keep their width but for ``wrap``, by default the last one, which may break.

    :param right: names of columns that are aligned to the right.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        breaks = name == (wrap or names[-1])
        table.add_column(name, justify="right" if name in right else "left", no_wrap=not breaks, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print it. What is no terminal gets lines as long as they need to be, without spaces at their ends."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = 1 << 12
    console.width = max(console.measure(table).maximum, 1)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
