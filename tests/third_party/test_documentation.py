"""docs/writing-a-plugin.md: its files are written, built, and tested as it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rift_core.testing.tools import require_compiler

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
FLAT_SUITE = """
import struct, pytest, rift_flat
from rift_core.testing.loader import GoodFile, LoaderConformance

class TestFlat(LoaderConformance):
    @pytest.fixture
    def plugin(self):
        return rift_flat

    @pytest.fixture
    def good_file(self):
        data = struct.pack("<4sQ", b"FLAT", 0x400000) + bytes(range(200))
        return GoodFile(data=data, isa="x86_64", entry=0x400000, memory={0x400000: bytes(range(200))})
"""
TICKET_SUITE = """
import pytest, rift_ticket
from rift_core.exits import Exit, ExitKind
from rift_core.testing.exit_handler import ExitHandlerConformance

class TestTicket(ExitHandlerConformance):
    @pytest.fixture
    def plugin(self):
        return rift_ticket

    @pytest.fixture
    def samples(self, machine):
        return [Exit(ExitKind.MMIO, machine.doorbell + 0x100, 8)] * 3

    @pytest.fixture
    def foreign(self, machine):
        return [Exit(ExitKind.MMIO, machine.doorbell + 0x100, 8, 7, True)]
"""
NAME = re.compile(r"(?:#|/\*) ([\w/]+\.\w+)(?: \*/)?\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that the page shows."""
    folder = tmp_path_factory.mktemp("page")
    for block in re.findall(r"^```(?:python|c|toml)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        name = NAME.match(block)
        if name is not None:
            path = folder / name[1]
            path.parent.mkdir(exist_ok=True)
            assert not path.exists(), f"{name[1]} is shown twice"
            path.write_text(block)
    (folder / "test_flat.py").write_text(FLAT_SUITE)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    toy = ROOT / "tests" / "third_party" / "toy_isa" / "src"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{toy}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_every_block_of_code_is_valid() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8, "a block that this test does not know"
    for block in blocks:
        compile(block, "docs/writing-a-plugin.md", "exec")


def test_the_project_file_names_what_the_page_shows(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    (module,) = project["project"]["entry-points"]["rift.plugins"].values()
    assert (folder / f"{module}.py").is_file()


@pytest.mark.parametrize("name", ["test_lamp.py", "test_flat.py"])
def test_the_suites_pass(folder: Path, name: str) -> None:
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", name)
    assert done.returncode == 0, done.stdout


def test_the_native_half_builds_and_passes_its_suite(folder: Path) -> None:
    require_compiler()
    scratch = Path(shutil.copytree(folder, folder.parent / "native"))
    (scratch / "pyproject.toml").unlink()  # of the other example
    (scratch / "test_ticket.py").write_text(TICKET_SUITE)
    built = run(scratch, "setup.py", "-q", "build_ext", "--inplace")
    assert built.returncode == 0, built.stderr
    done = run(scratch, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_ticket.py")
    assert done.returncode == 0, done.stdout


def test_the_extension_counts(folder: Path) -> None:
    program = (
        "import rift_toy_isa, rift_lamp, rift_trace\n"
        "from rift_core import open_machine\n"
        "from rift_core.catalog import Catalog\n"
        "from rift_core.testing import fakes\n"
        "catalog = Catalog.of([rift_toy_isa, fakes, rift_lamp, rift_trace])\n"
        "with open_machine(code=bytes([0]), isa='toy', backend='fake', catalog=catalog,\n"
        "                  exit_handlers=[{'name': 'lamp'}], extensions=[{'name': 'trace'}]) as machine:\n"
        "    print(machine.thread('main').start().join(20))\n"
    )
    done = run(folder, "-c", program)
    assert done.returncode == 0, done.stderr
    assert "exits so far: {'HALT': 1}" in done.stdout


def test_the_backend_is_declared_and_says_why_it_does_not_work(folder: Path) -> None:
    program = (
        "import rift_mybackend, rift_toy_isa\n"
        "from rift_core import PluginUnavailableError, open_machine\n"
        "from rift_core.catalog import Catalog\n"
        "try:\n"
        "    catalog = Catalog.of([rift_mybackend, rift_toy_isa])\n"
        "    open_machine(code=b'0', isa='toy', backend='mybackend', catalog=catalog)\n"
        "except PluginUnavailableError as error:\n"
        "    print(error)\n"
    )
    done = run(folder, "-c", program)
    assert "the hypervisor does not answer (start it)" in done.stdout, done.stderr
