"""``rift build --format macho``: what it makes with every linker that is here, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rift_loader_elf
import rift_loader_macho
from rift_core import build_macho
from rift_core.build import build, default_format
from rift_core.build_target import BuildError, Target, isa_sources
from rift_core.memory import Permission
from rift_core.testing.loader import image_bytes
from rift_core.testing.tools import require_compiler, require_tool

if TYPE_CHECKING:
    from rift_core.binary import Binary

GUEST = """
#include <rift_guest.h>
int add(int a, int b) { return a + b; }
static int one(int x) { return x + 1; }
int (*const table[])(int) = {one};
static const char *const words[] = {"zero", "one"};
int counter = 7;
char room[100000];
int main(int argument) { rift_printf("%s %d\\n", words[argument & 1], table[0](argument)); return 0; }
"""

ISAS = ("x86_64", "aarch64")


def linkers() -> list[str]:
    """The oldest and the newest that is here."""
    names = {path.name for folder in os.get_exec_path() for path in Path(folder).glob("ld64.lld*")}
    ordered = sorted(names, key=lambda name: (len(name), name)) or ["ld64.lld"]
    return sorted({ordered[0], ordered[-1]})


@pytest.fixture(params=linkers())
def linker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Lets ``rift build`` find only this linker; its version."""
    require_tool("clang")
    path = require_tool(request.param, package="lld (its ld64.lld)")
    version = build_macho._linker_version(path)
    assert version is not None
    monkeypatch.setattr(build_macho, "find_linker", lambda clang: (path, version))
    return version


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "guest.c"
    path.write_text(GUEST)
    return path


def load(path: Path, isa: str = "auto") -> Binary:
    binary = rift_loader_macho.rift_load_binary(path, rift_loader_macho.MachoConfig(), isa)
    assert binary is not None
    return binary


def address(binary: Binary, name: str) -> int:
    symbol = binary.symbols.find(name)
    assert symbol is not None, name
    return symbol.address


@pytest.mark.parametrize("entry", ["main", None])
@pytest.mark.parametrize("isa", ISAS)
def test_builds_a_payload(linker: int, isa: str, entry: str | None, source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path / "guest", isa, format="macho", entry=entry)
    assert result.path == tmp_path / "guest"
    assert result.command[0] == "clang"
    assert result.warnings == ""
    binary = load(result.path)
    assert binary.isa == isa
    assert binary.format == ("mach-o execute" if entry else "mach-o bundle")
    assert binary.entry == (address(binary, "main") if entry else None)
    first = binary.segments[0]
    assert first.address == (0x400000 if entry is None else 0x200000 if linker >= 15 else 0x100000000)
    permissions = {segment.name: segment.permissions for segment in binary.segments}
    assert permissions["__TEXT"] == Permission.READ | Permission.EXECUTE
    if linker > 14:  # older ones do not say that it shall be sealed
        assert permissions["__DATA_CONST"] == Permission.READ
    assert not any(p & Permission.WRITE and p & Permission.EXECUTE for p in permissions.values())
    assert int.from_bytes(image_bytes(binary, address(binary, "table"), 8), "little") == address(binary, "one")
    assert image_bytes(binary, address(binary, "counter"), 4) == b"\7\0\0\0"
    for name in ("add", "room", "rift_info", "rift_vectors"):
        assert binary.symbols.find(name) is not None, name


@pytest.mark.parametrize("entry", ["main", None])
@pytest.mark.parametrize("isa", ISAS)
def test_keeps_what_the_payload_brings_and_drops_unused_runtime(
    linker: int, isa: str, entry: str | None, source: Path, tmp_path: Path
) -> None:
    source.write_text("int lonely(void) { return 1; }\nint main(void) { return 0; }\nint unused_data = 3;\n")
    symbols = load(build(source, tmp_path / "guest", isa, format="macho", entry=entry).path).symbols
    for name in ("lonely", "unused_data", "rift_vectors"):
        assert symbols.find(name) is not None, name
    for name in ("rift_walk", "rift_snprintf", "rift_printf", "rift_base"):
        assert symbols.find(name) is None, name


@pytest.mark.parametrize("isa", ISAS)
def test_the_vectors_are_the_same_code_in_both_formats(isa: str, source: Path, tmp_path: Path) -> None:
    require_tool("clang")
    require_compiler()
    macho = load(build(source, tmp_path / "macho", isa, format="macho").path)
    elf = rift_loader_elf.rift_load_binary(
        build(source, tmp_path / "elf", isa, format="elf").path, rift_loader_elf.ElfConfig()
    )
    assert elf is not None
    size = {"x86_64": 256 * 16, "aarch64": 16 * 128}[isa]
    alignment = {"x86_64": 64, "aarch64": 2048}[isa]
    tables = []
    for binary in (elf, macho):
        start = address(binary, "rift_vectors")
        assert start % alignment == 0
        tables.append(image_bytes(binary, start, size))
    assert tables[0] == tables[1]
    assert any(tables[0])


@pytest.mark.parametrize("isa", ISAS)
def test_general_registers_only(isa: str, source: Path, tmp_path: Path) -> None:
    require_tool("clang")
    source.write_text("double half(double x) { return x / 2; }\nint main(void) { return 0; }\n")
    with pytest.raises(BuildError, match="--simd"):
        build(source, tmp_path / "guest", isa, format="macho")
    binary = load(build(source, tmp_path / "guest", isa, format="macho", simd=True).path)
    assert binary.symbols.find("half") is not None


def test_code_is_for_every_cpu_of_the_isa(linker: int, source: Path, tmp_path: Path) -> None:
    """Unless the payload asks for more: Apple's own default is the M1."""
    newer = "#if defined(__ARM_FEATURE_ATOMICS) || defined(__ARM_FEATURE_DOTPROD)\n#error newer than Armv8.0\n#endif\n"
    source.write_text(newer + GUEST)
    build(source, tmp_path / "guest", "aarch64", format="macho")
    with pytest.raises(BuildError, match="newer than Armv8"):
        build(source, tmp_path / "guest", "aarch64", format="macho", options=["-mcpu=apple-m1"])


def test_base_entry_doorbell_and_options(linker: int, source: Path, tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"format": "macho", "entry": "add", "doorbell": 0x1000_0000, "options": ["-DEXTRA=1"]}
    if linker < build_macho.HAS_PAGEZERO_SIZE:
        with pytest.raises(BuildError, match="cannot set the base of a payload: install lld-16 or newer"):
            build(source, tmp_path / "guest", base=0x60_0000, **wishes)
        return
    result = build(source, tmp_path / "guest", base=0x60_0000, **wishes)
    assert "-DEXTRA=1" in result.command
    binary = load(result.path)
    assert binary.segments[0].address == 0x60_0000
    assert binary.entry == address(binary, "add")
    assert bytes.fromhex("a30808001000000000") in result.path.read_bytes(), "the vectors' store names the doorbell"


def test_a_bundle_has_no_base(source: Path, tmp_path: Path) -> None:
    require_tool("clang")
    with pytest.raises(BuildError, match=r"it stands where \[loader\] base says"):
        build(source, tmp_path / "guest", format="macho", entry=None, base=0x60_0000)


def test_a_payload_of_its_own_needs_no_runtime(linker: int, tmp_path: Path) -> None:
    source = tmp_path / "bare.S"
    source.write_text(".globl _test\n_test: hlt\n")
    binary = load(build(source, tmp_path / "bare", entry="test", runtime=False, format="macho").path)
    assert binary.entry == address(binary, "test")
    assert binary.symbols.find("rift_vectors") is None


def test_a_missing_symbol_is_an_error(linker: int, source: Path, tmp_path: Path) -> None:
    source.write_text("int nowhere(void);\nint main(void) { return nowhere(); }\n")
    with pytest.raises(BuildError, match=r"undefined symbol: _?nowhere"):
        build(source, tmp_path / "guest", format="macho")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.c"]


def test_debugging_symbols_lie_beside_the_payload(source: Path, tmp_path: Path) -> None:
    require_tool("clang")
    folder = tmp_path / "guest.dSYM"
    folder.mkdir()
    (folder / "stale").touch()
    build(source, tmp_path / "guest", format="macho")
    has_dsymutil = Path(build_macho._program_of("clang", "dsymutil")).is_absolute()
    assert folder.is_dir() == has_dsymutil
    assert not (folder / "stale").exists()
    if has_dsymutil:
        assert (folder / "Contents/Resources/DWARF/guest").is_file()


class TestChoice:
    """Which compiler and linker are taken, with made-up ones."""

    @pytest.fixture
    def tools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("RIFT_CC", raising=False)
        monkeypatch.setattr("platform.system", lambda: "Linux")
        build_macho._program_of.cache_clear()
        build_macho._linker_version.cache_clear()
        return folder

    @pytest.fixture(autouse=True)
    def forget(self) -> Any:
        yield
        build_macho._program_of.cache_clear()

    @staticmethod
    def fake(folder: Path, name: str, answer: str) -> None:
        path = folder / name
        path.write_text(f'#!/bin/sh\ncase "$1" in -print-prog-name=*) echo "${{1#*=}}";; *) echo "{answer}";; esac\n')
        path.chmod(0o755)

    @staticmethod
    def target(isa: str = "aarch64") -> Target:
        return Target.read(isa, isa_sources(isa))

    def test_the_newest_linker(self, tools: Path) -> None:
        self.fake(tools, "clang", "clang version 99")
        for name, version in (("ld64.lld", "14.0.6"), ("ld64.lld-9", "9.0.1"), ("ld64.lld-21", "21.1.0")):
            self.fake(tools, name, f"LLD {version}")
        self.fake(tools, "ld64.lld-broken", "nothing of the kind")
        found = build_macho.find_compiler(self.target())
        assert found.linker == 21
        assert found.command[:2] == ("clang", "--target=arm64-apple-macos11")
        assert f"--ld-path={tools / 'ld64.lld-21'}" in found.command
        assert not found.debug

    def test_no_linker(self, tools: Path) -> None:
        self.fake(tools, "clang", "clang version 99")
        with pytest.raises(BuildError, match="install the package lld"):
            build_macho.find_compiler(self.target())

    def test_no_compiler(self, tools: Path) -> None:
        with pytest.raises(BuildError, match="install the packages clang and lld"):
            build_macho.find_compiler(self.target())
        with pytest.raises(BuildError, match="'missing' is not there"):
            build_macho.find_compiler(self.target(), "missing")

    def test_another_compiler(self, tools: Path) -> None:
        self.fake(tools, "gcc", "gcc (GCC) 12")
        with pytest.raises(BuildError, match="gcc does not make Mach-O payloads: use clang, or --format elf"):
            build_macho.find_compiler(self.target(), "gcc")

    def test_an_isa_that_apple_does_not_have(self, tmp_path: Path, tools: Path) -> None:
        text = (isa_sources("aarch64") / "build.toml").read_text()
        (tmp_path / "build.toml").write_text(
            "".join(line for line in text.splitlines(keepends=True) if "macho" not in line)
        )
        with pytest.raises(BuildError, match="no Mach-O files for ISA 'riscv64'"):
            build_macho.find_compiler(Target.read("riscv64", tmp_path))

    def test_on_a_mac(self, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No Mac is at hand: this is what is asked of Apple's tools there, and that nothing of Linux is."""
        monkeypatch.setattr("platform.system", lambda: "Darwin")
        self.fake(tools, "clang", "Apple clang version 17.0.0")
        target = self.target()
        found = build_macho.find_compiler(target)
        assert (found.command, found.linker) == (("clang", "--target=arm64-apple-macos11"), None)
        assert default_format() == "macho"
        executable = build_macho.command_line([Path("a.c")], Path("a"), target, found)
        bundle = build_macho.command_line([Path("a.c")], Path("a"), target, found, entry=None)
        for command in (executable, bundle):
            assert "-nostartfiles" in command
            assert not any("nostdlib" in word or "ld-path" in word or "pagezero" in word for word in command)
        assert "-Wl,-e,_main" in executable
        assert "-bundle" in bundle


@pytest.mark.parametrize("isa", ISAS)
def test_command_line(isa: str, source: Path, tmp_path: Path) -> None:
    require_tool("clang")
    rift = str(Path(sys.executable).with_name("rift"))
    output = tmp_path / "payload"
    command = [rift, "build", str(source), "-o", str(output), "--format", "macho", "--isa", isa, "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "apple-macos11" in done.stdout
    shown = subprocess.run(
        [rift, "inspect", str(output)], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    assert "mach-o execute" in shown
    assert "__TEXT" in shown
    assert " add" in shown


@pytest.mark.parametrize("entry", ["main", None])
@pytest.mark.parametrize("format", ["elf", "macho"])
def test_functions_of_an_arm64_payload_compute(format: str, entry: str | None, tmp_path: Path) -> None:
    """On a bare software CPU, for hosts where no backend runs AArch64: pointers, constants and zero fill are right."""
    unicorn = pytest.importorskip("unicorn", reason="unicorn is not installed: pip install unicorn")
    from unicorn import arm64_const

    source = tmp_path / "guest.c"
    source.write_text(
        """
        #include <rift_guest.h>
        static int one(int x) { return x + 1; }
        static int two(int x) { return x * 2; }
        int (*table[])(int) = {two, one};
        static const char *const words[] = {"zero", "one"};
        char room[5000];
        int compute(int index) {
            char text[16];
            memset(room, 3, sizeof room);
            memcpy(text, words[index], 5);
            return table[index](20) * 1000 + text[0] + room[4999];
        }
        int main(void) { return 0; }
        """
    )
    require_tool("clang")
    path = build(source, tmp_path / "guest", "aarch64", "clang", format=format, entry=entry).path  # type: ignore[arg-type]
    config = rift_loader_elf.ElfConfig()
    binary = load(path) if format == "macho" else rift_loader_elf.rift_load_binary(path, config)
    assert binary is not None
    cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    low = min(segment.address for segment in binary.segments) & ~0xFFFF
    high = max(segment.address + segment.memory_size for segment in binary.segments)
    cpu.mem_map(low, (high - low + 0x1FFFF) & ~0xFFFF)
    for segment in binary.segments:
        cpu.mem_write(segment.address, bytes(segment.data))
    stack, stop = low + ((high - low + 0xFFFF) & ~0xFFFF), 0x10000
    cpu.mem_map(stop, 0x1000)
    results = []
    for index in (0, 1):
        cpu.reg_write(arm64_const.UC_ARM64_REG_X0, index)
        cpu.reg_write(arm64_const.UC_ARM64_REG_SP, stack + 0x10000 - 16)
        cpu.reg_write(arm64_const.UC_ARM64_REG_X30, stop)
        cpu.emu_start(address(binary, "compute"), stop)
        results.append(cpu.reg_read(arm64_const.UC_ARM64_REG_X0))
    assert results == [40 * 1000 + ord("z") + 3, 21 * 1000 + ord("o") + 3]
