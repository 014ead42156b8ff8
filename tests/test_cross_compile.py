"""The native pieces compile and link for macOS, on both of its ISAs. No Mac is at hand: zig brings the headers and
libSystem's symbols, and compiles what is not there for macOS as little as Apple's compiler would.

Only plugins/kvm may use what Linux alone has.
"""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from macholib import mach_o

from rift_core.testing.tools import load_module, session

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "cross"
TARGETS = ("aarch64-macos.11.0", "x86_64-macos.11.0")
SCRIPTS = {
    path.parents[2].name: path
    for path in sorted(ROOT.glob("plugins/*/src/*/_native_build.py"))
    if path.parents[2].name != "kvm"
}


@pytest.fixture(scope="session")
def zig(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The command of zig's C compiler; what it builds of libSystem is kept with pytest's cache."""
    if importlib.util.find_spec("ziglang") is None:
        sentence, remedy = "zig is missing", "pip install ziglang"
        if session().required:
            pytest.fail(f"--rift-require: {sentence}; {remedy}", pytrace=False)
        session().skip(sentence, remedy)
    kept = getattr(request.config, "cache", None)  # none under -p no:cacheprovider
    cache = str(kept.mkdir("zig")) if kept else None
    with pytest.MonkeyPatch.context() as patch:
        if cache:
            patch.setenv("ZIG_GLOBAL_CACHE_DIR", cache)
            patch.setenv("ZIG_LOCAL_CACHE_DIR", cache)
        yield [sys.executable, "-m", "ziglang", "cc"]


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python's headers, with another pyconfig.h: theirs is Linux's."""
    folder = tmp_path_factory.mktemp("python")
    for path in Path(sysconfig.get_paths()["include"]).iterdir():
        if path.name != "pyconfig.h":
            (folder / path.name).symlink_to(path)
    (folder / "pyconfig.h").symlink_to(HERE / "pyconfig.h")
    return folder


def extension(script: Path) -> Any:
    """The ``ffibuilder`` of a plugin's build script."""
    return load_module(script, f"native_build_of_{script.parents[2].name}").ffibuilder


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "warning:" in done.stderr:
        pytest.fail(f"{' '.join(command)}\n{done.stderr}")


def imports(library: Path) -> dict[str, bool]:
    """Undefined symbols of a library, and whether they come from one that it names (else: from whoever loads it)."""
    data = library.read_bytes()
    (count,) = struct.unpack_from("<I", data, 16)
    at, found = 32, {}
    for _ in range(count):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == mach_o.LC_SYMTAB:
            symbols, number, names, _ = struct.unpack_from("<IIII", data, at + 8)
            for index in range(number):
                name, flags, _, description, _ = struct.unpack_from("<IBBHQ", data, symbols + 16 * index)
                if flags & 0x0F == 1:  # N_UNDF | N_EXT
                    text = data[names + name : data.index(b"\0", names + name)].decode()
                    found[text] = description >> 8 not in (0xFE, 0)  # DYNAMIC_LOOKUP_ORDINAL, SELF_LIBRARY_ORDINAL
        at += size
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("plugin", SCRIPTS)
def test_a_native_piece_is_macos_code(plugin: str, target: str, zig: list[str], headers: Path, tmp_path: Path) -> None:
    builder = extension(SCRIPTS[plugin])
    name, _, _, options = builder._assigned_source
    generated = tmp_path / f"{name.rpartition('.')[2]}.c"
    builder.emit_c_code(str(generated))
    flags = [*options.get("extra_compile_args", ()), "-Wall", "-Wextra", "-Werror=implicit-function-declaration"]
    include = [f"-I{folder}" for folder in (*options.get("include_dirs", ()), headers)]
    objects = []
    for source in (*options["sources"], generated):
        objects.append(f"{Path(source).stem}.o")
        quiet = ["-w"] if source == generated else []
        macros = ["-DPy_LIMITED_API=0x030b0000"] if source == generated else []
        run([*zig, "-target", target, "-fPIC", *flags, *quiet, *macros, *include, "-c", str(source), "-o", objects[-1]],
            tmp_path)  # fmt: skip
    library = tmp_path / "_native.so"
    link = [*zig, "-target", target, "-shared", "-Wl,-undefined,dynamic_lookup", "-o", library.name, *objects]
    run(link, tmp_path)
    foreign = {symbol for symbol, named in imports(library).items() if not named}
    assert not {symbol for symbol in foreign if not symbol.startswith(("_Py", "__Py"))}, "not on macOS"
    assert any(symbol.startswith("_Py") for symbol in foreign), "the generated module is in it"


def test_the_check_finds_what_only_linux_has(zig: list[str], tmp_path: Path) -> None:
    source = tmp_path / "linux.c"
    source.write_text("#include <endian.h>\nint f(void) { return 0; }\n")
    command = [*zig, "-target", TARGETS[0], "-c", source.name, "-o", "linux.o"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    source.write_text('int memfd_create(const char *, unsigned); int f(void) { return memfd_create("", 0); }\n')
    run(command, tmp_path)
    link = [*zig, "-target", TARGETS[0], "-shared", "-Wl,-undefined,dynamic_lookup", "-o", "linux.so", "linux.o"]
    run(link, tmp_path)
    assert imports(tmp_path / "linux.so")["_memfd_create"] is False
