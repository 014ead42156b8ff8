"""``rift build``: what it makes, with every compiler that is here, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rift_core.build import BuildResult, build, command_line
from rift_core.build_target import BuildError, Target, isa_sources
from rift_core.compilers import find_compiler
from rift_core.errors import PluginNotFoundError
from rift_core.testing.tools import require_payload_compiler, skip_here

PLUGINS = Path(__file__).parents[2] / "plugins"
FOLDERS = {isa: PLUGINS / isa / "src" / f"rift_{isa}" / "guest" for isa in ("x86_64", "aarch64")}
X86_64 = FOLDERS["x86_64"]


@dataclass(frozen=True)
class Build:
    """One ISA with one compiler."""

    isa: str
    compiler: str

    @property
    def target(self) -> Target:
        return Target.read(self.isa, FOLDERS[self.isa])

    def __call__(self, source: Path, output: Path, **options: Any) -> BuildResult:
        return build(source, output, self.isa, self.compiler, folder=FOLDERS[self.isa], **options)


def _available(isa: str, compiler: str) -> Build:
    result = Build(isa, compiler)
    require_payload_compiler(isa, compiler)
    return result


@pytest.fixture(params=[(isa, name) for isa in FOLDERS for name in ("gcc", "clang")], ids="-".join)
def make(request: pytest.FixtureRequest) -> Build:
    """Each ISA with each compiler that is here; zig takes seconds a run, and is in :func:`make_with_any` only."""
    return _available(*request.param)


@pytest.fixture(params=[(isa, name) for isa in FOLDERS for name in ("gcc", "clang", "zig")], ids="-".join)
def make_with_any(request: pytest.FixtureRequest) -> Build:
    """The same and zig."""
    return _available(*request.param)


GUEST = """
#include <rift_guest.h>
int add(int a, int b) { return a + b; }
static const char *const words[] = {"zero", "one"};
int counter = 7;
char room[100000];
int main(int argument) { rift_printf("%s %d\\n", words[argument & 1], add(argument, 1)); return 0; }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "guest.c"
    path.write_text(GUEST)
    return path


def symbols(path: Path) -> dict[str, tuple[int, str]]:
    """Name to address and nm's letter."""
    lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split() for line in lines]
    return {row[2]: (int(row[0], 16), row[1]) for row in rows if len(row) == 3}


def segments(path: Path) -> list[tuple[str, int, int]]:
    """Type, address and flags of each program header."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        return [(s["p_type"], s["p_vaddr"], s["p_flags"]) for s in ELFFile(file).iter_segments()]


@pytest.mark.parametrize("pie", [False, True], ids=["static", "pie"])
@pytest.mark.parametrize("simd", [False, True], ids=["general", "simd"])
def test_builds_a_payload(make_with_any: Build, pie: bool, simd: bool, source: Path, tmp_path: Path) -> None:
    make = make_with_any
    result = make(source, tmp_path / "guest", pie=pie, simd=simd)
    assert result.path == tmp_path / "guest"
    assert result.command[0] == find_compiler(make.target, make.compiler).command[0]
    assert result.warnings == ""
    names = symbols(result.path)
    assert {"main", "add", "counter", "room", "rift_vectors", "rift_info"} <= names.keys()
    base = 0 if pie else 0x200000
    loads = [(address, flags) for kind, address, flags in segments(result.path) if kind == "PT_LOAD"]
    assert [flags for _, flags in loads] == [5, 4, 6], "code, constants, data: nothing is writable and executable"
    assert loads[0][0] == base
    assert len({address // make.target.page_size for address, _ in loads}) == 3
    from elftools.elf.elffile import ELFFile

    with result.path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_entry"] == names["main"][0]
        assert elf["e_type"] == ("ET_DYN" if pie else "ET_EXEC")
        assert not any(s["p_type"] == "PT_INTERP" for s in elf.iter_segments())
        stack = next(s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK")
        assert not stack["p_flags"] & 1


def test_debuggers_find_how_to_unwind_the_stack(make: Build, source: Path, tmp_path: Path) -> None:
    """On AArch64 compilers take tables for C++'s exceptions as the default, in place of those that debuggers read."""
    from elftools.elf.elffile import ELFFile

    result = make(source, tmp_path / "guest")
    start = symbols(result.path)["add"][0]
    with result.path.open("rb") as file:
        elf = ELFFile(file)
        assert elf.get_section_by_name(".eh_frame") is None, "it would lie in the guest's memory"
        entries = elf.get_dwarf_info().CFI_entries() if elf.get_section_by_name(".debug_frame") else []
        assert start in [entry.header.initial_location for entry in entries if "initial_location" in entry.header]


def test_keeps_what_the_payload_brings_and_drops_unused_runtime(make: Build, source: Path, tmp_path: Path) -> None:
    source.write_text("int lonely(void) { return 1; }\nint main(void) { return 0; }\n")
    names = symbols(make(source, tmp_path / "guest").path)
    assert "lonely" in names, "the host calls functions by name, so that none may be dropped"
    assert "rift_vectors" in names
    assert "rift_walk" not in names
    assert "rift_snprintf" not in names


def test_warnings_are_handed_back(make: Build, source: Path, tmp_path: Path) -> None:
    source.write_text("int main(void) { int unused; return 0; }\n")
    assert "unused" in make(source, tmp_path / "guest").warnings


def test_a_compile_error_is_passed_on_and_leaves_the_old_payload(make: Build, source: Path, tmp_path: Path) -> None:
    (tmp_path / "guest").write_text("old")
    source.write_text("int main(void) { return undeclared_name; }\n")
    with pytest.raises(BuildError, match="undeclared_name") as caught:
        make(source, tmp_path / "guest")
    assert f"{source}:1:" in caught.value.output
    assert (tmp_path / "guest").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guest", "guest.c"], "nothing else is left behind"


def test_floating_point_without_simd_gets_a_hint(make_with_any: Build, source: Path, tmp_path: Path) -> None:
    make = make_with_any
    source.write_text("double half(double x) { return x / 2; }\nint main(void) { return 0; }\n")
    if make.compiler == "zig":  # brings functions that compute it without
        make(source, tmp_path / "guest")
    else:
        with pytest.raises(BuildError, match="--simd"):
            make(source, tmp_path / "guest")
    make(source, tmp_path / "guest", simd=True)


VECTORS_STORE = {
    "x86_64": "a30808001000000000",  # movabs %eax, 0x10000808
    "aarch64": "1e0080d2 1e00a2f2 df0b08b9",  # movz x30, #0; movk x30, #0x1000, lsl #16; str wzr, [x30, #0x808]
}


def test_options_base_entry_and_doorbell(make: Build, source: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    result = make(
        source, tmp_path / "guest", base=0x40_0000, entry="add", doorbell=0x1000_0000, options=["-DEXTRA=1"],
        verbose=seen.append,
    )  # fmt: skip
    assert seen == [str(result)]
    assert "-DEXTRA=1" in result.command
    assert result.command[-2:] == ("-o", str(tmp_path / "guest"))
    names = symbols(result.path)
    assert names["rift_vectors"][0] >= 0x40_0000
    store = bytes.fromhex(VECTORS_STORE[make.isa])
    assert store in result.path.read_bytes(), "the vectors' store names the doorbell"


def test_a_payload_of_its_own_needs_no_runtime(make: Build, tmp_path: Path) -> None:
    source = tmp_path / "bare.S"
    source.write_text(".globl test\ntest: nop\n")
    names = symbols(make(source, tmp_path / "bare", entry="test", runtime=False, base=0x80_0000).path)
    assert "rift_vectors" not in names
    assert names["test"][0] // 0x1000 == 0x800


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": []}, "no source"),
        ({"sources": "missing.c"}, "missing.c: no such source"),
        ({"sources": "/"}, "/ is no file to build"),
        ({"compiler": "no-such-compiler"}, "'no-such-compiler' is not there"),
        ({"base": 0x1234}, "not a multiple of 4096"),
        (
            {"doorbell": 0x8000_0000},
            r"below 2 GiB: choose a multiple of 0x1000, such as 0x70000000 \(memory\.doorbell\)",
        ),
        ({"output": "no/such/folder/guest"}, "no such folder"),
        ({"output": "/"}, "is a folder: name the file that is to be made"),
    ],
)
def test_what_cannot_be_built_is_refused_clearly(
    arguments: dict[str, object], message: str, source: Path, tmp_path: Path
) -> None:
    given: dict[str, object] = {"sources": source, "output": tmp_path / "guest", "isa": "x86_64", "folder": X86_64}
    with pytest.raises(BuildError, match=message):
        build(**{**given, **arguments})  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_named(source: Path) -> None:
    if not Path("/proc/self").exists():
        skip_here("only Linux has /proc, to which even the superuser can write no file")
    with pytest.raises(BuildError, match="nothing can be written to the folder /proc/self: "):
        build(source, "/proc/self/guest", "x86_64", folder=X86_64)


def test_a_compiler_that_makes_nothing_is_named(source: Path, tmp_path: Path) -> None:
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    with pytest.raises(BuildError, match=r"idle has succeeded and made nothing: is it a C compiler\?"):
        build(source, tmp_path / "guest", "x86_64", str(idle), folder=X86_64)
    assert not (tmp_path / "guest").exists()


def test_the_source_is_never_overwritten(source: Path) -> None:
    with pytest.raises(BuildError, match="both source and output"):
        build(source, source, "x86_64", folder=X86_64)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.delenv("RIFT_CC", raising=False)
    target = Target.read("x86_64", X86_64)
    with pytest.raises(BuildError, match=r"install the package .*gcc"):
        find_compiler(target)


def test_rift_cc_chooses_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "my-clang"
    fake.write_text("#!/bin/sh\necho clang version 99\n")
    fake.chmod(0o755)
    monkeypatch.setenv("RIFT_CC", str(fake))
    found = find_compiler(Target.read("x86_64", X86_64))
    assert found.command[0] == str(fake)
    assert found.is_clang


@pytest.mark.parametrize("isa", FOLDERS)
def test_each_missing_piece_is_named(isa: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.delenv("RIFT_CC", raising=False)
    target = Target.read(isa, FOLDERS[isa])
    with pytest.raises(BuildError) as caught:
        find_compiler(target)
    text = str(caught.value)
    assert f"gcc-{isa.replace('_', '-')}-linux-gnu" in text.replace("_", "-")
    assert "packages clang and lld" in text
    assert "pip install ziglang" in text
    (tmp_path / "clang").write_text("#!/bin/sh\necho clang version 99\n")
    (tmp_path / "clang").chmod(0o755)
    with pytest.raises(BuildError, match="install the package lld"):
        find_compiler(target, "clang")
    (tmp_path / "ld.lld").write_text("")
    (tmp_path / "ld.lld").chmod(0o755)
    assert find_compiler(target).command[0] == "clang"


def test_another_host_uses_a_cross_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, answer in (("gcc", "gcc"), ("clang", "clang version 99"), ("ld.lld", "")):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\necho {answer}\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RIFT_CC", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    target = Target.read("x86_64", X86_64)
    found = find_compiler(target)
    assert found.command == ("clang", "--target=x86_64-unknown-linux-gnu", "-fuse-ld=lld"), (
        "this host's gcc is of no use"
    )
    assert "--target=x86_64-unknown-linux-gnu" in command_line([Path("a.c")], Path("a"), target, found)


def test_an_isa_is_found_by_its_entry_point_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "rift_made_up"
    (package / "guest").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "guest/build.toml").write_text("")
    information = tmp_path / "made_up-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[rift.plugins]\nmade_up = rift_made_up\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isa_sources("made_up") == package / "guest"
    with pytest.raises(BuildError, match=r"made_up.*build\.toml"):
        Target.read("made_up", package / "guest")
    with pytest.raises(PluginNotFoundError, match=r"'z80'.*made_up"):
        isa_sources("z80")
