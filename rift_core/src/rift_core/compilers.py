"""Which compiler makes a payload: gcc, clang or zig, aimed at an ISA."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rift_core.build_target import BuildError, Target

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that was found: its command with what it needs to aim at the ISA."""

    command: tuple[str, ...]
    is_clang: bool
    is_zig: bool = False


def find_compiler(target: Target, compiler: str | None = None) -> Compiler:
    """The compiler to use: ``compiler``, else ``RIFT_CC``, else the first of gcc, clang and zig that is there.

    :param compiler: "gcc", "clang" or "zig" for the one that makes code for ``target``; or a name or path.
    :raises BuildError: it, or all of them, are missing; the message says what to install.
    """
    wanted = compiler or os.environ.get("RIFT_CC")
    if wanted and wanted not in _FAMILIES:
        if shutil.which(wanted) is None:
            raise BuildError(f"the compiler {wanted!r} is not there: install it, or name another one")
        return _describe(wanted, target)
    problems = []
    for family in (wanted,) if wanted else _FAMILIES:
        found = _FAMILIES[family](target)
        if isinstance(found, Compiler):
            return found
        problems.append(found)
    raise BuildError(f"no C compiler for {target.isa} payloads is here: " + ", or ".join(problems))


def _find_gcc(target: Target) -> Compiler | str:
    names = ["gcc"] if target.is_native else [prefix + "gcc" for prefix in target.cross_prefix]
    for name in names:
        if shutil.which(name) and not says_clang(name):  # what macOS calls gcc is clang
            return Compiler((name,), False)
    packages = "gcc" if target.is_native else " or ".join(f"gcc-{prefix.rstrip('-')}" for prefix in target.cross_prefix)
    return f"install the package {packages} (looked for {', '.join(names)})"


def _find_clang(target: Target) -> Compiler | str:
    name = next((name for name in ("clang", "cc") if shutil.which(name) and says_clang(name)), None)
    linker = target.is_native or shutil.which("ld.lld") is not None
    if name is None or not linker:
        packages = "clang" if target.is_native else "clang and lld" if name is None else "lld, which clang links with"
        return f"install the package{'s' if ' and ' in packages else ''} {packages}"
    return _clang(name, target)


def _find_zig(target: Target) -> Compiler | str:
    if importlib.util.find_spec("ziglang") is not None:
        return _zig((sys.executable, "-m", "ziglang"), target)
    if shutil.which("zig"):
        return _zig(("zig",), target)
    return "pip install ziglang"


_FAMILIES: dict[str, Callable[[Target], Compiler | str]] = {"gcc": _find_gcc, "clang": _find_clang, "zig": _find_zig}
"""By name, in the order of preference: the compiler for a target, or what to install to have one."""


def _describe(name: str, target: Target) -> Compiler:
    """A compiler that was named."""
    if Path(name).stem == "zig":
        return _zig((name,), target)
    return _clang(name, target) if says_clang(name) else Compiler((name,), False)


def says_clang(name: str) -> bool:
    """Whether a compiler is clang, whatever it is called."""
    answer = subprocess.run([name, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return "clang" in answer.stdout


def _clang(name: str, target: Target) -> Compiler:
    if target.is_native:
        return Compiler((name,), True)
    return Compiler((name, f"--target={target.clang_target}", "-fuse-ld=lld"), True)


def _zig(command: tuple[str, ...], target: Target) -> Compiler:
    # Its checks of undefined behaviour would end in functions that are not there.
    return Compiler((*command, "cc", "-target", target.zig_target, "-fno-sanitize=all"), True, is_zig=True)
