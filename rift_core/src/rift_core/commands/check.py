"""``rift check``: everything short of the hypervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rift_core.commands.source import configuration, machine_options, overrides_of
from rift_core.memory import Caching
from rift_core.sizes import format_size

if TYPE_CHECKING:
    from rift_core.assembly import Assembly


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    file: Path,
    backend: str | None,
    isa: str | None,
    privilege: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> int:
    """Validate FILE, load its binary and lay its memory out. No virtual machine is made.

    Where no backend works, limits that every backend keeps are assumed.
    """
    from rift_core.assembly import check
    from rift_core.catalog import Catalog

    config = configuration(file, overrides_of(backend, isa, privilege, settings))
    assembly = check(config, Catalog.installed())
    if as_json:
        click.echo(json.dumps(describe(assembly), indent=2))
    else:
        show(assembly)
    return 0


def describe(assembly: Assembly) -> dict[str, Any]:
    """The plan as plain data; addresses are numbers."""
    plan, binary = assembly.plan, assembly.binary
    return {
        "binary": {
            "path": binary.title,
            "format": binary.format,
            "isa": binary.isa,
            "entry": binary.entry,
            "segments": len(binary.segments),
            "symbols": len(binary.symbols),
        },
        "backend": {
            "name": assembly.backend.entry.info.name,
            "available": assembly.backend.probe.available,
            "reason": assembly.backend.why,
        },
        "ram": {"address": plan.ram.physical, "size": plan.ram.size, "free": len(plan.heap)},
        "tables": {"address": plan.tables.physical, "size": plan.tables.size},
        "regions": [
            {"address": r.physical, "size": r.size, "permissions": str(r.permissions), "name": r.name}
            for r in plan.regions
        ],
        "mappings": [
            {
                "virtual": m.virtual,
                "physical": m.physical,
                "size": m.size,
                "permissions": str(m.permissions),
                "caching": m.caching.name,
                "name": m.name,
            }
            for m in sorted(plan.mappings, key=lambda m: m.virtual)
        ],
        "threads": [
            {"name": t.name, "entry": entry, "privilege": t.privilege}
            for t, entry in zip(assembly.config.threads, assembly.entries(), strict=True)
        ],
    }


def show(assembly: Assembly) -> None:
    """The plan as tables."""
    from rich.markup import escape
    from rich.table import Table

    from rift_core.commands import table
    from rift_core.report import printable

    plan, binary = assembly.plan, assembly.binary
    state = "available" if assembly.backend.probe.available else "not available here: assumed limits"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("binary", escape(printable(binary.title)))
    facts.add_row("", f"{binary.format}, {binary.isa}, {len(binary.segments)} segments, {len(binary.symbols)} symbols")
    facts.add_row("backend", escape(f"{assembly.backend.entry.info.name} ({state})"))
    facts.add_row(
        "memory",
        f"{format_size(plan.ram.size)} at {plan.ram.physical:#x}, of which {format_size(len(plan.heap))} are free and "
        f"{format_size(plan.tables.size)} page tables",
    )
    for thread, entry in zip(assembly.config.threads, assembly.entries(), strict=True):
        stack = plan.areas[f"{thread.name}/stack"]
        facts.add_row(
            "thread",
            f"{thread.name}: {thread.privilege}, entry {entry:#x}, {format_size(stack.size)} of stack below "
            f"{stack.virtual + stack.size:#x}",
        )
    table.show(facts)
    click.echo()
    mappings = table.columns("virtual", "size", "physical", "access", "name", right=("size",))
    for mapping in sorted(plan.mappings, key=lambda m: m.virtual):
        caching = "" if mapping.caching is Caching.WRITE_BACK else f" {mapping.caching.name.lower().replace('_', '-')}"
        mappings.add_row(
            f"{mapping.virtual:#x}",
            format_size(mapping.size),
            f"{mapping.physical:#x}",
            f"{mapping.permissions}{caching}",
            escape(printable(mapping.name)),
        )
    table.show(mappings)
