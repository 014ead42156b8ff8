"""Where in a TOML file a key stands: tomllib keeps no positions, so the text is scanned once more.

The scanner runs on text that tomllib has accepted, and only when there is a problem to report.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SYNTAX = re.compile(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


class Place(NamedTuple):
    """Line and column, from 1, of something in a file, and its length in characters."""

    line: int
    column: int
    length: int


class _Spans(NamedTuple):
    """Offsets and lengths of a key and of its value; a header of a table has no value of its own."""

    key: tuple[int, int]
    value: tuple[int, int] | None = None


class _Scanner:
    """Walks over the text and notes where every key of every table stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[tuple[int | str, ...], _Spans] = {}
        self._arrays: dict[tuple[int | str, ...], int] = {}  # arrays of tables: how many so far

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
        self._skip(_SPACE)
        start = self.at
        path: tuple[int | str, ...] = ()
        keys = list(self._dotted())
        end = keys[-1][1][0] + keys[-1][1][1]
        for position, (key, _) in enumerate(keys):
            path += (key,)
            if position == len(keys) - 1 and array:
                number = self._arrays.get(path, 0)
                self._arrays[path] = number + 1
                self.found.setdefault(path, _Spans((start, end - start)))
                path += (number,)
            elif path in self._arrays:
                path += (self._arrays[path] - 1,)
        self.found.setdefault(path, _Spans((start, end - start)))
        self.at += 2 if array else 1
        return path

    def _pair(self, prefix: tuple[int | str, ...]) -> None:
        path = prefix
        spans = []
        for key, span in self._dotted():
            path += (key,)
            spans.append((path, span))
        self.at += 1  # =
        self._skip(_SPACE)
        start = self.at
        self._value(path)
        length = len(self.text[start : self.at].rstrip())
        for made, span in spans:
            self.found.setdefault(made, _Spans(span, (start, length)))

    def _dotted(self) -> Iterator[tuple[str, tuple[int, int]]]:
        while True:
            self._skip(_SPACE)
            start = self.at
            quote = self.text[self.at]
            if quote in "\"'":
                self._string()
                (key,) = tomllib.loads(f"{self.text[start : self.at]} = 0")
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
        letter = self.text[self.at]
        if letter in "\"'":
            self._string()
        elif letter == "[":
            self.at += 1
            number = 0
            while True:
                self._skip(_BLANK)
                if self.text[self.at] == "]":
                    self.at += 1
                    return
                if self.text[self.at] == ",":
                    self.at += 1
                    continue
                start = self.at
                self._value((*path, number))
                span = (start, len(self.text[start : self.at].rstrip()))
                self.found.setdefault((*path, number), _Spans(span, span))
                number += 1
        elif letter == "{":
            self.at += 1
            while True:
                self._skip(_BLANK)
                if self.text[self.at] == "}":
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
            while not self.text.startswith(quote * 3, end):
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            end += 3
            while self.text.startswith(quote, end):
                end += 1  # up to two quotes may stand before the closing ones
        else:
            end = self.at + 1
            while self.text[end] != quote:
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            end += 1
        self.at = end

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()


def find_place(text: str, path: Sequence[int | str], *, value: bool = False) -> Place | None:
    """Where the key at ``path`` (or its value) stands, else the nearest table around it; None if there is none."""
    scanner = _Scanner(text)
    try:
        scanner.scan()
    except (IndexError, ValueError, RecursionError):
        return None
    for length in range(len(path), 0, -1):
        spans = scanner.found.get(tuple(path[:length]))
        if spans is not None:
            start, size = spans.value if value and length == len(path) and spans.value is not None else spans.key
            line = text.count("\n", 0, start) + 1
            return Place(line, start - (text.rfind("\n", 0, start) + 1) + 1, size)
    return None


def syntax_problem(text: str, message: str) -> tuple[str, Place]:
    """tomllib's message without its position, and the position; the last line when it is the end of the file."""
    match = _SYNTAX.fullmatch(message)
    lines = text.split("\n")
    if match is None or match[2] is None:
        while len(lines) > 1 and not lines[-1].strip():
            lines.pop()
        what = f"{match[1]} at the end of the file" if match is not None else message
        return what, Place(len(lines), len(lines[-1].rstrip()) + 1, 1)
    return match[1], Place(min(int(match[2]), len(lines)), int(match[3]), 1)


def excerpt(path: Path | str, text: str, place: Place) -> str:
    """``--> rift.toml:4:8``, the line itself, and carets under it."""
    line = text.split("\n")[place.line - 1].rstrip("\r")
    shown = line.replace("\t", " ")
    carets = "^" * max(1, min(place.length, len(line) - place.column + 1))
    margin = " " * len(str(place.line))
    return (
        f"   {margin}--> {path}:{place.line}:{place.column}\n"
        f"   {margin} |\n"
        f"   {place.line} | {shown}\n"
        f"   {margin} | {' ' * (place.column - 1)}{carets}"
    )
