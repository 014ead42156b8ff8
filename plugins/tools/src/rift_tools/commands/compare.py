"""``rift compare``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from rift_core.commands.source import configuration, machine_options, overrides_of


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--backends", default="kvm,emulator", show_default=True, metavar="A,B", help="The two to compare.")
@click.option("--instructions", is_flag=True, help="Compare registers behind every instruction, not only exits.")
@click.option("--limit", type=click.IntRange(min=1), help="Observations at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    file: Path,
    backend: str | None,
    isa: str | None,
    privilege: str | None,
    settings: tuple[str, ...],
    backends: str,
    instructions: bool,
    limit: int | None,
    as_json: bool,
) -> int:
    """Run one guest on two backends in lock step; print the first difference. Status 1 if there is one.

    FILE is as for `rift run`. Compared are exits, with --instructions registers behind each instruction, and at the
    end registers, memory and what the guest printed.
    """
    from rift_tools.comparison import compare

    if backend is not None:
        raise click.UsageError("two backends are compared: name them with --backends A,B")
    names = tuple(name.strip() for name in backends.split(","))
    if len(names) != 2 or not all(names):
        raise click.BadParameter(f"{backends!r}: two backends, such as kvm,emulator", param_hint="--backends")
    first, second = (configuration(file, overrides_of(name, isa, privilege, settings)) for name in names)
    report = compare(first, second, instructions=instructions, limit=limit)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2, default=str))
        return 1 if report.difference else 0
    if report.difference is None:
        rest = " (limit reached)" if report.limited else ", and the same end"
        click.echo(f"{names[0]} and {names[1]}: {report.observations} observations, all the same{rest}")
        return 0
    click.echo(f"{names[0]} and {names[1]} differ after {report.difference.number} observations")
    click.echo(f"  behind {report.difference.place}")
    for name, words in report.difference.sides:
        click.echo(f"  {name}: {words}")
    return 1
