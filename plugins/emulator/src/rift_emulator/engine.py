"""Finds the Unicorn engine's shared library in the installed Python package, and opens it."""

from __future__ import annotations

import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rift_core.errors import HypervisorError
from rift_emulator.errors import check, lib, new_error

OLDEST, NEWEST = (2, 1, 2), (2, 2, 0)
"""Versions from the first to before the second have been tried: the engine's inner layout belongs to them."""

_lock = threading.Lock()


class EngineMissingError(HypervisorError):
    """The package ``unicorn`` is not installed, or of another version."""


def library_path() -> Path:
    """The shared library of the package ``unicorn``, which is not imported.

    :raises EngineMissingError: there is none.
    """
    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise EngineMissingError("unicorn", 0, "the Python package unicorn is not installed")
    name = "libunicorn.2.dylib" if sys.platform == "darwin" else "libunicorn.so.2"
    for folder in spec.submodule_search_locations:
        path = Path(folder) / "lib" / name
        if path.exists():
            return path
    raise EngineMissingError("unicorn", 0, f"the Python package unicorn has no {name}")


def package_version() -> str:
    """Version of the installed package, or ""."""
    try:
        return version("unicorn")
    except PackageNotFoundError:
        return ""


def load() -> tuple[int, int, int]:
    """Open the engine, once a process; its version.

    :raises EngineMissingError: not installed, or of a version that this backend does not know.
    :raises HypervisorError: it cannot be opened.
    """
    with _lock:
        packed = lib.rift_emulator_engine_version()
        if not packed:
            path = library_path()
            error = new_error()
            check(lib.rift_emulator_load(str(path).encode(), error), error, str(path))
            packed = lib.rift_emulator_engine_version()
        found = (packed >> 24 & 0xFF, packed >> 16 & 0xFF, packed >> 8 & 0xFF)
    if not OLDEST <= found < NEWEST:
        wanted = f"from {'.'.join(map(str, OLDEST))} to before {'.'.join(map(str, NEWEST))}"
        raise EngineMissingError("unicorn", 0, f"the engine is of version {'.'.join(map(str, found))}, not {wanted}")
    return found
