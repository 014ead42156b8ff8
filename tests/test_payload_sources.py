"""``[binary] path`` may name a source: it is built on the way, and nothing of it is left behind."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rift_core import BinaryError, ConfigError, SymbolNotFoundError, load_config, open_machine
from rift_core.assembly import check, load_binary
from rift_core.build_target import BuildError
from rift_core.catalog import Catalog
from rift_core.cli import status_of
from rift_core.errors import PluginNotFoundError
from rift_core.testing.tools import require_compiler, require_machine

if TYPE_CHECKING:
    from pathlib import Path

GUEST = """
#include <rift_guest.h>
int add(int a, int b) { return a + b; }
int main(int value) { rift_printf("value %d\\n", value); return value; }
"""
TOML = '[binary]\npath = "guest.c"\n'


@pytest.fixture(autouse=True)
def needs_compiler() -> None:
    require_compiler()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source and its configuration; temporary folders are made inside ``scratch``."""
    (tmp_path / "guest.c").write_text(GUEST)
    (tmp_path / "rift.toml").write_text(TOML)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return tmp_path


def left(folder: Path) -> list[Path]:
    return list((folder / "scratch").iterdir())


@pytest.mark.parametrize("name", ["rift.toml", "guest.c"])
def test_a_machine_of_a_source_runs_and_leaves_nothing_behind(folder: Path, name: str) -> None:
    console = io.StringIO()
    with require_machine(lambda: open_machine(folder / name, console=console)) as machine:
        (built,) = left(folder)
        assert machine.binary.path is not None
        assert machine.binary.path.parent == built
        assert machine.binary.path.read_bytes()[:4] == b"\x7fELF", "debuggers read it while the machine is open"
        assert machine.run(5).status == 5
        assert machine.call("add", 20, 22) == 42
        with pytest.raises(SymbolNotFoundError, match=r"guest\.c has no symbol 'ad'; did you mean add"):
            machine.call("ad")
    assert console.getvalue() == "value 5\n"
    assert left(folder) == []


def test_memory_of_the_image_outlives_the_file(folder: Path) -> None:
    (folder / "guest.c").write_text(GUEST + "const char large[3 << 20] = {[0] = 7, [2 << 20] = 9};")
    with require_machine(lambda: open_machine(folder / "rift.toml")) as machine:
        assert any(segment.mappable for segment in machine.binary.segments), "the file is mapped, not copied"
        view = machine.symbol("large").view((2 << 20) + 1)
    assert left(folder) == []
    assert (view[0], view[2 << 20]) == (7, 9)


def test_a_machine_that_was_dropped_leaves_nothing_behind(folder: Path) -> None:
    binary = load_binary(load_config(folder / "rift.toml"), Catalog.installed())
    assert len(left(folder)) == 1
    del binary
    gc.collect()
    assert left(folder) == []


def test_a_forked_child_leaves_the_file_alone(folder: Path) -> None:
    binary = load_binary(load_config(folder / "rift.toml"), Catalog.installed())
    assert binary.built is not None
    child = os.fork()
    if child == 0:
        binary.built.remove()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(left(folder)) == 1


def test_what_cannot_be_planned_leaves_nothing_behind(folder: Path) -> None:
    config = load_config(folder / "rift.toml", overrides={"threads.main.entry": "man"})
    with pytest.raises(SymbolNotFoundError, match=r"^entry of thread main: .* has no symbol 'man'; did you mean main"):
        check(config, Catalog.installed())
    gc.collect()
    assert left(folder) == []


def test_build_keys_reach_the_compiler(folder: Path) -> None:
    (folder / "include").mkdir()
    (folder / "include" / "answer.h").write_text("#define ANSWER 42\n")
    (folder / "guest.c").write_text(
        "#include <answer.h>\ndouble twice(double x);\nint main(void) { return twice(ANSWER); }"
    )
    (folder / "twice.c").write_text("double twice(double x) { return x + x; }")
    (folder / "rift.toml").write_text(
        '[binary]\npath = "guest.c"\nsources = ["twice.c"]\nsimd = true\npie = true\nruntime = false\n'
        'build_options = ["-Iinclude", "-DUNUSED"]\n'
    )
    binary = load_binary(load_config(folder / "rift.toml"), Catalog.installed())
    assert binary.format == "elf64 static-pie"
    assert binary.symbols.find("twice") is not None
    assert binary.symbols.find("rift_printf") is None


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_compiler_can_be_chosen(folder: Path, name: str) -> None:
    require_compiler(name)
    binary = load_binary(load_config(folder / "rift.toml", overrides={"binary.compiler": name}), Catalog.installed())
    assert binary.symbols.find("add") is not None


def test_the_doorbell_of_the_configuration_is_built_in(folder: Path) -> None:
    overrides = {"memory.doorbell": 0x5000_0000}
    console = io.StringIO()
    with require_machine(
        lambda: open_machine(load_config(folder / "rift.toml", overrides=overrides), console=console)
    ) as m:
        assert m.run(3).status == 3
    assert console.getvalue() == "value 3\n"


def test_what_the_compiler_says_is_the_error(folder: Path) -> None:
    (folder / "guest.c").write_text("int main(void) { return nothing; }")
    with pytest.raises(BuildError, match=r"guest\.c:1:\d+: error: .*nothing.* undeclared"):
        open_machine(folder / "rift.toml")
    assert left(folder) == []


def test_a_warning_goes_to_standard_error_and_the_guest_runs(folder: Path) -> None:
    (folder / "guest.c").write_text("int main(void) { int unused; return 7; }")
    require_machine(lambda: open_machine(code=b"\xf4", isa="x86_64")).close()
    command = [sys.executable, "-m", "rift_core.cli", "run", str(folder / "rift.toml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 7
    assert "unused variable" in run.stderr
    assert run.stdout == ""


def test_an_isa_without_a_runtime_is_named(folder: Path) -> None:
    config = load_config({"binary": {"path": str(folder / "guest.c")}, "isa": "x86_64"})
    assert load_binary(config, Catalog.installed()).isa == "x86_64"
    from rift_core.payload import build_payload

    with pytest.raises(PluginNotFoundError, match="no installed plugin brings a guest runtime for ISA 'riscv64'"):
        build_payload(config, "riscv64")
    assert left(folder) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('path = "guest"\nsimd = true', r"binary\.simd: says how to build a source, but path names none \(guest\)"),
        ("pie = false", r"binary\.pie: says how to build a source, but path names none"),
        ('path = "guest.c"\nsimd = 1', r"binary\.simd: should be a valid boolean, not 1"),
        ('path = "guest.c"\nbuild_options = "-O0"', r"binary\.build_options: should be an array"),
        ('path = "guest.c"\nsmid = true', r"binary\.smid: there is no such key; did you mean 'simd'"),
        ('path = "guest.c"\ncompiler = ""', r"binary\.compiler: .*at least 1 character"),
    ],
)
def test_wrong_build_keys(folder: Path, table: str, message: str) -> None:
    (folder / "rift.toml").write_text(f"[binary]\n{table}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(folder / "rift.toml")
    assert f"{folder / 'rift.toml'}:" in str(caught.value), "the line in the file"


def test_sources_that_are_not_there(folder: Path) -> None:
    (folder / "rift.toml").write_text('[binary]\npath = "gest.c"\n')
    with pytest.raises(BuildError, match=r"gest\.c: no such source"):
        open_machine(folder / "rift.toml")
    (folder / "rift.toml").write_text('[binary]\npath = "guest.c"\nsources = ["guest.cpp"]\n')
    (folder / "guest.cpp").write_text("")
    with pytest.raises(BuildError, match=r"guest\.cpp: a source is called \*\.c, \*\.S, \*\.s"):
        open_machine(folder / "rift.toml")
    assert left(folder) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("guest", GUEST, r"looks like a source, but the compiler goes by the name: call it \*\.c"),
        ("empty", "", "is empty: give a configuration"),
        ("words", "just words here", "neither TOML, nor a C source, nor an executable"),
    ],
)
def test_files_that_are_nothing(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(BinaryError, match=message):
        open_machine(folder / name)


@pytest.mark.parametrize("command", ["check", "inspect"])
@pytest.mark.parametrize("name", ["rift.toml", "guest.c"])
def test_commands_take_sources(folder: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([command, "--json", str(folder / name)]) == 0
    assert '"x86_64"' in capsys.readouterr().out or sys.platform != "linux"
    gc.collect()
    assert left(folder) == []


def test_a_payload_of_functions_needs_no_thread(folder: Path) -> None:
    (folder / "guest.c").write_text("int add(int a, int b) { return a + b; }")
    with require_machine(lambda: open_machine(folder / "guest.c")) as machine:
        assert machine.threads == ()
        assert machine.call("add", 2, 3) == 5
        with pytest.raises(ConfigError, match=r"no thread to run: .*guest\.c has neither a symbol main nor"):
            machine.run()
    (folder / "rift.toml").write_text(TOML + "[[threads]]\n")
    with pytest.raises(SymbolNotFoundError, match="thread main: the image has neither a symbol main"):
        check(load_config(folder / "rift.toml"), Catalog.installed())
