"""What is installed: every plugin's visiting card, each loaded by itself, so that a broken one is only a row.

``RIFT_NO_PLUGINS=1`` loads none, ``RIFT_DISABLE_PLUGINS=a,b`` leaves these entry points out,
``RIFT_RAISE_PLUGIN_ERRORS=1`` raises what importing one raises.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from rift_core.errors import PluginConflictError, PluginLoadError, PluginNotFoundError
from rift_core.plugin import ENTRY_POINTS, PluginInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One plugin of one kind; or, with ``error`` set, an entry point that could not be loaded."""

    info: PluginInfo
    module: Any
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """An entry point that could not be loaded."""

    name: str
    distribution: str
    version: str
    error: PluginLoadError


class Catalog:
    """The plugins that a configuration can choose from."""

    def __init__(self, entries: Iterable[CatalogEntry], broken: Iterable[BrokenPlugin] = ()) -> None:
        self._entries: dict[tuple[str, str], list[CatalogEntry]] = {}
        for entry in entries:
            self._entries.setdefault((entry.info.kind, entry.info.name), []).append(entry)
        self.broken = tuple(broken)

    @staticmethod
    @cache
    def installed() -> Catalog:
        """All plugins of this environment; found once a process."""
        return _discover()

    @staticmethod
    def of(modules: Iterable[ModuleType | object]) -> Catalog:
        """A catalog of just these modules."""
        entries = []
        for module in modules:
            name = getattr(module, "__name__", type(module).__name__)
            entries += [CatalogEntry(info, module, name, "") for info in _infos(module)]
        return Catalog(entries)

    def __iter__(self) -> Iterator[CatalogEntry]:
        return (entry for entries in self._entries.values() for entry in entries)

    def of_kind(self, kind: str) -> list[CatalogEntry]:
        """The plugins of a kind, in order of their names; of several with one name, none."""
        return [entries[0] for (k, _), entries in sorted(self._entries.items()) if k == kind and len(entries) == 1]

    def has(self, kind: str, name: str) -> bool:
        """Whether such a plugin is installed."""
        return (kind, name) in self._entries

    def conflicts(self) -> list[list[CatalogEntry]]:
        """Plugins that share kind and name."""
        return [entries for entries in self._entries.values() if len(entries) > 1]

    def get(self, kind: str, name: str) -> CatalogEntry:
        """The plugin of that kind and name.

        :raises PluginNotFoundError: it is not installed; lists those that are, and any that failed to load.
        :raises PluginConflictError: two distributions provide it.
        """
        entries = self._entries.get((kind, name))
        if entries is None:
            known = sorted(n for k, n in self._entries if k == kind)
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            failed = "".join(f"; {b.name} of {b.distribution} failed to load: {b.error}" for b in self.broken)
            raise PluginNotFoundError(
                f"no {kind} named {name!r} (installed: {', '.join(known) or 'none'}){hint}{failed}"
            )
        if len(entries) > 1:
            who = " and ".join(f"{e.distribution} {e.version}".strip() for e in entries)
            raise PluginConflictError(f"{kind} {name!r} is provided by {who}; uninstall one of them")
        return entries[0]


def _infos(module: Any) -> Sequence[PluginInfo]:
    declared = module.rift_plugin()
    return declared if isinstance(declared, Sequence) else (declared,)


def _discover() -> Catalog:
    if os.environ.get("RIFT_NO_PLUGINS") == "1":
        return Catalog(())
    disabled = {name.strip() for name in os.environ.get("RIFT_DISABLE_PLUGINS", "").split(",")}
    entries: list[CatalogEntry] = []
    broken: list[BrokenPlugin] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        if point.name in disabled:
            continue
        distribution = point.dist.name if point.dist is not None else "?"
        version = point.dist.version if point.dist is not None else ""
        try:
            module = point.load()
            entries += [CatalogEntry(info, module, distribution, version) for info in _infos(module)]
        except Exception as cause:  # whatever a stranger's module raises: it must not take the others along
            if os.environ.get("RIFT_RAISE_PLUGIN_ERRORS") == "1":
                raise
            error = PluginLoadError(f"{point.value}: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
            broken.append(BrokenPlugin(point.name, distribution, version, error))
    return Catalog(entries, broken)
