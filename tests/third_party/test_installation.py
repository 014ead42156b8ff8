"""Third parties for real: their distributions are built, installed beside Rift, and chosen by configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_handler"
TOY = ROOT / "tests" / "third_party" / "toy_isa"
IGNORED = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".mypy_cache", "guest")

TOY_PROGRAM = """
import sys
from rift_core import open_machine
with open_machine(code=bytes.fromhex("03010d"), isa="toy", backend="fake") as machine:
    print(machine.backend, machine.isa.name, machine.call(0x400000, 40, 2))
"""

MISSING_PAIR = """
from rift_core import PluginError, open_machine
try:
    open_machine(code=b"\\0", isa="toy", backend="kvm")
except PluginError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command where both distributions are installed: in a folder of their own, as wheels of copied sources."""
    base = tmp_path_factory.mktemp("third_party")
    sources = [Path(shutil.copytree(path, base / path.name, ignore=IGNORED)) for path in (EXAMPLE, TOY)]
    site = base / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--no-index", "--no-build-isolation", "--target", str(site), *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr

    def run(*command: str, cwd: Path = base) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
        return subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def test_both_are_listed_with_their_distributions(run: Run) -> None:
    listed = run(sys.executable, "-m", "rift_core.cli", "plugins")
    assert listed.returncode == 0, listed.stderr
    for words in (("dice", "rift-dice"), ("toy", "rift-toy-isa"), ("fake/toy", "rift-toy-isa")):
        assert any(all(word in line for word in words) for line in listed.stdout.splitlines()), words


def test_the_toy_isa_runs_on_the_fake_backend(run: Run) -> None:
    done = run(sys.executable, "-c", TOY_PROGRAM)
    assert done.stdout.split() == ["fake", "toy", "42"], done.stderr


def test_a_pair_that_nobody_joins_is_a_clear_error(run: Run) -> None:
    done = run(sys.executable, "-c", MISSING_PAIR)
    assert "toy" in done.stdout, done.stderr
    assert "kvm" in done.stdout


def test_the_example_handler_is_chosen_by_configuration_only(run: Run, tmp_path: Path) -> None:
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        pytest.skip("no C compiler: install the package gcc or clang")
    example = Path(shutil.copytree(EXAMPLE, tmp_path / "example", ignore=IGNORED))
    rift = [sys.executable, "-m", "rift_core.cli"]
    built = run(*rift, "build", "guest.c", "-o", "guest", cwd=example)
    assert built.returncode == 0, built.stderr
    done = run(*rift, "run", "--backend", "fake", "rift.toml", cwd=example)
    assert done.returncode == 0, done.stderr
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == ["six sides", "twenty sides"]
    rolls = [[int(word) for word in words.split()] for _, _, words in lines]
    assert [len(row) for row in rolls] == [8, 8]
    assert all(1 <= number <= 6 for number in rolls[0])
    assert max(rolls[1]) > 6
    assert done.stdout in (EXAMPLE / "README.md").read_text(), "the README shows what it prints"


def test_the_example_is_as_short_as_promised() -> None:
    assert len((EXAMPLE / "rift_dice.py").read_text().splitlines()) < 40
