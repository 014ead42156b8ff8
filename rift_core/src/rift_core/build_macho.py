"""The Mach-O half of ``rift build``: one run of clang, which links with LLVM's ld64.lld or, on a Mac, the system's ld.

An executable starts at its entry; without one the payload is a bundle, which only has functions to be called. On macOS
libSystem stays on the linker's command line, because Apple's linker insists on it; a payload that uses something of it
is refused when it is loaded.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rift_core import doorbell as doorbell_page
from rift_core.build import COMMON_FLAGS
from rift_core.build_target import RUNTIME, BuildError
from rift_core.compilers import says_clang

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rift_core.build_target import Target

MACOS = "11"
"""The oldest macOS that is served; decides which load commands linkers write."""

HAS_PAGEZERO_SIZE = 15
HAS_CHAINED_FIXUPS = 16
"""The LLVM versions whose ld64.lld first knew the option."""

_LINKER_VERSION = 609
"""Of Apple's, as whose successor clang is to talk to ld64.lld: the first that takes ``-platform_version`` is 520."""


@dataclass(frozen=True, slots=True)
class MachoCompiler:
    """Clang's command up to the linker.

    :param linker: LLVM's major version; None: Apple's linker.
    :param debug: whether dsymutil is there, without which clang cannot compile and link with ``-g`` in one run.
    """

    command: tuple[str, ...]
    linker: int | None
    debug: bool


def find_compiler(target: Target, compiler: str | None = None) -> MachoCompiler:
    """The compiler to use: ``compiler``, else ``RIFT_CC``, else clang; the newest ld64.lld on other hosts than Macs.

    :raises BuildError: there is none, or it is not clang; the message says what to install.
    """
    if not target.macho_arch:
        raise BuildError(f"there are no Mach-O files for ISA {target.isa!r}")
    wanted = compiler or os.environ.get("RIFT_CC")
    names = (wanted,) if wanted else ("clang", "cc")
    name = next((name for name in names if shutil.which(name)), None)
    if name is None:
        if wanted:
            raise BuildError(f"the compiler {wanted!r} is not there: install it, or name another one")
        raise BuildError("no clang to make Mach-O payloads with: install the packages clang and lld")
    if not says_clang(name):
        raise BuildError(f"{name} does not make Mach-O payloads: use clang, or --format elf")
    command = (name, f"--target={target.macho_arch}-apple-macos{MACOS}")
    debug = Path(_program_of(name, "dsymutil")).is_absolute()
    if platform.system() == "Darwin":
        return MachoCompiler(command, None, debug)
    linker = find_linker(name)
    if linker is None:
        raise BuildError("no linker for Mach-O payloads (ld64.lld): install the package lld")
    path, version = linker
    return MachoCompiler((*command, f"--ld-path={path}", f"-mlinker-version={_LINKER_VERSION}"), version, debug)


@lru_cache(maxsize=16)
def _program_of(clang: str, program: str) -> str:
    """Path of a program that clang would run, or just its name."""
    command = [clang, f"-print-prog-name={program}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return answer.stdout.strip()


def find_linker(clang: str) -> tuple[str, int] | None:
    """Path and version of the newest ld64.lld: on PATH, by that name or with a version behind it, or clang's own."""
    candidates = {shutil.which("ld64.lld"), _program_of(clang, "ld64.lld")}
    for folder in os.get_exec_path():
        candidates |= {str(path) for path in Path(folder).glob("ld64.lld-*")}
    versions = [(_linker_version(path), path) for path in candidates if path and Path(path).is_absolute()]
    known = [(version, path) for version, path in versions if version is not None]
    return max(known)[::-1] if known else None


@lru_cache(maxsize=16)
def _linker_version(path: str) -> int | None:
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except OSError:
        return None
    found = re.search(r"LLD (\d+)\.", answer.stdout)
    return int(found[1]) if found else None


def command_line(
    sources: Sequence[Path],
    output: Path,
    target: Target,
    compiler: MachoCompiler,
    *,
    simd: bool = False,
    pie: bool = False,
    optimize: str = "2",
    entry: str | None = "main",
    base: int | None = None,
    doorbell: int = doorbell_page.DEFAULT_ADDRESS,
    runtime: bool = True,
    options: Iterable[str] = (),
) -> list[str]:
    """The one command that builds the payload; the parameters are those of :func:`rift_core.build.build`.

    :raises BuildError: a base for what has none.
    """
    command = [*compiler.command, *COMMON_FLAGS, f"-O{optimize}", *target.flags, *target.macho_flags]
    command.append("-Wno-unused-command-line-argument")
    if not compiler.debug:
        command.remove("-g")
    command += target.simd if simd else target.general_only
    command += [f"-I{RUNTIME}", f"-I{target.folder}"]
    if doorbell != doorbell_page.DEFAULT_ADDRESS:
        command.append(f"-DRIFT_DOORBELL={doorbell:#x}")
    command += map(str, sources)
    if runtime:
        for folder in (RUNTIME, target.folder):
            command += sorted(str(source) for source in folder.iterdir() if source.suffix in (".c", ".S"))
        command.append("-Wl,-u,_rift_vectors")
    command += _link_flags(target, compiler, entry, base, pie)
    return [*command, *options, "-o", str(output)]


def _link_flags(
    target: Target, compiler: MachoCompiler, entry: str | None, base: int | None, pie: bool
) -> Iterable[str]:
    yield "-nostartfiles" if compiler.linker is None else "-nostdlib"
    yield "-Wl,-dead_strip"
    if compiler.linker is not None and compiler.linker >= HAS_CHAINED_FIXUPS:
        yield "-Wl,-fixup_chains"
    if entry is None:
        if base is not None:
            raise BuildError("a Mach-O payload without entry is a bundle: it stands where [loader] base says")
        yield "-bundle"
        return
    yield f"-Wl,-e,_{entry}"
    yield "-Wl,-export_dynamic"  # global functions stay: the host calls them by name
    if compiler.linker is not None and compiler.linker < HAS_PAGEZERO_SIZE:
        if base is not None:
            raise BuildError(
                f"ld64.lld of LLVM {compiler.linker} cannot set the base of a payload: "
                f"install lld-{HAS_CHAINED_FIXUPS} or newer"
            )
        return  # it stands at 4 GiB, which is as good
    if base is None and not pie and compiler.linker is not None:
        base = target.base
    if base is not None:
        yield f"-Wl,-pagezero_size,{base:#x}"  # what follows the hole is the first segment
