"""``rift schema``."""

from __future__ import annotations

import json

import click


@click.command()
def command() -> int:
    """Print the JSON schema of rift.toml, for editors: its first line may then say #:schema ./rift.schema.json"""
    from rift_core.catalog import Catalog
    from rift_core.config_model import configuration_schema

    click.echo(json.dumps(configuration_schema(Catalog.installed()), indent=2))
    return 0
