"""``rift build``: a payload from C or assembler sources, in one run of gcc, clang or zig (build_macho: Mach-O).

The sources of the guest runtime are compiled along: the generic ones beside ``rift_guest.h``, and those of the ISA
(:mod:`rift_core.build_target`).
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rift_core import doorbell as doorbell_page
from rift_core.build_target import RUNTIME, BuildError, Target, isa_sources
from rift_core.compilers import Compiler, find_compiler
from rift_core.files import SOURCE_SUFFIXES, is_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Format = Literal["elf", "macho"]
"""What a payload can be: the loaders of the same names read it."""

COMMON_FLAGS = (
    "-std=gnu11",
    "-g",
    "-Wall",
    "-ffreestanding",
    "-fno-stack-protector",  # it wants a canary in thread-local storage, which there is none of
    "-fno-omit-frame-pointer",  # for back traces
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",  # without either, debuggers get theirs: .debug_frame
    "-fno-common",  # a variable defined twice is an error
)
"""For every compiler and format."""

_LINK_FLAGS = (
    "-nostdlib",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
)

_FLOATING_POINT = re.compile(r"SSE|general-regs-only|`__\w+[sdt]f[0-9]?'|symbol: __\w+[sdt]f[0-9]?\b")
"""What gcc, and the linkers after clang, say of floating point without its registers: libgcc's __muldf3 and so on."""


_DEBUG_MAP = re.compile(r"^warning: .* debug map\.\n", re.MULTILINE)
"""What dsymutil, which clang runs for Mach-O, says of symbols that the linker has left out: no use to anybody."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A payload that has been built.

    :param command: the compiler's command line.
    :param path: the payload.
    :param warnings: what the compiler said although it succeeded.
    """

    command: tuple[str, ...]
    path: Path
    warnings: str = ""

    def __str__(self) -> str:
        return shlex.join(self.command)


def command_line(
    sources: Sequence[Path],
    output: Path,
    target: Target,
    compiler: Compiler,
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
    """The one command that builds the payload; the parameters are those of :func:`build`."""
    command = [*compiler.command, *COMMON_FLAGS, f"-O{optimize}", *target.flags]
    command += target.simd if simd else target.general_only
    command += ["-static-pie", "-fpie"] if pie else ["-static", "-fno-pie", "-no-pie"]
    if compiler.is_clang:
        command.append("-Wno-unused-command-line-argument")
    command += [f"-I{RUNTIME}", f"-I{target.folder}"]
    if doorbell != doorbell_page.DEFAULT_ADDRESS:
        command.append(f"-DRIFT_DOORBELL={doorbell:#x}")
    first = (0 if pie else target.base) if base is None else base
    command.append(f"-DRIFT_BASE={first:#x}")
    command += map(str, sources)
    if runtime:
        for folder in (RUNTIME, target.folder):
            command += sorted(str(source) for source in folder.iterdir() if source.suffix in (".c", ".S"))
        command.append("-Wl,-u,rift_vectors")
    else:
        command.append(str(RUNTIME / "rift_base.S"))
    script = RUNTIME / ("payload_pie.ld" if pie else "payload.ld")
    if not compiler.is_zig:
        command.append("-Wl,-z,separate-code")  # unknown to zig, whose linker does so anyway
    command += [*_LINK_FLAGS, f"-Wl,-z,max-page-size={target.page_size:#x}"]
    command.append(f"-Wl,-T,{script}")
    if pie:
        command.append("-Wl,--no-dynamic-linker")
    command.append(f"-Wl,-e,{entry or 0}")
    return [*command, *options, "-o", str(output)]


def build(
    sources: Path | str | Sequence[Path | str],
    output: Path | str,
    isa: str | None = None,
    compiler: str | None = None,
    *,
    simd: bool = False,
    pie: bool = False,
    optimize: str = "2",
    entry: str | None = "main",
    base: int | None = None,
    doorbell: int = doorbell_page.DEFAULT_ADDRESS,
    runtime: bool = True,
    format: Format | None = None,
    options: Iterable[str] = (),
    directory: Path | None = None,
    folder: Path | None = None,
    verbose: Callable[[str], None] | None = None,
) -> BuildResult:
    """Compile and link a payload. Nothing is cached; ``output`` is replaced only when all went well.

    :param sources: C (``.c``) and assembler (``.S``, ``.s``) files.
    :param isa: whose code to make; this host's when None.
    :param simd: allow vector and floating-point registers; the vectors then save them.
    :param pie: make it relocatable (static PIE), to be loaded anywhere.
    :param optimize: what follows ``-O``.
    :param entry: the function at which a thread starts unless the configuration names another one; None
        for a payload that only has functions to be called.
    :param base: first guest-virtual address, a multiple of the ISA's page size; its default when None.
    :param doorbell: guest-virtual address of the doorbell page, below 2 GiB.
    :param runtime: add the guest runtime; a payload that brings everything itself does without.
    :param format: "elf" or "macho"; None for the one that the host's own tools make: Mach-O on macOS, else ELF.
    :param options: further options of the compiler, last on its command line.
    :param directory: where the compiler runs, so that relative paths in ``options`` count from there.
    :param folder: the ISA's part of the runtime; that of the installed plugin when None.
    :param verbose: is called with the command line before it runs.
    :raises BuildError: no compiler, a source that is not there, or whatever the compiler says.
    :raises PluginNotFoundError: no installed plugin brings a runtime for ``isa``.
    """
    files = [Path(source) for source in ([sources] if isinstance(sources, Path | str) else sources)]
    destination = Path(output)
    if directory is not None:
        files, destination = [file.absolute() for file in files], destination.absolute()
    if not files:
        raise BuildError("there is no source to build")
    for file in files:
        if not file.is_file():
            raise BuildError(f"{file} is no file to build" if file.exists() else f"{file}: no such source")
        if not is_source(file):
            raise BuildError(f"{file}: a source is called {', '.join('*' + suffix for suffix in SOURCE_SUFFIXES)}")
        if destination.exists() and file.samefile(destination):
            raise BuildError(f"{file} is both source and output")
    if not 0 < doorbell < 0x8000_0000 or doorbell % doorbell_page.SIZE:
        raise BuildError(
            f"doorbell {doorbell:#x} is not a page below 2 GiB: choose a multiple of {doorbell_page.SIZE:#x}, "
            f"such as {doorbell_page.DEFAULT_ADDRESS:#x} (memory.doorbell)"
        )
    if destination.is_dir():
        raise BuildError(f"{destination} is a folder: name the file that is to be made (-o)")
    if not destination.parent.is_dir():
        raise BuildError(f"{destination.parent}: no such folder")
    if isa is None:
        from rift_core.assembly import host_isa

        isa = host_isa()
    target = Target.read(isa, folder or isa_sources(isa))
    if base is not None and (base < 0 or base % target.page_size):
        raise BuildError(f"base {base:#x} is not a multiple of {target.page_size}")
    line = _lines(format or default_format(), target, compiler)
    with _scratch(destination.parent) as scratch:
        made = scratch / destination.name
        command = line(
            files, made, simd=simd, pie=pie, optimize=optimize, entry=entry, base=base, doorbell=doorbell,
            runtime=runtime, options=options,
        )  # fmt: skip
        shown = (*command[:-1], str(destination))
        if verbose:
            verbose(shlex.join(shown))
        warnings = _DEBUG_MAP.sub("", _run(command, shown, directory))
        if not made.is_file():
            raise BuildError(f"{command[0]} has succeeded and made nothing: is it a C compiler?")
        _replace_symbols(made, destination)
        made.replace(destination)
    return BuildResult(shown, destination, warnings)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the output, so that the final rename is one step on one file system.

    :raises BuildError: nothing can be written there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=".rift-build-", dir=folder)
    except OSError as error:
        raise BuildError(f"nothing can be written to the folder {folder}: {error.strerror}") from error
    with made as name:
        yield Path(name)


def default_format() -> Format:
    """What the host's own tools make."""
    return "macho" if platform.system() == "Darwin" else "elf"


def _lines(format: Format, target: Target, compiler: str | None) -> Callable[..., list[str]]:
    """``command_line`` of a format, with target and compiler filled in.

    :raises BuildError: no compiler.
    """
    if format == "macho":
        from rift_core import build_macho

        clang = build_macho.find_compiler(target, compiler)
        return lambda files, made, **wishes: build_macho.command_line(files, made, target, clang, **wishes)
    found = find_compiler(target, compiler)
    return lambda files, made, **wishes: command_line(files, made, target, found, **wishes)


def _replace_symbols(made: Path, destination: Path) -> None:
    """Debugging symbols of a Mach-O payload lie beside it, in a folder; those of another one are not to stay there."""
    new, old = (path.with_name(f"{path.name}.dSYM") for path in (made, destination))
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    if new.is_dir():
        new.replace(old)


def _run(command: list[str], shown: tuple[str, ...], directory: Path | None) -> str:
    """Run the compiler; what it said.

    :raises BuildError: it failed.
    """
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=directory,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if answer.returncode:
        hint = ""
        if _FLOATING_POINT.search(answer.stderr):
            hint = " (floating point and vectors need --simd: payloads are compiled for general registers only)"
        raise BuildError(f"{shown[0]} failed with status {answer.returncode}{hint}", answer.stderr + answer.stdout)
    return answer.stderr
