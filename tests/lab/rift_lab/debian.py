"""Packages of the distribution, for any architecture, without installing them and without being root.

apt runs with a state of its own in the cache, and with the sources and keys of this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING

from rift_lab import cache
from rift_lab.cache import LabError, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LISTS_LIFETIME = 24 * 3600
"""Seconds for which package lists are good enough to download by."""

_CONFIGURATION = """\
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Log "{folder}";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Post-Invoke {{ }};
APT::Update::Post-Invoke-Success {{ }};
DPkg::Post-Invoke {{ }};
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
Debug::NoLocking "true";
"""


def need_programs(*needs: tuple[str, str]) -> None:
    """Check that programs are installed, or files that have a path.

    :param needs: a program, and the package that has it.
    :raises LabError: names what to install.
    """
    missing = sorted({package for program, package in needs if find_program(program) is None})
    if missing:
        raise LabError(f"missing here: apt install {' '.join(missing)}")


def find_program(name: str) -> str | None:
    """Its path, also from the folders that only root has in PATH; of a path, itself if it is there."""
    if "/" in name:
        return name if os.path.exists(name) else None
    return shutil.which(name, path=os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin")


class Packages:
    """The packages of one architecture."""

    def __init__(self, architecture: str) -> None:
        if find_program("apt-get") is None or find_program("dpkg-deb") is None:
            raise LabError("the lab is made of Debian packages: it needs apt-get and dpkg-deb, so Debian or the like")
        self.architecture = architecture
        self._folder = cache.folder() / "apt" / architecture
        self._configuration = self._folder / "apt.conf"

    def download(self, names: Sequence[str], *, dependencies: bool) -> list[Path]:
        """Packages as files, with all that they depend on or alone.

        :raises LabError: apt does not know them, or cannot reach the archive.
        """
        with cache.locked(f"apt-{self.architecture}"):
            self._update()
            if dependencies:
                return self._with_dependencies(names)
            folder = self._folder / "alone"
            folder.mkdir(exist_ok=True)
            return [self._alone(name, folder) for name in names]

    def newest_dependency(self, name: str, pattern: str) -> str:
        """The package matching ``pattern`` that ``name`` (a metapackage) depends on.

        :raises LabError: there is none.
        """
        with cache.locked(f"apt-{self.architecture}"):
            self._update()
            text = self._run("apt-cache", "show", "--no-all-versions", name)
        found = re.search(rf"^Depends:.*?\b({pattern})", text, re.MULTILINE)
        if found is None:
            raise LabError(f"the package lists for {self.architecture} have no {name}: {self._advice()}")
        return found[1]

    def _with_dependencies(self, names: Sequence[str]) -> list[Path]:
        listed = self._run("apt-get", "install", "--yes", "--print-uris", *names)
        files = re.findall(r"^'[^']*' (\S+\.deb) ", listed, re.MULTILINE)
        self._run("apt-get", "install", "--yes", "--quiet", "--download-only", *names)
        return [self._folder / "archives" / file for file in files]

    def _alone(self, name: str, folder: Path) -> Path:
        before = set(folder.glob(f"{name}_*.deb"))
        self._run("apt-get", "--quiet", "download", name, folder=folder)
        after = set(folder.glob(f"{name}_*.deb"))
        return max(after - before or after, key=lambda path: path.stat().st_mtime)

    def _update(self) -> None:
        stamp = self._folder / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_LIFETIME:
            return
        say(f"reading the package lists for {self.architecture}")
        for part in ("lists/partial", "archives/partial"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        text = _CONFIGURATION.format(folder=self._folder, architecture=self.architecture)
        self._configuration.write_text(text)
        self._run("apt-get", "--quiet", "update")
        stamp.touch()

    def _run(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        done = subprocess.run(
            [program, *arguments],
            cwd=folder,
            env={**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            command = " ".join((program, *arguments))
            raise LabError(f"{command} failed for architecture {self.architecture}:\n{lines}\n{self._advice()}")
        return done.stdout

    def _advice(self) -> str:
        return f"do /etc/apt/sources.list* name an archive with packages for {self.architecture}, and is it reachable?"


def unpack(package: Path, target: Path, wanted: Callable[[str], bool] = lambda path: True) -> None:
    """Put a package's files below ``target``.

    :param wanted: which paths, such as ``usr/bin/bash``.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                member.name = member.name.removeprefix("./")
                if member.name and wanted(member.name):
                    _place(archive, member, target)
    if process.returncode:
        raise LabError(f"dpkg-deb cannot read {package}")


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One file; below a folder that is a symbolic link (``/lib`` to ``/usr/lib``) it lands where that leads."""
    path = target / member.name
    if member.isdir():
        if not path.is_dir():
            path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym() or member.islnk() or path.is_symlink():
        path.unlink(missing_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        path.hardlink_to(target / member.linkname.removeprefix("./"))
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
        path.chmod(member.mode & 0o777 | 0o600)
