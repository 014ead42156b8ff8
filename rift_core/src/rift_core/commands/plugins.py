"""``rift plugins``: a row for everything that is installed, broken or not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rift_core.catalog import Catalog, CatalogEntry


def describe(catalog: Catalog) -> list[dict[str, str]]:
    """Kind, name, version, distribution, summary, status of each plugin."""
    doubled = {id(entry) for entries in catalog.conflicts() for entry in entries}
    found = []
    for entry in sorted(catalog, key=lambda e: (e.info.kind, e.info.name)):
        status = "conflict: another distribution provides the same" if id(entry) in doubled else _status(entry)
        found.append(
            {
                "kind": entry.info.kind,
                "name": entry.info.name,
                "version": entry.version,
                "distribution": entry.distribution,
                "summary": entry.info.summary,
                "status": status,
            }
        )
    found += [
        {
            "kind": "?",
            "name": broken.name,
            "version": broken.version,
            "distribution": broken.distribution,
            "summary": "",
            "status": f"failed to load: {broken.error}",
        }
        for broken in catalog.broken
    ]
    return found


def _status(entry: CatalogEntry) -> str:
    probe = entry.probe()
    if probe is None:
        return "installed"
    return "available" if probe.available else f"unavailable: {probe.reason}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> int:
    """List installed plugins, and whether they work."""
    from rift_core.catalog import Catalog

    found = describe(Catalog.installed())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 0
    from rich.markup import escape

    from rift_core.commands import table

    rows = table.columns("kind", "name", "from", "status")
    for row in found:
        rows.add_row(
            row["kind"], escape(row["name"]), escape(f"{row['distribution']} {row['version']}"), escape(row["status"])
        )
    table.show(rows)
    return 0
