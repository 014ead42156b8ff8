"""Which file is the Python interpreter of a venv: the one whose signature macOS looks at.

It is the main executable's signature that counts. What a venv calls ``python`` is a chain of symbolic links, and its
end may be a mere launcher: ``bin/python3.x`` of a framework build (python.org, Homebrew, Xcode) starts
``Resources/Python.app/Contents/MacOS/Python`` of its framework in its place. Nothing here runs anything, so that it
works on any system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rift_core.errors import RiftError

APPLICATION = Path("Resources/Python.app/Contents/MacOS/Python")
"""The interpreter of a framework build, below ``Python.framework/Versions/X.Y``."""

_MOST_LINKS = 32


class SigningError(RiftError):
    """The interpreter cannot be signed; the message says why and what to do. The venv is as it was."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A venv's Python: ``place`` in it, which a signed copy of ``binary`` can take, and the other ``names`` of it."""

    place: Path
    binary: Path
    names: tuple[Path, ...]


def interpreter_of(venv: Path) -> Interpreter:
    """The interpreter of the venv in folder ``venv``.

    :raises SigningError: it is no venv, or leads to something that is no interpreter.
    """
    settings = _settings(venv)
    programs = venv / "bin"
    place, outside = _last_inside(programs / "python", programs)
    base = Path(os.path.realpath(outside)) if outside is not None else _base_of(settings, place)
    binary = _binary_behind(base)
    names = tuple(
        path
        for path in sorted(programs.glob("python*"))
        if path.is_symlink() and path != place and Path(os.path.realpath(path)) == base
        and _last_inside(path, programs)[0] != place
    )  # fmt: skip
    return Interpreter(place, binary, names)


def _settings(venv: Path) -> dict[str, str]:
    """``pyvenv.cfg``: lines of ``key = value``."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise SigningError(f"{venv} is no venv (it has no pyvenv.cfg): make one with `python3 -m venv .venv`") from None
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, separator, value in pairs if separator}


def _last_inside(path: Path, folder: Path) -> tuple[Path, Path | None]:
    """Follow symbolic links as long as they stay in ``folder``: the last one there, and what it leads to outside of
    the folder; None if it is a file.

    :raises SigningError: there is none, or they go round in a circle.
    """
    for _ in range(_MOST_LINKS):
        if not os.path.lexists(path):
            raise SigningError(f"{path} is missing: make the venv again with `python3 -m venv --clear`")
        if not path.is_symlink():
            return path, None
        target = Path(os.path.normpath(path.parent / path.readlink()))
        if target.parent != folder:
            return path, target
        path = target
    raise SigningError(f"the symbolic links from {path} go round in a circle")


def _base_of(settings: dict[str, str], place: Path) -> Path:
    """What a venv was made with whose interpreter is a file: a signed copy, or that of ``python3 -m venv --copies``.

    :raises SigningError: ``pyvenv.cfg`` leads nowhere.
    """
    home = Path(settings.get("home", ""))
    version = ".".join(settings.get("version", settings.get("version_info", "")).split(".")[:2])
    candidates = [Path(settings.get("executable", ""))]
    candidates += [home / name for name in (place.name, f"python{version}", "python3", "python")]
    for candidate in candidates:
        if candidate.is_absolute() and candidate.is_file():
            return Path(os.path.realpath(candidate))
    raise SigningError(
        f"the Python that {place.parent.parent} was made with is not there any more (home = {home} in its pyvenv.cfg): "
        "make the venv again"
    )


def _binary_behind(base: Path) -> Path:
    """The interpreter that ``base``, without symbolic links, is or starts.

    :raises SigningError: it is a script, or a launcher of something that is not there.
    """
    if not base.is_file():
        raise SigningError(f"the Python {base} is not there: make the venv again")
    with base.open("rb") as file:
        if file.read(2) == b"#!":
            raise SigningError(
                f"{base} is a script that starts a Python, as pyenv's shims are: make the venv with the Python itself "
                "(`pyenv which python3` says where it is)"
            )
    if base.parent.name != "bin":
        return base
    application = base.parent.parent / APPLICATION
    if application.is_file():
        return Path(os.path.realpath(application))
    if any(part.endswith(".framework") for part in base.parts):
        raise SigningError(f"{base} starts {application}, which is not there: install this Python again")
    return base
