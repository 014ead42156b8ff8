"""``rift compare``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rift_core.cli import STATUS_TIME_LIMIT
from rift_core.commands.parameters import Seconds
from rift_core.commands.source import configuration, machine_options, overrides_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_tools.comparison import Report


def lines(report: Report, names: tuple[str, ...], seconds: float, threads: int) -> Iterator[str]:
    """The report as text; ``threads``: of the guest."""
    both = " and ".join(names)
    if report.difference is not None:
        yield f"{both} differ after {report.difference.number} observations"
        yield f"  behind {report.difference.place}"
        yield from (f"  {name}: {words}" for name, words in report.difference.sides)
        if threads > 1:
            yield (
                f"The guest has {threads} threads, and how they interleave is not the same twice: that may be all "
                "there is to it. --thread NAME runs one of them alone."
            )
        return
    same = f"{both}: {report.observations} observations, all the same"
    if report.running is None:
        yield same + (" (limit reached)" if report.limited else ", and the same end")
        return
    yield f"{same}; not at an end after {seconds:g} s (--timeout takes more)"
    for name, places in report.running:
        yield from (f"  {name}: {place}" for place in places)
    yield "A guest that waits for its own host program, or for a thread that --thread left out, never ends here."


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--backends", default="kvm,emulator", show_default=True, metavar="A,B", help="The two to compare.")
@click.option("--instructions", is_flag=True, help="Compare registers behind every instruction, not only exits.")
@click.option("--limit", type=click.IntRange(min=1), help="Observations at most.")
@click.option("--thread", metavar="NAME", help="Run only this one of the guest's threads.")
@click.option(
    "--timeout",
    type=Seconds(),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop after, with status 124, and say where the guest's threads are.",
)
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
    thread: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Run one guest on two backends in lock step; print the first difference. Status 1 if there is one.

    FILE is as for `rift run`. Compared are exits, with --instructions registers behind each instruction, and at the
    end registers, memory and what the guest printed. Each thread is compared with itself: how threads interleave is
    not the same twice, so that --instructions takes one of several.
    """
    from rift_tools.comparison import compare

    if backend is not None:
        raise click.UsageError("two backends are compared: name them with --backends A,B")
    names = tuple(name.strip() for name in backends.split(","))
    if len(names) != 2 or not all(names):
        raise click.BadParameter(f"{backends!r}: two backends, such as kvm,emulator", param_hint="--backends")
    first, second = (configuration(file, overrides_of(name, isa, privilege, settings)) for name in names)
    if instructions and thread is None and len(first.threads) > 1:
        choices = ", ".join(each.name for each in first.threads)
        raise click.UsageError(
            f"the guest has {len(first.threads)} threads, and how they interleave is not the same twice: name the one "
            f"whose instructions to compare with --thread ({choices}), or leave --instructions out"
        )
    report = compare(first, second, instructions=instructions, limit=limit, seconds=timeout, thread=thread)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2, default=str))
    else:
        click.echo("\n".join(lines(report, names, timeout, threads=1 if thread else len(first.threads))))
    if report.difference is not None:
        return 1
    return STATUS_TIME_LIMIT if report.running is not None else 0
