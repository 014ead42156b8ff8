"""What is wrong with a configuration, in words that name the key and show the line in the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rift_core.config_model import ARRAYS
from rift_core.config_places import excerpt, find_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rift_core.config_model import Shape

_SHOWN = 40
"""Longest value, in characters, that a message repeats."""


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration before validation: its data, and where they come from."""

    data: dict[str, Any]
    path: Path | None = None
    text: str = ""
    origins: Mapping[tuple[int | str, ...], str] = field(default_factory=dict)

    def at(self, path: Sequence[int | str]) -> Any:
        """The value at ``path``, or None."""
        at: Any = self.data
        for part in path:
            try:
                at = at[part]
            except (KeyError, IndexError, TypeError):
                return None
        return at

    def problem(self, path: Sequence[int | str], message: str, *, value: bool = False) -> str:
        """A message with its key and its place: the option or variable that it came from, or the line in the file."""
        key = ".".join(str(part) for part in path) or "(the whole file)"
        for length in range(len(path), 0, -1):
            origin = self.origins.get(tuple(path[:length]))
            if origin is not None:
                return f"  {key}: {message} (from {origin})"
        where = find_place(self.text, path, value=value) if self.path is not None else None
        if where is not None and self.path is not None:
            return f"  {key}: {message}\n{excerpt(self.path, self.text, where)}"
        inside = [origin for place, origin in self.origins.items() if place[: len(path)] == tuple(path)]
        return f"  {key}: {message} (from {inside[0]})" if inside else f"  {key}: {message}"


def real_place(error: Any, data: Any) -> tuple[int | str, ...]:
    """The location of a pydantic error without the tags of unions and validators.

    Only what can be found in the data counts, up to the value that is wrong; and of a missing key the last part.
    """
    place: list[int | str] = []
    at = data
    parts = list(error["loc"])
    missing = error["type"] == "missing"
    # The tag of a chosen plugin stands right behind its table, and may be the name of a key of it as well.
    position = 2 if parts and parts[0] in ARRAYS else 1
    if len(parts) > position and at_path(data, [*parts[:position], "name"]) == parts[position]:
        del parts[position]
    for position, part in enumerate(parts):
        inside = part in at if isinstance(at, Mapping) else isinstance(at, list) and part in range(len(at))
        if inside:
            at = at[part]
        elif not (missing and position == len(parts) - 1):
            continue
        place.append(part)
        if at is error["input"] and not missing:
            break
    return tuple(place)


def at_path(data: Any, path: Iterable[int | str]) -> Any:
    """The value at ``path``, or None."""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def describe_errors(errors: Iterable[Any], document: Document, shape: Shape) -> list[str]:
    """pydantic's errors as problems: one for each key, in the order of the file's tables."""
    unknown: list[str] = []
    wrong: dict[tuple[int | str, ...], list[str]] = {}
    for error in errors:
        kind = error["type"]
        path = real_place(error, document.data)
        if kind == "extra_forbidden":
            unknown.append(document.problem(path, _unknown_key(path, document, shape)))
        else:
            messages = wrong.setdefault(path, [])
            text = _words(error)
            if text not in messages:
                messages.append(text)
    problems = []
    for path, messages in wrong.items():
        value = document.at(path)
        joined = " or ".join([messages[0], *(m.removeprefix("should be ") for m in messages[1:])])
        if joined.startswith("should be ") and value is not None:
            joined += f", not {show(value)}"
        if path[-1:] and path[-1] in (*ARRAYS, "threads") and len(path) == 1:
            joined += f": write [[{path[0]}]]"
        problems.append(document.problem(path, joined, value=True))
    return unknown + problems


def _words(error: Any) -> str:
    kind, message = error["type"], str(error["msg"])
    match kind:
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return 'the key "name" is missing: it chooses the plugin'
        case "model_type" | "model_attributes_type" | "dict_type":
            return "should be a table"
        case "tuple_type" | "list_type":
            return "should be an array"
        case "path_type":
            return "should be a path, as a string"
        case "value_error":
            return message.removeprefix("Value error, ")
    message = message.partition(", unable to parse")[0]
    if message.startswith("Input should be "):
        return message.replace("Input should be ", "should be ", 1)
    return message[:1].lower() + message[1:]


def show(value: Any) -> str:
    """A value as it would stand in the file, with its type where that is not plain."""
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN else value[: _SHOWN - 3] + "..."
        return f'the string "{text}"'
    text = str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else hex(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _unknown_key(path: Sequence[int | str], document: Document, shape: Shape) -> str:
    """``there is no such key``, and what was probably meant."""
    key, around = str(path[-1]), tuple(path[:-1])
    name = at_path(document.at(around), ["name"])
    if around and len(around) <= 2:
        table = str(around[0])
        owners = shape.owners(table, key)
        if owners:
            is_auto = name in (None, "auto")
            others = f"it belongs to {' and '.join(owners)}"
            return (
                f'there is no such key here: {others}; set name = "{owners[0]}"'
                if is_auto
                else (f"{name} has no such key: {others}")
            )
    known = shape.keys(around, name)
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"there is no such key; did you mean {close[0]!r}?"
    return f"there is no such key (there are: {', '.join(known)})" if known else "there is no such key"
