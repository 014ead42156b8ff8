"""Rift as its users install it, and third parties beside it: built, installed, and chosen by configuration.

One fresh virtual environment for all of it, on copies of the sources, from a folder that is none of the repository's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rift_core.testing.tools import require_compiler

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_handler"
TOY = ROOT / "tests" / "third_party" / "toy_isa"
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "*.so", "*.o", "_native.c"
)
NATIVE = [path.parent for path in sorted(ROOT.glob("plugins/*/setup.py"))]
PARTS = [
    path.parent for path in [ROOT / "rift_core" / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
]

TOY_PROGRAM = """
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

WHERE = """
import pathlib, rift_core, rift_kvm
for folder in (rift_core.get_include(), rift_kvm.get_include()):
    for header in sorted(pathlib.Path(folder).glob("rift_abi.h")):
        print(header, header.is_symlink())
"""


def pip(python: Path | str, *arguments: str, cwd: Path) -> None:
    """Install or build; the test fails with what pip said."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository as a clone would be: nothing is built in it yet."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("sources") / "rift", ignore=IGNORED, symlinks=True))


@pytest.fixture(scope="module")
def environment(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment, with Rift installed by one command from elsewhere."""
    require_compiler()
    base = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(base / "env")], check=True)
    pip(base / "env" / "bin" / "python", "install", "--quiet", str(sources), cwd=base)
    return base / "env"


@pytest.fixture(scope="module")
def run(environment: Path, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command there; both third parties are installed too."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    third_parties = [str(sources / path.relative_to(ROOT)) for path in (EXAMPLE, TOY)]
    pip(environment / "bin" / "python", "install", "--quiet", *third_parties, cwd=elsewhere)

    def run(command: str, *arguments: str, cwd: Path = elsewhere) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        program = str(environment / "bin" / command)
        return subprocess.run(
            [program, *arguments], env=variables, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
        )

    return run


# -- what is built -------------------------------------------------------------------------------------


def build(what: str, part: Path, sources: Path, into: Path) -> Path:
    """Build an sdist or wheel of a part, with the tools of this environment; the file."""
    into.mkdir(exist_ok=True)
    program = f"from setuptools import build_meta; print(build_meta.build_{what}({str(into)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=sources / part.relative_to(ROOT),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return into / done.stdout.splitlines()[-1]


@pytest.mark.parametrize("part", PARTS, ids=lambda path: path.name)
def test_a_source_distribution_is_complete(part: Path, sources: Path, tmp_path: Path) -> None:
    require_compiler()
    with tarfile.open(build("sdist", part, sources, tmp_path / "sdist")) as archive:
        (top,) = {name.partition("/")[0] for name in archive.getnames()}
        assert not [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    made = tmp_path / top
    assert (made / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    for header in (part / "src").glob("*/native/*.h"):
        assert (made / header.relative_to(part)).read_bytes() == header.read_bytes()
    assert list((made / "src").glob("*/py.typed"))
    assert not list(made.rglob("*.so"))


@pytest.mark.parametrize("part", NATIVE, ids=lambda path: path.name)
def test_a_native_wheel_serves_all_later_pythons(part: Path, sources: Path, tmp_path: Path) -> None:
    require_compiler()
    wheel = build("wheel", part, sources, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if name.endswith(".so")]
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    if native:
        assert "-cp311-abi3-" in wheel.name
        assert all(name.endswith(".abi3.so") for name in native)
    else:
        assert wheel.name.endswith("-py3-none-any.whl"), "no native half on this platform"


# -- what is installed ---------------------------------------------------------------------------------


def test_everything_is_there(run: Run) -> None:
    listed = run("rift", "plugins")
    assert listed.returncode == 0, listed.stderr
    assert "failed to load" not in listed.stdout
    for path in PARTS:
        name = f"riftvm-{path.name.removeprefix('rift_').replace('_', '-')}"
        assert name in listed.stdout, f"{name} is not installed by pip install"


def test_headers_for_third_parties_are_files(run: Run) -> None:
    done = run("python", "-c", WHERE)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.endswith("False") for line in lines), "a link would lead into the sources"


def test_a_guest_is_built_and_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text('#include <rift_guest.h>\nint main(void) { rift_puts("here\\n"); return 3; }\n')
    done = run("rift", "run", "--backend", "fake", "guest.c", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "here\n"), done.stderr


def test_core_and_one_plugin_are_enough(environment: Path, sources: Path, tmp_path: Path) -> None:
    """In an environment that sees only what these two need: Rift itself is not among it."""
    target = tmp_path / "site"
    parts = [str(sources / "rift_core"), str(sources / "plugins" / "x86_64")]
    pip(environment / "bin" / "python", "install", "--quiet", "--target", str(target), *parts, cwd=tmp_path)
    program = "import sys; sys.path.insert(0, sys.argv[1]); from rift_core.cli import main; main(['plugins', '--json'])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(target)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"x86_64"' in done.stdout
    assert "riftvm-kvm" not in done.stdout


# -- third parties -------------------------------------------------------------------------------------


def test_both_are_listed_with_their_distributions(run: Run) -> None:
    listed = run("rift", "plugins")
    assert listed.returncode == 0, listed.stderr
    for words in (("dice", "rift-dice"), ("toy", "rift-toy-isa"), ("fake/toy", "rift-toy-isa")):
        assert any(all(word in line for word in words) for line in listed.stdout.splitlines()), words


def test_the_toy_isa_runs_on_the_fake_backend(run: Run) -> None:
    done = run("python", "-c", TOY_PROGRAM)
    assert done.stdout.split() == ["fake", "toy", "42"], done.stderr


def test_a_pair_that_nobody_joins_is_a_clear_error(run: Run) -> None:
    done = run("python", "-c", MISSING_PAIR)
    assert "toy" in done.stdout, done.stderr
    assert "kvm" in done.stdout


def test_the_example_handler_is_chosen_by_configuration_only(run: Run, tmp_path: Path) -> None:
    example = Path(shutil.copytree(EXAMPLE, tmp_path / "example", ignore=IGNORED))
    done = run("rift", "run", "--backend", "fake", "rift.toml", cwd=example)
    assert done.returncode == 0, done.stderr
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == ["six sides", "twenty sides"]
    rolls = [[int(word) for word in words.split()] for _, _, words in lines]
    assert [len(row) for row in rolls] == [8, 8]
    assert all(1 <= number <= 6 for number in rolls[0])
    assert max(rolls[1]) > 6
    assert done.stdout in (EXAMPLE / "README.md").read_text(), "the README shows what it prints"


def test_a_wrong_key_of_the_example_names_its_line(run: Run, tmp_path: Path) -> None:
    example = Path(shutil.copytree(EXAMPLE, tmp_path / "example", ignore=IGNORED))
    (example / "rift.toml").write_text((example / "rift.toml").read_text().replace("sides = 6", "side = 6"))
    done = run("rift", "check", "rift.toml", cwd=example)
    assert done.returncode == 2
    assert "did you mean 'sides'?" in done.stderr
    assert "rift.toml:" in done.stderr


def test_the_example_is_as_short_as_promised() -> None:
    assert len((EXAMPLE / "rift_dice.py").read_text().splitlines()) < 40
