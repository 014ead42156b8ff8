"""Builds Rift's compiled parts for AArch64 on this machine, by the setup.py of each distribution.

What comes out is kept by a hash of all that goes in: an edit of one C file rebuilds one distribution.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from rift_lab import cache, python_packages, userland
from rift_lab.cache import LabError

if TYPE_CHECKING:
    from pathlib import Path

COMPILER = "aarch64-linux-gnu-gcc"

NEEDS = (
    (COMPILER, "gcc-aarch64-linux-gnu"),
    ("/usr/aarch64-linux-gnu/include/linux/kvm.h", "libc6-dev-arm64-cross"),
)
"""Programs and files, and the packages that have them."""

_RECIPE = "1"
"""Raised when this module builds something else of the same sources."""

_SOURCES = ("*.c", "*.h", "*.S", "*_build.py", "setup.py", "pyproject.toml")


def build(repository: Path, root: Path, folder: Path) -> Path:
    """Fill ``folder`` with the extension modules, each at its place in the repository."""
    folder.mkdir()
    for distribution in sorted((repository / "plugins").iterdir()):
        setup = distribution / "setup.py"
        if not setup.exists() or "cffi_modules" not in setup.read_text():
            continue
        built = _distribution(repository, root, distribution)
        for path in built.rglob("*.so"):
            place = folder / distribution.relative_to(repository) / "src" / path.relative_to(built)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return folder


def _distribution(repository: Path, root: Path, distribution: Path) -> Path:
    """The folder that setup.py has built into."""
    parts = [_RECIPE, root.name]
    for path in sorted(path for pattern in _SOURCES for path in distribution.rglob(pattern)):
        inside = path.relative_to(distribution)
        if inside.parts[0] not in ("build", "tests") and path.name != "_native.c":
            parts += [str(inside), path.read_text()]

    def make(folder: Path) -> None:
        copy = folder / "source"
        shutil.copytree(distribution, copy, ignore=shutil.ignore_patterns("build", "tests", "*.so", "__pycache__"))
        python = python_packages.environment_of(repository) / "bin" / "python"
        command = [str(python), "setup.py", "-q", "build_ext", "--build-lib", str(folder / "built")]
        done = subprocess.run(command, cwd=copy, env=_environment(root), capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{distribution.name} does not build for aarch64:\n{(done.stdout + done.stderr)[-3000:]}")
        (folder / "built").mkdir(exist_ok=True)  # a distribution that has nothing native for this platform
        for path in (folder / "built").rglob("*.so"):
            machine = path.read_bytes()[18:20]
            if machine != (183).to_bytes(2, "little"):  # e_machine: EM_AARCH64
                raise LabError(f"{distribution.name}: {path.name} was not built for aarch64")
        shutil.rmtree(copy)

    return cache.entry(f"native-{distribution.name}", cache.digest(*parts), make) / "built"


def _environment(root: Path) -> dict[str, str]:
    """What makes setuptools build for another platform; the Python headers are those of the machine."""
    include = root / "usr" / "include"
    return {
        **os.environ,
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",  # what sysconfig.get_platform() says
        "CC": COMPILER,
        "LDSHARED": f"{COMPILER} -shared",
        "CFLAGS": f"-I{include}/python{userland.python_version(root)} -idirafter {include}",
        "LDFLAGS": "",
    }
