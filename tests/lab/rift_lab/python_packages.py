"""The virtual environment of the AArch64 machine: wheels for its platform, and our own distributions, editable."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING

from rift_lab import cache, userland
from rift_lab.cache import LabError, say

if TYPE_CHECKING:
    from pathlib import Path

_RECIPE = "1"
"""Raised when this module makes something else of the same requirements."""

_LEFT_OUT = ("mypy", "ruff", "gdb-for-pwndbg", "lldb-for-pwndbg", "ziglang")
"""Large tools that no suite for this machine needs."""

_BUILD = ("setuptools", "cffi")
"""Tests compile extension modules."""

_GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)
"""Versions 2.N of manylinux tags (PEP 600) that Debian 12 satisfies."""


def environment_of(repository: Path) -> Path:
    """The development environment on this machine.

    :raises LabError: there is none.
    """
    path = repository / ".venv"
    if not (path / "rift-dev.stamp").exists():
        raise LabError("there is no development environment here: make dev")
    return path


def prepare(repository: Path, root: Path) -> Path:
    """A virtual environment for the machine with everything but our own distributions.

    The versions are those of the environment here, so that both run the same code.
    """
    version = userland.python_version(root)
    requirements = sorted(_requirements(repository))
    constraints = _installed(environment_of(repository))
    wanted = [line for line in constraints if line.partition("==")[0].lower() not in _LEFT_OUT]
    key = cache.digest(_RECIPE, version, *requirements, *wanted)

    def make(folder: Path) -> None:
        say(f"fetching Python packages for aarch64: {', '.join(requirements)}")
        (folder / "constraints.txt").write_text("\n".join(wanted) + "\n")
        (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
        packages = folder / "lib" / f"python{version}" / "site-packages"
        packages.mkdir(parents=True)
        _install(repository, folder, packages, version)
        shutil.rmtree(packages / "bin", ignore_errors=True)
        (folder / "bin").mkdir()
        for name in ("python", "python3", f"python{version}"):
            (folder / "bin" / name).symlink_to("/usr/bin/python3")
        (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        userland.compile_bytecode(root, packages)

    return cache.entry("packages-aarch64", key, make)


def _requirements(repository: Path) -> set[str]:
    """What the development requirements and our distributions ask of others."""
    lines = (repository / "requirements-dev.txt").read_text().splitlines()
    found = {line.strip() for line in lines if line.strip() and not line.startswith(("#", "-"))}
    for path in [repository / "rift_core", *sorted((repository / "plugins").iterdir())]:
        if not (path / "pyproject.toml").exists():
            continue
        project = tomllib.loads((path / "pyproject.toml").read_text())["project"]
        found.update(project.get("dependencies", ()))
        for extra in project.get("optional-dependencies", {}).values():
            found.update(extra)
    found.update(_BUILD)
    return {line for line in found if not line.startswith(("riftvm", *_LEFT_OUT))}


def _installed(environment: Path) -> list[str]:
    command = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "freeze"]
    done = subprocess.run([*command, "--all", "--exclude-editable"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"pip freeze failed in {environment}: {done.stderr.strip()}")
    return sorted(line for line in done.stdout.splitlines() if "==" in line)


def _install(repository: Path, folder: Path, target: Path, version: str) -> None:
    platforms = [f"--platform=manylinux_2_{number}_aarch64" for number in _GLIBC]
    command = [
        *(str(environment_of(repository) / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"),
        *("--quiet", "--target", str(target), "--only-binary=:all:", "--no-compile", "--implementation=cp"),
        *(f"--python-version={version}", "--platform=manylinux2014_aarch64", *platforms),
        *("--constraint", str(folder / "constraints.txt"), "--requirement", str(folder / "requirements.txt")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"pip could not get the Python packages for aarch64:\n{done.stderr.strip()[-2000:]}")


def own_distributions(repository: Path, root: Path, folder: Path) -> Path:
    """Our own distributions as this machine's environment has them, editable: their metadata, where their source is,
    and their programs. Made for each run, in no time."""
    (source,) = (environment_of(repository) / "lib").glob("python3*/site-packages")
    target = folder / "lib" / f"python{userland.python_version(root)}" / "site-packages"
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name.startswith("__editable__"):
            shutil.copy(path, target)
        elif path.name.startswith("riftvm") and path.suffix == ".dist-info":
            shutil.copytree(path, target / path.name)
    (folder / "bin").mkdir()
    for name, module in (("rift", "rift_core.cli"), ("pytest", "pytest")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/python" -m {module} "$@"\n')
        program.chmod(0o755)
    return folder
