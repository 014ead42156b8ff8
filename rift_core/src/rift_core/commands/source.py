"""The FILE of a command, and the options that commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rift_core.catalog import Catalog
from rift_core.config import MachineConfig, load_config
from rift_core.errors import ConfigError
from rift_core.files import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--backend``, ``--isa``, ``--privilege``, ``--set``."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key of the configuration."),
        click.option("--privilege", type=click.Choice(["supervisor", "user"]), help="Where the threads start."),
        click.option("--isa", help="Instruction set; default: the executable's own, or for a source the host's."),
        click.option("--backend", help="Backend; default: the first that works."),
    ):
        function = option(function)
    return function


def overrides_of(
    backend: str | None, isa: str | None, privilege: str | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """The options as dotted keys.

    :raises ConfigError: a setting without ``=``.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: write KEY=VALUE, such as --set memory.size=64MiB")
        overrides[key.strip()] = value.strip()
    if backend is not None:
        overrides["backend.name"] = backend
    if isa is not None:
        overrides["isa.name"] = isa
    if privilege is not None:
        overrides["threads.*.privilege"] = privilege
    return overrides


def configuration(path: Path, overrides: dict[str, Any]) -> MachineConfig:
    """The configuration that FILE is, or stands for.

    :raises ConfigError: it is not valid.  :raises BinaryError: it is not there, or of no known kind.
    """
    kind_of(path)
    return load_config(path, overrides=overrides, catalog=Catalog.installed())
