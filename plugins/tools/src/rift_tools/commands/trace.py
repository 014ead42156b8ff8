"""``rift trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rift_core.commands.parameters import Seconds
from rift_core.commands.source import configuration, machine_options, overrides_of

if TYPE_CHECKING:
    from rift_tools.tracer import Change, Step


def _change(change: Change) -> str:
    return f"{change.name}: {change.before:#x} -> {change.after:#x}"


def lines(step: Step, threads: int) -> list[str]:
    """A step as text: the instruction, and below it what it did."""
    name = f"{step.thread} " if threads > 1 else ""
    found = [f"{step.number:>6} {name}{step.where}: {step.instruction}"]
    found += [f"           {_change(change)}" for change in (*step.registers, *step.memory)]
    found += [f"           exit: {exit}" for exit in step.exits]
    found += [f"           page walk {walk}" for walk in step.walks]
    if step.exception:
        found.append(f"           exception {step.exception}")
    return found


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Instructions at most.")
@click.option("--walks", is_flag=True, help="Show what the page tables say of each address.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--timeout", type=Seconds(), metavar="SECONDS", help="End the guest after.")
def command(
    file: Path,
    backend: str | None,
    isa: str | None,
    privilege: str | None,
    settings: tuple[str, ...],
    limit: int,
    walks: bool,
    as_json: bool,
    timeout: float | None,
) -> int:
    """Print each instruction of a guest, with the registers and memory it changed and the exception it took.

    FILE is as for `rift run`. Works on every backend that can execute single instructions.
    """
    from rift_core.machine import open_machine
    from rift_tools.tracer import LIMIT_REASON, Tracer

    with open_machine(configuration(file, overrides_of(backend, isa, privilege, settings))) as machine:
        threads = len(machine.threads)

        def show(step: Step) -> None:
            if as_json:
                click.echo(json.dumps(step.as_json()))
            else:
                click.echo("\n".join(lines(step, threads)))

        steps = machine.extend("steps", single=True)
        steps.follow(Tracer(machine.engine, show, limit=limit, walks=walks))
        stop = machine.run(timeout=timeout)
    if stop.reason == LIMIT_REASON:
        click.echo(f"rift: stopped after {limit} instructions; --limit takes more", err=True)
    return stop.status & 0xFF
