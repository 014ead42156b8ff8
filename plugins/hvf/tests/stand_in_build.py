"""Builds the stand-ins for the framework: once for each state of their sources."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).parent / "stand_in"
X86_64 = ("stand_in.c", "x86_64.c", "x86_64_state.c", "x86_64_entry.c", "x86_64_exits.c")
ARM64 = ("stand_in.c", "arm64.c", "arm64_state.c", "arm64_run.c", "arm64_timer.c")
OTHER_X86_64 = tuple(
    f"other_x86_64{part}.c" for part in ("", "_run", "_state", "_engine", "_entry", "_events", "_instructions")
)
OTHER_ARM64 = ("other_arm64.c",)
FLAGS = (
    "-shared",
    "-fPIC",
    "-O1",
    "-g",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fvisibility=hidden",
    "-pthread",
)


def build(folder: Path, name: str, sources: Sequence[str], flags: Sequence[str] = (), compiler: str = "gcc") -> Path:
    """The shared library ``name`` in ``folder``, compiled unless it is there already."""
    paths = [SOURCES / source for source in sources]
    state = hashlib.sha256(" ".join(flags).encode())
    for path in [*paths, *sorted(SOURCES.glob("*.h"))]:
        state.update(path.read_bytes())
    library = folder / f"{name}-{state.hexdigest()[:16]}.so"
    if not library.exists():
        partial = library.with_suffix(".partial")
        subprocess.run([compiler, *FLAGS, "-o", partial, *paths, *flags], check=True)
        partial.rename(library)
    return library


def unicorn_flags(package: Path) -> tuple[str, ...]:
    """What a stand-in over the engine needs of the Python package ``unicorn``: its headers, and its shared library."""
    library = next((package / "lib").glob("libunicorn.*so*"))
    return f"-I{package / 'include'}", str(library), f"-Wl,-rpath,{library.parent}"
