"""What stands above the configuration file: ``RIFT_<SECTION>__<KEY>`` variables, then options.

A dotted key names a place in the file: ``memory.size``, ``exit_handlers.console.port``, ``threads.0.stack``. In
an array of tables a part is a position, the ``name`` of one of the tables, or ``*`` for all of them. Values are TOML;
what is no TOML value is a string, so that ``--set backend.name=kvm`` needs no quotes.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from rift_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "RIFT_"

PLUGIN_TABLES = ("backend", "isa", "loader")
"""Tables that one plugin has, chosen by their key ``name``."""

Path = tuple[int | str, ...]


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def variable(key: str) -> str:
    """``memory.size`` to ``RIFT_MEMORY__SIZE``."""
    return PREFIX + key.replace(".", "__").upper()


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """``RIFT_MEMORY__SIZE=64MiB`` to ``memory.size``.

    Variables without ``__`` mean other things, and an empty one counts as unset.
    """
    return {
        name[len(PREFIX) :].lower().replace("__", "."): parse_value(value)
        for name, value in environ.items()
        if value and name.startswith(PREFIX) and "__" in name[len(PREFIX) :].strip("_")
    }


def apply_overrides(data: dict[str, Any], environ: Mapping[str, str], options: Mapping[str, Any]) -> dict[Path, str]:
    """Write both into ``data``; returns where each place got its value from, for messages.

    :raises ConfigError: a key names no place that there can be.
    """
    origins: dict[Path, str] = {}
    layers = (
        ((key, value, f"environment variable {variable(key)}") for key, value in from_environment(environ).items()),
        (
            (key, parse_value(value) if isinstance(value, str) else value, f"option {key}")
            for key, value in options.items()
        ),
    )
    for layer in layers:
        # A name comes first: choosing another plugin drops the keys of the one before.
        for key, value, origin in sorted(layer, key=lambda item: not _chooses_plugin(item[0])):
            for path in put(data, key, value, origin):
                origins[path] = origin
    return origins


def _chooses_plugin(key: str) -> bool:
    table, _, rest = key.partition(".")
    return table in PLUGIN_TABLES and rest in ("", "name")


def put(data: dict[str, Any], key: str, value: Any, origin: str) -> list[Path]:
    """Set a dotted key; tables that are missing are made, and so is the table behind the last one of an array.

    :raises ConfigError: it leads through something that is no table, or to a position or name that is not there.
    """
    parts = key.split(".")
    if not all(parts) or not key.isprintable():
        raise ConfigError(f"{origin}: {key!r} is no key: write SECTION.KEY, such as memory.size")
    if _chooses_plugin(key):
        chosen = value if len(parts) > 1 else value.get("name") if isinstance(value, dict) else value
        table = data.get(parts[0])
        if isinstance(table, dict) and table.get("name", "auto") != chosen:
            data[parts[0]] = {"name": chosen}
        if len(parts) == 1 and isinstance(value, str):
            parts.append("name")
    return list(_put(data, parts, value, origin, ()))


def _put(at: Any, parts: list[str], value: Any, origin: str, path: Path) -> list[Path]:
    part, *rest = parts
    if isinstance(at, list):
        done: list[Path] = []
        for position in _positions(at, part, origin, path):
            if position == len(at):
                at.append({})
            if rest:
                done += _put(at[position], rest, value, origin, (*path, position))
            else:
                at[position] = value
                done.append((*path, position))
        return done
    if not isinstance(at, dict):
        raise ConfigError(f"{origin}: {'.'.join(map(str, path))} is not a table")
    if not rest:
        at[part] = value
        return [(*path, part)]
    return _put(at.setdefault(part, [] if rest[0].isdecimal() else {}), rest, value, origin, (*path, part))


def _positions(at: list[Any], part: str, origin: str, path: Path) -> list[int]:
    if part == "*":
        return list(range(len(at)))
    names = [table.get("name") if isinstance(table, dict) else None for table in at]
    if part in names:
        return [position for position, name in enumerate(names) if name == part]
    if part.isdecimal() and len(part) < 6 and int(part) <= len(at):
        return [int(part)]
    known = ", ".join(repr(name) for name in names if name is not None) or "none"
    raise ConfigError(
        f"{origin}: {'.'.join(map(str, path))} is an array of {len(at)} tables (names: {known}); "
        f"{part!r} is neither a position nor a name in it"
    )
