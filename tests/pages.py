"""Markdown pages as programs: their files are written, their commands run, their output compared.

A block of code whose first line is a comment with a file name (``# first.py``, ``/* guest.c */``) is that file. A block
``console`` is a session: lines that begin with ``$`` are commands, what follows is what they print; ``...`` stands for
anything. Hexadecimal numbers may differ, since they depend on compiler and CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"(?:#|/\*) ([\w./-]+\.\w+)(?: \*/)?\n")
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{16}\b")
_NEIGHBOUR = re.compile(r"^ +0x[0-9a-f]+: .*$", re.MULTILINE)
"""An instruction beside the one that faulted, in a report: what the compiler makes of the lines around."""

_NOTICE = re.compile(r"^rift: (?:runs on the software CPU|backend \w+ is no security boundary).*\n", re.MULTILINE)
"""What is added where no hypervisor works."""

_NOT_HERE = ("make ", "source ", "pip ", "git ", "sudo ")
"""Commands that would change more than the folder: other tests try them."""


@dataclass(frozen=True)
class Command:
    """A line of a session, and what is printed after it."""

    line: str
    output: str


def blocks(text: str, *languages: str) -> list[str]:
    """The blocks of code in these languages; all of them if none is named."""
    return [body for language, body in _BLOCK.findall(text) if not languages or language in languages]


def write_files(text: str, folder: Path) -> list[str]:
    """Write the files that a page shows; their names."""
    written = []
    for body in blocks(text, "c", "python", "toml"):
        name = _NAME.match(body)
        if name is not None:
            assert name[1] not in written, f"{name[1]} is shown twice"
            (folder / name[1]).write_text(body)
            written.append(name[1])
    return written


def sessions(text: str) -> list[list[Command]]:
    """The commands of each session."""
    found = []
    for body in blocks(text, "console"):
        parts = re.split(r"^\$ (.*)\n", body, flags=re.MULTILINE)
        assert not parts[0].strip(), f"a session begins with output: {body!r}"
        found.append([Command(line, output) for line, output in zip(parts[1::2], parts[2::2], strict=True)])
    return found


def run(session: list[Command], folder: Path, columns: int = 120) -> list[tuple[Command, str]]:
    """Run a session's commands in one shell; each with what it printed."""
    commands = [command for command in session if not command.line.startswith(_NOT_HERE)]
    mark = "@@ next command @@"
    script = "exec 2>&1\n" + "".join(
        f"{command.line}\nstatus=$?; echo; echo '{mark}'; (exit $status)\n" for command in commands
    )
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": str(columns),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    printed = [_NOTICE.sub("", text) for text in done.stdout.split(f"\n{mark}\n")]
    return list(zip(commands, printed, strict=False))


def matches(expected: str, printed: str, *, numbers: bool = False) -> bool:
    """Whether a page tells the truth; ``numbers``: decimal ones may differ too."""

    def plain(text: str) -> str:
        text = _HEXADECIMAL.sub("0x#", _NEIGHBOUR.sub("0x#: ", text))
        if numbers:
            text = re.sub(r"[-+]?\d+(\.\d+)?", "#", text)
            text = re.sub(r"[━─]+", "─", text)
        return " ".join(text.split())

    pieces = [re.escape(piece.strip()) for piece in plain(expected).split("...")]
    return re.fullmatch(r".*?".join(pieces).replace(r".*?", r"\s*.*?\s*"), plain(printed), re.DOTALL) is not None
