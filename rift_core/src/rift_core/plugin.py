"""How a plugin declares itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pluggy
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import ProbeResult

PROJECT = "rift"
"""Name of the pluggy project and prefix of every hook."""

ENTRY_POINTS = "rift.plugins"
"""Entry point group: ``name = "module"``."""

COMMANDS = "rift.commands"
"""Entry point group of click commands that plugins add to ``rift``."""

CORE_TABLES = frozenset(
    {"binary", "loader", "backend", "isa", "memory", "threads", "exit_handlers", "extensions", "limits"}
)
"""Tables of the configuration that are core's: no extension's table has such a name."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

PluginKind = Literal["backend", "isa", "binding", "loader", "exit_handler", "extension"]


class Section(BaseModel):
    """Base of every plugin's settings: one table of the configuration file.

    Core adds the discriminating key ``name``; a plugin declares only its own keys.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin's visiting card.

    :param name: unique within its kind; a binding's is ``backend/isa``.
    :param config: the model of its table; the base class where it has no settings.
    :param probe: backends only: says whether and how well it works here. Takes the section. Must not raise.
    :param table: extensions only: a table of the file that stands for one of ``[[extensions]]`` with this name. It
        names a role, such as ``debug``; where several plugins have it, the table's key ``name`` chooses.
    """

    kind: PluginKind
    name: str
    summary: str
    config: type[Section] = Section
    probe: Callable[[Section], ProbeResult] | None = None
    table: str = ""
