"""``rift build``: a payload from C or assembler sources, in one run of gcc, clang or zig (build_macho: Mach-O).

The sources of the guest runtime are compiled along: the generic ones beside ``rift_guest.h``, and those of
the ISA, which stand in the folder ``guest`` of the package that provides it. That folder holds a
``build.toml``:

========================  =====================================================================================
``machine``               ``platform.machine()`` of hosts whose plain gcc and clang compile for this ISA
``cross_prefix``          prefixes of gcc on other hosts, such as ``aarch64-linux-gnu-``
``clang_target``          clang's ``--target`` on other hosts; linking then takes lld
``zig_target``            zig's ``-target``: the compiler in PyPI's package ziglang
``flags``                 always
``general_only``          unless ``simd``: only general registers, so that supervisor code saves no others
``simd``                  with ``simd``
``base``                  the payload's first guest-virtual address
``page_size``             code, constants and data stand on pages of their own of that size
``macho_arch``            Apple's name of the ISA, where there are Mach-O files for it
``macho_flags``           always for Mach-O, whose default CPU may be newer than the ISA's first; may be left out
========================  =====================================================================================
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rift_core import doorbell as doorbell_page
from rift_core.errors import PluginNotFoundError, RiftError
from rift_core.files import SOURCE_SUFFIXES, is_source
from rift_core.plugin import ENTRY_POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

RUNTIME = Path(__file__).with_name("guest")
"""Folder of ``rift_guest.h``, of the sources behind it and of the linker scripts."""

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


class BuildError(RiftError):
    """The payload could not be built.

    :param output: what the compiler said, or "" where it never ran.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(f"{message}\n{output.rstrip()}" if output else message)
        self.output = output


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


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that was found: its command with what it needs to aim at the ISA."""

    command: tuple[str, ...]
    is_clang: bool
    is_zig: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """An ISA's part of the guest runtime; see the module's text for the keys of its ``build.toml``."""

    isa: str
    folder: Path
    machine: tuple[str, ...]
    cross_prefix: tuple[str, ...]
    clang_target: str
    zig_target: str
    flags: tuple[str, ...]
    general_only: tuple[str, ...]
    simd: tuple[str, ...]
    base: int
    page_size: int
    macho_arch: str = ""
    macho_flags: tuple[str, ...] = ()

    @classmethod
    def read(cls, isa: str, folder: Path) -> Target:
        """Read ``folder/build.toml``.

        :raises BuildError: it is not there, or a key is missing.
        """
        try:
            values = tomllib.loads((folder / "build.toml").read_text())
            return cls(
                isa=isa,
                folder=folder,
                machine=tuple(values["machine"]),
                cross_prefix=tuple(values["cross_prefix"]),
                clang_target=str(values["clang_target"]),
                zig_target=str(values["zig_target"]),
                flags=tuple(values["flags"]),
                general_only=tuple(values["general_only"]),
                simd=tuple(values["simd"]),
                base=int(values["base"]),
                page_size=int(values["page_size"]),
                macho_arch=str(values.get("macho_arch", "")),
                macho_flags=tuple(values.get("macho_flags", ())),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BuildError(
                f"the guest runtime of ISA {isa!r} has no usable {folder / 'build.toml'}: {error!r}"
            ) from error

    @property
    def is_native(self) -> bool:
        """Whether this host's own compilers make code for it."""
        return platform.machine() in self.machine and platform.system() == "Linux"


def isa_sources(isa: str) -> Path:
    """The folder ``guest`` of the package that provides an ISA; the package is found, not imported.

    An ISA's entry point in the group ``rift.plugins`` has the ISA's name.

    :raises PluginNotFoundError: there is none of that name; the message lists what can be built for.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    folders: dict[str, Path] = {}
    for point in points:
        spec = importlib.util.find_spec(point.module) if "." not in point.module else None
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(location) / "guest"
            if (folder / "build.toml").is_file():
                folders[point.name] = folder
    if isa not in folders:
        known = ", ".join(sorted(folders)) or "none"
        raise PluginNotFoundError(f"no installed plugin brings a guest runtime for ISA {isa!r} (there are: {known})")
    return folders[isa]


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
        raise BuildError(f"doorbell {doorbell:#x} is not a page below 2 GiB")
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
