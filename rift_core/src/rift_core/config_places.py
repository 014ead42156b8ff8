"""Where in a TOML file a key stands: tomllib keeps no positions, so the text is scanned once more.

The scanner runs on text that tomllib has accepted, and only when there is a problem to report.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


class Place(NamedTuple):
    """Line and column, from 1, of a key, and its length."""

    line: int
    column: int
    length: int


class _Scanner:
    """Walks over the text and notes where every key of every table stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[tuple[int | str, ...], tuple[int, int]] = {}
        self._tables: dict[tuple[int | str, ...], int] = {}  # arrays of tables: how many so far

    def scan(self) -> None:
        """The whole document."""
        prefix: tuple[int | str, ...] = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return
            if self.text[self.at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)

    def _header(self) -> tuple[int | str, ...]:
        array = self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        start = self.at
        path: tuple[int | str, ...] = ()
        keys = list(self._dotted())
        for position, (key, _) in enumerate(keys):
            path += (key,)
            last = position == len(keys) - 1
            if last and array:
                number = self._tables.get(path, 0)
                self._tables[path] = number + 1
                path += (number,)
            elif path in self._tables:
                path += (self._tables[path] - 1,)
        self.found.setdefault(path, (start, self.at - start))
        self.at += 2 if array else 1
        return path

    def _pair(self, prefix: tuple[int | str, ...]) -> None:
        path = prefix
        for key, (start, length) in self._dotted():
            path += (key,)
            self.found.setdefault(path, (start, length))
        self.at += 1  # =
        self._skip(_SPACE)
        self._value(path)

    def _dotted(self) -> Iterator[tuple[str, tuple[int, int]]]:
        while True:
            self._skip(_SPACE)
            start = self.at
            quote = self.text[self.at]
            if quote in "\"'":
                self._string()
                key = self.text[start + 1 : self.at - 1]
            else:
                match = _BARE.match(self.text, self.at)
                self.at = match.end() if match else self.at + 1
                key = self.text[start : self.at]
            yield key, (start, self.at - start)
            self._skip(_SPACE)
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return
            self.at += 1

    def _value(self, path: tuple[int | str, ...]) -> None:
        letter = self.text[self.at] if self.at < len(self.text) else ""
        if letter and letter in "\"'":
            self._string()
        elif letter == "[":
            self.at += 1
            number = 0
            while True:
                self._skip(_BLANK)
                if self.at >= len(self.text) or self.text[self.at] == "]":
                    self.at += 1
                    return
                if self.text[self.at] == ",":
                    self.at += 1
                    continue
                start = self.at
                self._value((*path, number))
                self.found.setdefault((*path, number), (start, self.at - start))
                number += 1
        elif letter == "{":
            self.at += 1
            while True:
                self._skip(_BLANK)
                if self.at >= len(self.text) or self.text[self.at] == "}":
                    self.at += 1
                    return
                if self.text[self.at] == ",":
                    self.at += 1
                else:
                    self._pair(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}\n#":
                self.at += 1

    def _string(self) -> None:
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            end = self.at + 3
            while end < len(self.text) and not self.text.startswith(quote * 3, end):
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            end += 3
            while end < len(self.text) and self.text[end] == quote:
                end += 1  # up to two quotes may stand before the closing ones
        else:
            end = self.at + 1
            while end < len(self.text) and self.text[end] not in (quote, "\n"):
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            end += 1
        self.at = end

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()


def find_place(text: str, path: Sequence[int | str]) -> Place | None:
    """Where the key at ``path`` stands, or else the nearest table around it; None if there is none."""
    scanner = _Scanner(text)
    try:
        scanner.scan()
    except IndexError:
        return None
    for length in range(len(path), 0, -1):
        found = scanner.found.get(tuple(path[:length]))
        if found is not None:
            start, size = found
            line = text.count("\n", 0, start) + 1
            return Place(line, start - (text.rfind("\n", 0, start) + 1) + 1, size)
    return None


def describe_place(path: Path | None, text: str, place: Place) -> str:
    """``--> rift.toml:4:8``, the line itself, and a caret."""
    line = text.splitlines()[place.line - 1]
    margin = " " * len(str(place.line))
    carets = "^" * max(1, min(place.length, len(line) - place.column + 1))
    return (
        f"   {margin}--> {path}:{place.line}:{place.column}\n"
        f"   {margin} |\n"
        f"   {place.line} | {line}\n"
        f"   {margin} | {' ' * (place.column - 1)}{carets}"
    )
