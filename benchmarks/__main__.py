"""``python -m benchmarks [--pairs N] [--json] [NAME ...]``: run benchmarks and print a table."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from benchmarks import dispatch, emulator, exits, startup, tables
from rift_core.catalog import Catalog

if TYPE_CHECKING:
    from benchmarks.pairs import Result

BENCHMARKS = {
    "native_exit": exits.native_exit,
    "call": exits.call,
    "startup": startup.startup,
    "tables": tables.tables,
    "dispatch": dispatch.native,
    "python_exit": dispatch.python,
    "emulator_loop": emulator.registers,
    "emulator_memory": emulator.memory,
    "emulator_port": emulator.port,
    "emulator_mmio": emulator.mmio,
    "emulator_python": emulator.python_exit,
}


def duration(seconds: float) -> str:
    """Seconds with a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if abs(seconds) * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def nature() -> str:
    """What machine this is: the kind of KVM, the processor, the Python."""
    entry = Catalog.installed().get("backend", "kvm")
    probe = entry.info.probe(entry.info.config()) if entry.info.probe else None
    kind = probe.machine if probe is not None else "?"
    return f"{kind}, {platform.machine()}, Python {platform.python_version()}, {platform.release()}"


@click.command()
@click.option("--pairs", default=40, show_default=True, help="Alternating pairs; at least 30 for a figure to quote.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("names", nargs=-1)
def main(pairs: int, as_json: bool, names: tuple[str, ...]) -> None:
    """Measure Rift beside a bare C twin that makes the same system calls."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise click.UsageError(f"unknown: {', '.join(unknown)} (there are: {', '.join(BENCHMARKS)})")
    results: list[Result] = [BENCHMARKS[name](pairs) for name in names or BENCHMARKS]
    cold = startup.cold() if not names or "startup" in names else {}
    if as_json:
        click.echo(json.dumps({"machine": nature(), "results": [asdict(r) for r in results], "cold": cold}, indent=2))
        return
    table = Table(title=nature())
    for column in ("benchmark", "Rift", "twin", "added", "ratio", "95 % interval", "promise"):
        table.add_column(column, justify="left" if column in ("benchmark", "promise") else "right")
    for r in results:
        table.add_row(
            r.what,
            duration(r.ours),
            duration(r.twin),
            duration(r.added),
            f"{r.ratio:.3f}",
            f"{r.low:.3f} - {r.high:.3f}",
            r.promise,
        )
    console = Console(width=140)
    console.print(table)
    for what, seconds in cold.items():
        console.print(f"{what}: {duration(seconds)}")


if __name__ == "__main__":
    main()
