"""``rift run``."""

from __future__ import annotations

from pathlib import Path

import click

from rift_core.commands.extensions import extend
from rift_core.commands.parameters import Seconds, integer
from rift_core.commands.source import configuration, machine_options, overrides_of


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--timeout", type=Seconds(), metavar="SECONDS", help="End the guest after.")
@click.option("-v", "--verbose", is_flag=True, help="Say which backend runs the guest, and why.")
@click.option("--profile", is_flag=True, help="Count executed instructions by symbol (needs riftvm-tools).")
@click.argument("arguments", nargs=-1, type=integer)
def command(
    file: Path,
    backend: str | None,
    isa: str | None,
    privilege: str | None,
    settings: tuple[str, ...],
    timeout: float | None,
    verbose: bool,
    profile: bool,
    arguments: tuple[int, ...],
) -> int:
    """Run a payload and return the guest's status.

    FILE is a configuration (TOML), a C or assembler source, which is built first, or an executable.
    ARGUMENTS, after --, go to the entry function of the first thread.
    """
    from rift_core.machine import open_machine

    config = configuration(file, overrides_of(backend, isa, privilege, settings))
    with open_machine(config) as machine:
        extend(machine)
        if verbose:
            click.echo(f"rift: backend {machine.backend_reason}", err=True)
        for notice in machine.notices:
            click.echo(f"rift: {notice}", err=True)
        counts = machine.extend("profile") if profile else None
        try:
            stop = machine.run(*arguments, timeout=timeout)
        finally:
            if counts is not None:
                click.echo(counts.report(), err=True)
    return stop.status & 0xFF
