"""``rift inspect``: what a loader makes of a file."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import click

from rift_core.commands.source import configuration, kind_of
from rift_core.sizes import format_size


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--symbols", "most", default=20, show_default=True, metavar="N", help="Symbols to list; 0 lists none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, most: int, as_json: bool) -> int:
    """Show format, segments and symbols of an executable, or of a configuration's payload."""
    from rift_core.assembly import load_binary
    from rift_core.catalog import Catalog
    from rift_core.report import printable

    kind_of(file)
    with configuration(file, {}) as config:
        binary = load_binary(config, Catalog.installed())
        symbols = sorted(islice(binary.symbols, most if not as_json else None), key=lambda s: s.address)
        if as_json:
            click.echo(
                json.dumps(
                    {
                        "path": str(binary.path),
                        "format": binary.format,
                        "isa": binary.isa,
                        "entry": binary.entry,
                        "segments": [
                            {
                                "name": s.name,
                                "address": s.address,
                                "memory_size": s.memory_size,
                                "file_size": s.data.nbytes,
                                "permissions": str(s.permissions),
                            }
                            for s in binary.segments
                        ],
                        "symbols": [{"name": s.name, "address": s.address, "size": s.size} for s in symbols],
                    },
                    indent=2,
                )
            )
            return 0
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console(highlight=False)
        entry = f"entry {binary.entry:#x}" if binary.entry is not None else "no entry point"
        console.print(escape(f"{printable(str(binary.path))}: {binary.format}, {binary.isa}, {entry}"))
        table = Table(box=None, pad_edge=False)
        for column in ("segment", "address", "end", "memory", "in file", "access"):
            table.add_column(column, justify="right" if column in ("memory", "in file") else "left", no_wrap=True)
        for s in binary.segments:
            table.add_row(
                escape(printable(s.name)),
                f"{s.address:#x}",
                f"{s.address + s.memory_size:#x}",
                format_size(s.memory_size),
                format_size(s.data.nbytes),
                str(s.permissions),
            )
        console.print(table)
        if symbols:
            names = Table(box=None, pad_edge=False)
            for column in ("address", "size", "symbol"):
                names.add_column(column, no_wrap=True)
            for symbol in symbols:
                names.add_row(f"{symbol.address:#x}", format_size(symbol.size), escape(printable(symbol.name)))
            console.print(names)
        if len(binary.symbols) > len(symbols):
            console.print(
                f"... and {len(binary.symbols) - len(symbols)} more symbols (--symbols {len(binary.symbols)})"
            )
    return 0
