"""A Debian file system for arm64: Python, a compiler, and busybox for the rest. No package's scripts are run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from rift_lab import cache
from rift_lab.cache import LabError, say
from rift_lab.debian import Packages, unpack

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = (
    "python3",
    "libpython3-dev",
    "bash",
    "coreutils",
    "busybox-static",
    "gcc",
    "libc6-dev",
    "libstdc++6",
    "clang",
    "lld",
    "llvm",
    "gdb",
    "lldb",
)

_RECIPE = "1"
"""Raised when this module makes something else of the same packages."""

_UNWANTED = (
    "usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "usr/share/perl/",
    "usr/lib/aarch64-linux-gnu/perl",
)  # fmt: skip

_UNWANTED_ENDS = ("libc.a", "-pic.a", "lto1", "lto-dump")
"""Large, and of no use to any test."""

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
}


def prepare() -> Path:
    """The file system, as a folder."""
    return cache.entry("userland-arm64", cache.digest(_RECIPE, *PACKAGES, *_UNWANTED, *_UNWANTED_ENDS), _make)


def python_version(root: Path) -> str:
    """Of its Python, such as ``3.11``."""
    (program,) = (root / "usr" / "bin").glob("python3.[0-9]*[0-9]")
    return program.name.removeprefix("python")


def compile_bytecode(root: Path, *folders: Path) -> None:
    """Byte code for ``folders``, made here, where it is 30 times faster: the format is the same for a minor version."""
    if python_version(root) != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, *map(str, folders)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _make(root: Path) -> None:
    say(f"fetching {', '.join(PACKAGES)} for arm64")
    packages = Packages("arm64").download(PACKAGES, dependencies=True)
    for folder in ("bin", "sbin", "lib"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    for folder in ("etc", "root", "tmp", "proc", "sys", "dev", "run", "mnt"):
        (root / folder).mkdir()
    for package in packages:
        unpack(package, root, lambda path: not path.startswith(_UNWANTED) and not path.endswith(_UNWANTED_ENDS))
        package.unlink()
    programs = root / "usr" / "bin"
    if not (programs / "python3").exists():
        raise LabError("the package python3 for arm64 has no usr/bin/python3")
    for name, target in (("sh", "bash"), ("cc", "gcc")):
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(target)
    _add_busybox(root)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    compile_bytecode(root, root / "usr" / "lib" / f"python{python_version(root)}")


def _add_busybox(root: Path) -> None:
    """Its programs, where no package has brought one of that name."""
    data = (root / "usr" / "bin" / "busybox").read_bytes()
    for name in _applets(data):
        if not any((root / "usr" / folder / name).is_symlink() or (root / "usr" / folder / name).exists()
                   for folder in ("bin", "sbin")):  # fmt: skip
            (root / "usr" / "bin" / name).symlink_to("busybox")


def _applets(program: bytes) -> list[str]:
    """The names that busybox answers to: it holds them as strings, one behind the other, in alphabetical order."""
    start = program.find(b"\0[\0[[\0") + 1
    names: list[str] = []
    for part in program[start : start + 16384].split(b"\0"):
        if not part or (names and part.decode("latin-1") <= names[-1]):
            break
        names.append(part.decode("latin-1"))
    if "sed" not in names:
        raise LabError("the names of busybox's programs have not been found in it")
    return names
