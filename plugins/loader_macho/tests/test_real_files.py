"""Files that clang and LLVM's linker for Mach-O make, of its oldest and newest version that is here."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rift_loader_macho
from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_core.testing.loader import GoodFile, LoaderConformance, image_bytes
from rift_core.testing.tools import require_tool, skip_here
from rift_loader_macho import MachoConfig, rift_load_binary

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.binary import Binary

    Link = Callable[..., Path]

SOURCE = """
static int one(int x) { return x + 1; }
static int two(int x) { return x * 2; }
int (*const constant_table[])(int) = {one, two};
int (*table[])(int) = {two, one};
const char *names[] = {"alpha", "beta"};
unsigned long used_memory;
char buffer[3000];
char *end_of_buffer = buffer + sizeof buffer;
__attribute__((weak)) int weak_function(int x) { return x - 1; }
int (*weak_pointer)(int) = weak_function;
int test(int i) {
    used_memory = 0xDEADBEEF;
    buffer[i & 1023] = names[i & 1][0];
    return table[i & 1](3) + constant_table[i & 1](4) + weak_function(i);
}
int start(void) { for (;;) test(1); }
"""

ISAS = {"x86_64": "x86_64", "arm64": "aarch64"}


def linkers() -> list[str]:
    """The oldest and the newest: ``ld64.lld``, and with a version behind it, as Debian calls it."""
    names = {path.name for folder in os.get_exec_path() for path in Path(folder).glob("ld64.lld*")}
    ordered = sorted(names, key=lambda name: (len(name), name))
    return sorted({*ordered[:1], *ordered[-1:]})


def version(linker: str) -> int:
    answer = subprocess.run([linker, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"LLD (\d+)", answer)
    return int(found[1]) if found else 0


@pytest.fixture(params=linkers() or ["ld64.lld"])
def linker(request: pytest.FixtureRequest) -> str:
    require_tool("clang")
    return require_tool(request.param, package="lld (its ld64.lld)")


def compile_and_link(
    folder: Path, linker: str, arch: str, *flags: str, source: str = SOURCE, hidden: bool = True
) -> Path:
    (folder / "payload.c").write_text(source)
    visibility = ["-fvisibility=hidden"] if hidden else []
    compiler = ["clang", f"--target={arch}-apple-macos11", "-O1", "-ffreestanding", *visibility, "-c", "payload.c"]
    link = [linker, "-arch", arch, "-platform_version", "macos", "11.0", "11.0", *flags, "-o", "payload", "payload.o"]
    for command in (compiler, link):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}: {done.stderr}")
    return folder / "payload"


@pytest.fixture
def link(tmp_path: Path, linker: str) -> Link:
    """Links the payload with one of the linkers."""

    def call(arch: str, *flags: str, **options: Any) -> Path:
        return compile_and_link(tmp_path, linker, arch, *flags, **options)

    return call


def load(path: Path, **config: object) -> Binary:
    binary = rift_load_binary(path, MachoConfig.model_validate(config), "auto")
    assert binary is not None
    return binary


def address(binary: Binary, name: str) -> int:
    symbol = binary.symbols.find(name)
    assert symbol is not None, name
    return symbol.address


def words(binary: Binary, name: str, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", image_bytes(binary, address(binary, name), 8 * count))


def check_pointers(binary: Binary) -> None:
    """Every static pointer of the source points where it should."""
    one, two = address(binary, "one"), address(binary, "two")
    assert words(binary, "constant_table", 2) == (one, two)
    assert words(binary, "table", 2) == (two, one)
    alpha, beta = words(binary, "names", 2)
    assert image_bytes(binary, alpha, 6) == b"alpha\0"
    assert image_bytes(binary, beta, 5) == b"beta\0"
    assert words(binary, "end_of_buffer", 1) == (address(binary, "buffer") + 3000,)
    assert words(binary, "weak_pointer", 1) == (address(binary, "weak_function"),)
    near = binary.symbols.nearest(address(binary, "test") + 1)
    assert near is not None
    assert near.name == "test"
    sizes = {symbol.name: symbol.size for symbol in binary.symbols}
    assert (sizes["table"], sizes["constant_table"], sizes["buffer"]) == (16, 16, 3000)
    places = {s.name: s.permissions for s in binary.segments}
    assert places["__TEXT"] == Permission.READ | Permission.EXECUTE
    assert places["__DATA"] == Permission.READ | Permission.WRITE
    assert "__PAGEZERO" not in places


def fixup_flags(linker: str, chained: bool) -> list[str]:
    if version(linker) < 16:
        if chained:
            skip_here(f"{linker} does not write chained fixups (LLVM 16 and later do)")
        return []
    return ["-fixup_chains" if chained else "-no_fixup_chains"]


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "visible"])
@pytest.mark.parametrize("chained", [False, True], ids=["opcodes", "chains"])
@pytest.mark.parametrize("kind", ["execute", "bundle"])
@pytest.mark.parametrize("arch", ISAS)
def test_static_pointers(link: Link, linker: str, arch: str, kind: str, chained: bool, hidden: bool) -> None:
    flags = ["-bundle"] if kind == "bundle" else ["-execute", "-e", "_start"]
    path = link(arch, *flags, *fixup_flags(linker, chained), hidden=hidden)
    content = path.read_bytes()
    first = 0x400000 if kind == "bundle" else 0x100000000
    for base in (None, 0x10000000, "0xffffffff80000000"):
        binary = load(path, base=base)
        assert (binary.format, binary.isa) == (f"mach-o {kind}", ISAS[arch])
        start = int(base, 0) if isinstance(base, str) else base or first
        assert binary.segments[0].address == start
        assert binary.entry == (address(binary, "start") if kind == "execute" else None)
        check_pointers(binary)
    assert path.read_bytes() == content


@pytest.mark.parametrize("arch", ISAS)
def test_at_the_end_of_the_hole(link: Link, linker: str, arch: str) -> None:
    if version(linker) < 15:
        skip_here(f"{linker} ignores -pagezero_size (LLVM 15 and later know it)")
    binary = load(link(arch, "-execute", "-e", "_start", "-pagezero_size", "0x200000"))
    assert binary.segments[0].address == 0x200000
    check_pointers(binary)


@pytest.mark.parametrize("chained", [False, True], ids=["opcodes", "chains"])
def test_a_symbol_of_a_library(link: Link, linker: str, tmp_path: Path, chained: bool) -> None:
    stub = tmp_path / "libSystem.tbd"
    stub.write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos ]\ninstall-name: '/usr/lib/libSystem.B.dylib'\n"
        "exports:\n  - targets: [ x86_64-macos ]\n    symbols: [ _environ, dyld_stub_binder ]\n...\n"
    )
    source = "extern char **environ; char ***pointer = &environ; int start(void) { return 0; }\n"
    flags = ["-execute", "-e", "_start", str(stub), *fixup_flags(linker, chained)]
    with pytest.raises(BinaryError, match=r"needs the symbol _environ of /usr/lib/libSystem.B.dylib; define it"):
        load(link("x86_64", *flags, source=source))
    source = source.replace("char **environ;", "char **environ __attribute__((weak_import));")
    assert words(load(link("x86_64", *flags, source=source)), "pointer", 1) == (0,)


def test_a_library_that_nothing_is_used_of(link: Link, tmp_path: Path) -> None:
    stub = tmp_path / "libSystem.tbd"
    stub.write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos ]\ninstall-name: '/usr/lib/libSystem.B.dylib'\n...\n"
    )
    check_pointers(load(link("x86_64", "-execute", "-e", "_start", str(stub))))


def test_object_file(tmp_path: Path) -> None:
    require_tool("clang")
    (tmp_path / "a.c").write_text("int a;")
    subprocess.run(["clang", "--target=arm64-apple-macos11", "-c", "a.c"], cwd=tmp_path, check=True)
    with pytest.raises(BinaryError, match="an object file; link it"):
        load(tmp_path / "a.o")


def test_dynamic_library(link: Link) -> None:
    with pytest.raises(BinaryError, match="link it with -bundle instead of -dylib"):
        load(link("x86_64", "-dylib"))


def test_stripped(link: Link, tmp_path: Path) -> None:
    strip = next((name for name in ("llvm-strip", "llvm-strip-14", "llvm-strip-19") if shutil.which(name)), None)
    strip = require_tool(strip or "llvm-strip", package="llvm")
    path = link("x86_64", "-execute", "-e", "_start")
    subprocess.run([strip, path], check=True)
    binary = load(path)
    assert binary.entry is not None
    assert binary.symbols.find("one") is None


class TestConformance(LoaderConformance):
    """Truncations and corruptions of a real bundle."""

    corruptions = 500
    own_formats = frozenset({"Mach-O", "fat Mach-O"})

    @pytest.fixture
    def plugin(self) -> Any:
        return rift_loader_macho

    @pytest.fixture
    def good_file(self, tmp_path_factory: pytest.TempPathFactory) -> GoodFile:
        require_tool("clang")
        linker = require_tool(linkers()[-1] if linkers() else "ld64.lld", package="lld (its ld64.lld)")
        chained = ["-fixup_chains"] if version(linker) >= 16 else []
        path = compile_and_link(tmp_path_factory.mktemp("real"), linker, "arm64", "-bundle", *chained)
        binary = load(path)
        names = ("one", "two", "test", "table", "used_memory", "start")
        symbols = {name: address(binary, name) for name in names}
        table = struct.pack("<QQ", symbols["two"], symbols["one"])
        return GoodFile(path.read_bytes(), "aarch64", binary.entry, {symbols["table"]: table}, {}, symbols)
