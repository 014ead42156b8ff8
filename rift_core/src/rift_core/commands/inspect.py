"""``rift inspect``: what a loader makes of a file."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rift_core.commands.source import configuration, overrides_of
from rift_core.sizes import format_size

if TYPE_CHECKING:
    from rift_core.binary import Binary, Symbol

_PAGE = 0x1000
"""Bytes of the smallest page of every ISA here."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--isa", help="Instruction set that a source is built for; default: the host's.")
@click.option(
    "--symbols",
    "most",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="Symbols to list; 0 lists none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with all symbols.")
def command(file: Path, isa: str | None, most: int, as_json: bool) -> int:
    """Show format, segments, address space and symbols of an executable, a source once built, or a payload."""
    from rift_core.assembly import load_binary
    from rift_core.catalog import Catalog

    config = configuration(file, overrides_of(None, isa, None, ()))
    binary = load_binary(config, Catalog.installed())
    symbols = sorted(islice(binary.symbols, None if as_json else most), key=lambda s: s.address)
    if as_json:
        click.echo(json.dumps(describe(binary, symbols), indent=2))
    else:
        show(binary, symbols)
    return 0


def describe(binary: Binary, symbols: list[Symbol]) -> dict[str, Any]:
    """The file as plain data; addresses are numbers."""
    return {
        "path": binary.title,
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
        "address_space": address_space(binary),
        "symbols": [{"name": s.name, "address": s.address, "size": s.size} for s in symbols],
    }


def address_space(binary: Binary) -> list[dict[str, Any]]:
    """The pages that the image takes, and what is free between them: where segments share pages, rights add up."""
    from rift_core.layout import page_runs

    runs: list[dict[str, Any]] = []
    for run in page_runs(binary.segments, _PAGE):
        if runs and runs[-1]["end"] < run.start:
            runs.append({"address": runs[-1]["end"], "end": run.start, "permissions": "", "name": "free"})
        name = "+".join(dict.fromkeys(s.name for s in run.segments if s.name))
        runs.append({"address": run.start, "end": run.end, "permissions": str(run.permissions), "name": name})
    return runs


def show(binary: Binary, symbols: list[Symbol]) -> None:
    """The file as tables."""
    from rich.markup import escape

    from rift_core.commands import table
    from rift_core.report import printable

    entry = f"entry {binary.entry:#x}" if binary.entry is not None else "no entry point of its own"
    click.echo(f"{printable(binary.title)}: {binary.format}, {binary.isa}, {entry}\n")
    segments = table.columns("segment", "address", "memory", "in file", "access", right=("memory", "in file"))
    for s in binary.segments:
        segments.add_row(
            escape(printable(s.name)),
            f"{s.address:#x}",
            format_size(s.memory_size),
            format_size(s.data.nbytes),
            str(s.permissions),
        )
    table.show(segments)
    click.echo()
    pages = table.columns("pages", "end", "size", "access", "what", right=("size",))
    for run in address_space(binary):
        size = format_size(run["end"] - run["address"])
        what = escape(printable(run["name"]))
        pages.add_row(f"{run['address']:#x}", f"{run['end']:#x}", size, run["permissions"], what)
    table.show(pages)
    if symbols:
        click.echo()
        names = table.columns("address", "size", "symbol", right=("size",))
        for symbol in symbols:
            names.add_row(f"{symbol.address:#x}", format_size(symbol.size), escape(printable(symbol.name)))
        table.show(names)
    if len(binary.symbols) > len(symbols):
        click.echo(f"... and {len(binary.symbols) - len(symbols)} more symbols (--symbols {len(binary.symbols)})")
