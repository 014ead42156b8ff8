"""What is installed: every plugin's visiting card, each loaded by itself, so that a broken one is only a row.

``RIFT_NO_PLUGINS=1`` loads none, ``RIFT_DISABLE_PLUGINS=a,b`` leaves these entry points out,
``RIFT_RAISE_PLUGIN_ERRORS=1`` raises what importing one raises.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, get_args

from rift_core.backend import ProbeResult
from rift_core.errors import PluginConflictError, PluginError, PluginLoadError, PluginNotFoundError
from rift_core.plugin import CORE_TABLES, ENTRY_POINTS, PluginInfo, PluginKind, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import EntryPoint
    from types import ModuleType

_FORBIDDEN = frozenset(" \t\r\n.,'\"[]{}")
"""Characters that no plugin's name has: names stand in dotted keys, lists and messages."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One plugin of one kind, the module that implements its hooks, and the distribution it came with."""

    info: PluginInfo
    module: Any
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """``riftvm-kvm 0.1.0``."""
        return f"{self.distribution} {self.version}".strip()

    def probe(self, section: Section | None = None) -> ProbeResult | None:
        """What its probe says, with default settings unless given; None if it has none.

        A probe that raises, which none should, makes it unavailable: the others can be chosen all the same.
        """
        if self.info.probe is None:
            return None
        try:
            return self.info.probe(section if section is not None else self.info.config())
        except Exception as error:
            if os.environ.get("RIFT_RAISE_PLUGIN_ERRORS") == "1":
                raise
            reason = f"its probe failed: {type(error).__name__}: {error}"
            remedy = f"report that to {self.distribution}; RIFT_RAISE_PLUGIN_ERRORS=1 shows where"
            return ProbeResult(False, reason, remedy)


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """An entry point that could not be loaded."""

    name: str
    distribution: str
    version: str
    error: PluginLoadError


class Catalog:
    """The plugins that a configuration can choose from. Immutable; two catalogs are never equal."""

    def __init__(
        self,
        entries: Iterable[CatalogEntry],
        broken: Iterable[BrokenPlugin] = (),
        disabled: Iterable[str] = (),
    ) -> None:
        self._entries: dict[tuple[str, str], list[CatalogEntry]] = {}
        for entry in entries:
            self._entries.setdefault((entry.info.kind, entry.info.name), []).append(entry)
        self.broken = tuple(broken)
        self.disabled = tuple(disabled)

    @staticmethod
    @cache
    def installed() -> Catalog:
        """All plugins of this environment; found once a process."""
        return _discover()

    @staticmethod
    def of(modules: Iterable[ModuleType | object]) -> Catalog:
        """A catalog of just these modules, or objects with the same hooks.

        :raises PluginError: one of them does not declare itself properly.
        """
        entries = []
        for module in modules:
            name = getattr(module, "__name__", type(module).__name__)
            entries += [CatalogEntry(info, module, name, "") for info in declared(module)]
        return Catalog(entries)

    def __iter__(self) -> Iterator[CatalogEntry]:
        return (entry for entries in self._entries.values() for entry in entries)

    def of_kind(self, kind: str) -> list[CatalogEntry]:
        """The plugins of a kind, in order of their names; of several with one name, none."""
        return [entries[0] for (k, _), entries in sorted(self._entries.items()) if k == kind and len(entries) == 1]

    def has(self, kind: str, name: str) -> bool:
        """Whether such a plugin is installed."""
        return (kind, name) in self._entries

    def of_table(self, table: str) -> list[CatalogEntry]:
        """The extensions that a table of the configuration stands for."""
        return [entry for entry in self.of_kind("extension") if entry.info.table == table]

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
            failed = "".join(f"; {b.error}" for b in self.broken)
            left_out = f"; RIFT_DISABLE_PLUGINS leaves out {', '.join(self.disabled)}" if self.disabled else ""
            words = kind.replace("_", " ")
            raise PluginNotFoundError(
                f"no {words} named {name!r} (installed: {', '.join(known) or 'none'}){hint}{failed}{left_out}"
            )
        if len(entries) > 1:
            who = " and ".join(e.origin for e in entries)
            raise PluginConflictError(f"{kind.replace('_', ' ')} {name!r} is provided by {who}; uninstall one of them")
        return entries[0]


def declared(module: Any) -> tuple[PluginInfo, ...]:
    """What a plugin's module declares.

    :raises PluginError: it declares nothing, or something that core cannot use.
    """
    declare = getattr(module, "rift_plugin", None)
    if declare is None:
        raise PluginError("it has no rift_plugin()")
    answer = declare()
    infos = (answer,) if isinstance(answer, PluginInfo) else tuple(answer)
    for info in infos:
        _check(info)
    return infos


def _check(info: object) -> None:
    if not isinstance(info, PluginInfo):
        raise PluginError(f"rift_plugin() returned {type(info).__name__}, not PluginInfo")
    if info.kind not in get_args(PluginKind):
        raise PluginError(f"{info.kind!r} is no kind of plugin (there are: {', '.join(get_args(PluginKind))})")
    if not info.name or _FORBIDDEN & set(info.name) or info.name == "auto" or not info.name.isprintable():
        raise PluginError(f"{info.kind} name {info.name!r} is not possible: no spaces, dots or quotes, and not auto")
    if (info.kind == "binding") != ("/" in info.name):
        raise PluginError(f"{info.kind} name {info.name!r}: a binding, and nothing else, is called backend/isa")
    if not (isinstance(info.config, type) and issubclass(info.config, Section)):
        raise PluginError(f"the settings of {info.kind} {info.name} are not a subclass of rift_core.Section")
    if info.table and (info.kind != "extension" or not info.table.isidentifier() or info.table in CORE_TABLES):
        raise PluginError(f"{info.kind} {info.name} cannot have the table {info.table!r} of a configuration")
    if "name" in info.config.model_fields:
        raise PluginError(f"the settings of {info.kind} {info.name} have a key 'name': core adds that itself")


def _discover() -> Catalog:
    if os.environ.get("RIFT_NO_PLUGINS") == "1":
        return Catalog(())
    unwanted = {name.strip() for name in os.environ.get("RIFT_DISABLE_PLUGINS", "").split(",")}
    entries: list[CatalogEntry] = []
    broken: list[BrokenPlugin] = []
    disabled: list[str] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        if point.name in unwanted:
            disabled.append(point.name)
            continue
        distribution, version = _origin(point)
        try:
            module = point.load()
            entries += [CatalogEntry(info, module, distribution, version) for info in declared(module)]
        # Whatever a stranger's module raises, even SystemExit: it must not take the others along.
        except (Exception, SystemExit) as cause:
            if os.environ.get("RIFT_RAISE_PLUGIN_ERRORS") == "1":
                raise
            reason = str(cause) if isinstance(cause, PluginError) else f"{type(cause).__name__}: {cause}"
            error = PluginLoadError(
                f"plugin {point.name} of {distribution} {version} cannot be loaded from {point.value}: {reason}"
            )
            error.__cause__ = cause
            broken.append(BrokenPlugin(point.name, distribution, version, error))
    return Catalog(entries, broken, disabled)


def _origin(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution; question marks where its metadata are damaged."""
    try:
        if point.dist is not None:
            return point.dist.name or "?", point.dist.version or "?"
    except Exception:  # metadata are a stranger's files
        pass
    return "?", "?"
