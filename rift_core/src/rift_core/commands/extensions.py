"""Options that plugins add to Rift's own commands: each stands for one extension of the machine.

A plugin names its option in the entry point group ``rift.options``, as ``COMMAND.NAME = "module:attribute"``, and makes
it with :func:`extension_option`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rift_core.machine import Machine

OPTIONS = "rift.options"
_KEY = "rift_core.extensions"


def extension_option(*declarations: str, extension: str, key: str, **attributes: Any) -> click.Option:
    """An option that has an extension take part, with its value as one of the extension's settings.

    :param attributes: those of ``click.Option``.
    """

    def note(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value is not None:
            context.meta.setdefault(_KEY, []).append((extension, {key: value}))
        return value

    return click.Option(declarations, expose_value=False, callback=note, **attributes)


def add_options(command: click.Command, name: str) -> click.Command:
    """Give a command of Rift's own the options that installed plugins have for it. Those that cannot be loaded are
    told of and left out."""
    known = {option for parameter in command.params for option in parameter.opts}
    for point in entry_points(group=OPTIONS):
        if point.name.partition(".")[0] != name:
            continue
        try:
            module, _, attribute = point.value.partition(":")
            option: click.Option = getattr(import_module(module), attribute)
        except Exception as error:
            click.echo(f"rift: option {point.name} of a plugin cannot be loaded ({point.value}): {error}", err=True)
            continue
        if not known & set(option.opts):
            known |= set(option.opts)
            command.params.append(option)
    return command


def extend(machine: Machine) -> None:
    """Have the extensions take part that the options of the running command stand for."""
    for name, settings in click.get_current_context().meta.get(_KEY, ()):
        machine.extend(name, **settings)
