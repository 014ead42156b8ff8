"""The cache: what machines are made of, outside the repository.

An entry is a folder that appears complete or not at all; its name ends in a hash of what it was made from, so that
a changed recipe makes a new entry instead of changing one that another run may be using.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER_VARIABLE = "RIFT_LAB_CACHE"
"""Names another folder than the default."""

ENTRY_LIFETIME = 7 * 24 * 3600
"""Seconds after which an entry that no run has used is removed."""


class LabError(Exception):
    """The machine cannot be made or started; the text says what to do."""


def say(text: str) -> None:
    """A line for the user; standard output belongs to the command."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def folder() -> Path:
    """The cache folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME", "")
    path = Path(chosen) if chosen else (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "rift-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def digest(*parts: str | bytes) -> str:
    """A short hash of what decides an entry's content."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time, for each name."""
    path = folder() / "locks"
    path.mkdir(exist_ok=True)
    with (path / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that prepares {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def entry(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``NAME-KEY``, filled by ``make`` if it does not exist.

    :raises LabError: as ``make`` does; nothing is left behind then.
    """
    path = folder() / f"{name}-{key}"
    with locked(name):
        if not path.exists():
            start = time.monotonic()
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder()))
            temporary.chmod(0o755)
            try:
                make(temporary)
                temporary.rename(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            say(f"prepared {name} in {time.monotonic() - start:.0f} s")
        os.utime(path)
    return path


def clean() -> None:
    """Remove entries that have not been used for long, and what a killed run has left."""
    now = time.time()
    for path in folder().iterdir():
        with contextlib.suppress(OSError):
            old = now - path.stat().st_mtime
            limit = 24 * 3600 if path.name.startswith((".", "run-")) else ENTRY_LIFETIME
            if path.name not in ("locks", "apt") and old > limit:
                shutil.rmtree(path, ignore_errors=True)
