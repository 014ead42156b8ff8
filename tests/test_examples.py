"""Every example runs, on every ISA that a backend here has, and prints what its README promises."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from rift_core import load_config, open_machine
from rift_core.testing.guests import guests_for
from rift_core.testing.tools import (
    load_module,
    require_compiler,
    require_isa,
    require_machine,
    require_module,
    require_payload_compiler,
)

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True, params=["x86_64", "aarch64"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each ISA; the examples' configurations name none, so that the environment's counts."""
    name: str = request.param
    require_isa(name)
    require_payload_compiler(name)
    monkeypatch.setenv("RIFT_ISA__NAME", name)
    return name


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the example's folder, so that nothing is built inside the repository."""
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param))


def run_module(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """What ``python run.py`` does; a skip where no backend works."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    module = load_module(folder / "run.py", f"example_{folder.name}")
    status = require_machine(module.main)
    assert isinstance(status, int)
    return status


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("example", ["hello"], indirect=True)
def test_hello(example: Path, compiler: str, isa: str) -> None:
    require_payload_compiler(isa, compiler)
    config = load_config(example / "rift.toml", overrides={"binary.compiler": compiler})
    console = io.StringIO()
    with require_machine(lambda: open_machine(config, console=console)) as machine:
        assert machine.thread("main").start().join(timeout=30).status == 0
        assert machine.call("add", 20, 22) == 42
        root = machine.engine.space.root
        code = machine.translate(machine.symbol("main").address).physical
    text = console.getvalue()
    level, register = {"x86_64": ("ring 0", "CR3"), "aarch64": ("EL1", "TTBR0_EL1")}[isa]
    assert f"Hello from {level}" in text
    assert f"{register} = {root:#010x}" in text, "what the guest read is what the host set"
    assert f"guest-physical {code:#x}" in text, "the guest's own page walk agrees with the host's"
    assert f"exception {guests_for(isa).invalid_vector} at" in text
    assert "back again, 1 exception handled" in text
    assert "2 + 3 = 5" in text


@pytest.mark.parametrize("example", ["page_fault"], indirect=True)
def test_page_fault(example: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_module(example, monkeypatch) == 0
    text = capfd.readouterr().out
    assert text.count("page fault at 0x3f") == 4
    assert "read back: sum 3003, 3 pages mapped" in text
    assert "dirty: True" in text
    assert "unhandled guest exception" in text
    assert "stray" in text, "the report names the function"


@pytest.mark.parametrize("example", ["sandbox"], indirect=True)
def test_sandbox(example: Path, isa: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # no cell is broken into two lines
    assert run_module(example, monkeypatch) == 0
    text = capfd.readouterr().out
    cells = [line.split("│") for line in text.splitlines()]
    rows = {row[1].strip(): row[2].strip() for row in cells if len(row) == 4 and row[1].strip()}
    level = {"x86_64": "ring 3", "aarch64": "EL0"}[isa]
    assert len(rows) == (25 if guests_for(isa).has_ports else 23)
    assert f"main runs in {level}" in text
    assert f"printed from {level}" in text
    assert rows.pop("a harmless function") == "returned 42"
    assert rows.pop("print through the host") == f"returned {len(f'printed from {level}') + 1}"
    assert rows.pop("Linux system call: getpid").startswith("refused: -38")
    assert rows.pop("system call with number 2^63").startswith("refused: -38")
    assert rows.pop("console write of kernel memory").startswith(("refused", "fault", "ended"))
    assert rows.pop("never end").startswith("killed")
    if isa == "aarch64":
        assert rows.pop("divide by zero") == "returned 0", "AArch64 has no exception for it"
    assert all(text.startswith("fault: ") for text in rows.values()), rows
    assert "the machine still answers: 6 * 7 = 42" in text


@pytest.mark.parametrize("example", ["threads"], indirect=True)
def test_threads(example: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    require_module("numpy")
    assert run_module(example, monkeypatch) == 0
    text = capfd.readouterr().out
    assert "add up to 2000, as they should: True" in text
    assert "the counter behind the mutex is 200, as it should be: True" in text


@pytest.mark.parametrize("example", ["memory_benchmark"], indirect=True)
@pytest.mark.parametrize("privilege", ["user", "supervisor"])
def test_memory_benchmark(
    example: Path, privilege: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    require_compiler("gcc")  # for the host's side
    # Few pages: where supervisor code is interpreted, an access takes microseconds.
    assert run_module(example, monkeypatch, "--privilege", privilege, "--pages", "64", "--rounds", "1") == 0
    text = capfd.readouterr().out
    assert "random_order" in text
    assert "linear" in text
    assert f"{privilege} mode" in text
