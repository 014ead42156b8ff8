"""``python -m benchmarks [--pairs N] [--json | --markdown] [NAME ...]``: run benchmarks and print a table."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from benchmarks import debugger, dispatch, emulator, exits, startup, tables
from rift_core.catalog import Catalog

if TYPE_CHECKING:
    from benchmarks.pairs import Result

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- made by: python -m benchmarks --markdown -->", "<!-- end -->"

BENCHMARKS = {
    "native_exit": exits.native_exit,
    "call": exits.call,
    "startup": startup.startup,
    "tables": tables.tables,
    "tables_aarch64": tables.tables_aarch64,
    "tables_aarch64_16k": tables.tables_aarch64_16k,
    "dispatch": dispatch.native,
    "python_exit": dispatch.python,
    "debugger_registers": debugger.registers,
    "debugger_words": debugger.words,
    "debugger_memory": debugger.memory,
    "debugger_fresh_memory": debugger.fresh_memory,
    "debugger_exit": debugger.exit_cost,
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
@click.option("--markdown", is_flag=True, help="Measure all, and write the table of docs/performance.md.")
@click.argument("names", nargs=-1)
def main(pairs: int, as_json: bool, markdown: bool, names: tuple[str, ...]) -> None:
    """Measure Rift beside a bare C twin that makes the same system calls."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise click.UsageError(f"unknown: {', '.join(unknown)} (there are: {', '.join(BENCHMARKS)})")
    if markdown and (names or pairs < 30):
        raise click.UsageError("--markdown takes all benchmarks, and at least 30 pairs")
    results: list[Result] = [BENCHMARKS[name](pairs) for name in names or BENCHMARKS]
    cold = startup.cold() if not names or "startup" in names else {}
    if as_json:
        click.echo(json.dumps({"machine": nature(), "results": [asdict(r) for r in results], "cold": cold}, indent=2))
        return
    if markdown:
        write_page(results, cold)
        click.echo(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")
        return
    table = Table(title=nature())
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in (COLUMNS[0], COLUMNS[-1]) else "right")
    for r in results:
        table.add_row(*cells(r))
    console = Console(width=140)
    console.print(table)
    for what, seconds in cold.items():
        console.print(f"{what}: {duration(seconds)}")


COLUMNS = ("benchmark", "Rift", "twin", "added", "ratio", "95 % interval", "promise")


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table."""
    return (
        result.what,
        duration(result.ours),
        duration(result.twin),
        duration(result.added),
        f"{result.ratio:.3f}",
        f"{result.low:.3f} - {result.high:.3f}",
        result.promise,
    )


def write_page(results: list[Result], cold: dict[str, float]) -> None:
    """Replace the part of the page that is made by this command."""
    lines = [
        f"Measured on {nature()}, {results[0].pairs} pairs each.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| --- | {'---: | ' * (len(COLUMNS) - 2)}--- |",
        *(f"| {' | '.join(cells(r))} |" for r in results),
        "",
        "Beside it, without a twin: "
        + "; ".join(f"{what} takes {duration(seconds)}" for what, seconds in cold.items())
        + ".",
    ]
    text = PAGE.read_text(encoding="utf-8")
    first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:first]}\n\n" + "\n".join(lines) + f"\n\n{text[last:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
