"""What the bootstrap says on a machine where something is missing: one sentence, with what to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rift_core.testing.tools import require_tool

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "dirname", "find", "touch", "printf", "rm")

PYTHON = """#!{shell}
# Answers what the script asks, as a Python would that {what}.
case "$2" in
    *version_info*) exit {old} ;;
    *ensurepip*) exit {no_venv} ;;
    *'"CC"'*) echo gcc ;;
    *Python.h*) echo {header} ;;
    *) [ "$1" = -m ] && {{ echo "ran: $*" >&2; exit {fails}; }}; echo "Python 3.11.0" ;;
esac
"""


class Machine:
    """A copy of the script in a folder of its own, and the only programs that it can find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "bootstrap.sh", folder / "tools")
        (folder / "requirements.txt").touch()
        for name in TOOLS:
            path = shutil.which(name)
            if path is not None:
                (self.programs / name).symlink_to(path)

    def add(self, name: str, text: str = "#!/bin/sh\n") -> None:
        """A program."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, **properties: object) -> None:
        """A Python with these shortcomings."""
        header = self.folder / "Python.h"
        header.touch()
        values = {"old": 0, "no_venv": 0, "header": header, "fails": 0, "what": "has all but that", **properties}
        self.add("python3", PYTHON.format(shell=shutil.which("sh"), **values))

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        variables = {"PATH": str(self.programs), "HOME": os.environ.get("HOME", "/"), **environment}
        return subprocess.run(
            [str(shutil.which("sh")), "tools/bootstrap.sh", "demo"],
            cwd=self.folder, env=variables, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def complaint(self, **environment: str) -> str:
        """The one sentence that it ends with."""
        done = self.run(**environment)
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("rift: ")
        return lines[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    require_tool("sh")
    return Machine(tmp_path)


def test_no_python(machine: Machine) -> None:
    machine.add("gcc")
    assert "no Python 3.11 or newer found: install it (Debian, Ubuntu: apt install python3)" in machine.complaint()


def test_an_old_python(machine: Machine) -> None:
    machine.add("gcc")
    machine.add_python(old=1)
    assert "no Python 3.11 or newer found" in machine.complaint()


def test_no_venv_module(machine: Machine) -> None:
    machine.add("gcc")
    machine.add_python(no_venv=1)
    assert "python3 lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv)" in machine.complaint()


def test_no_compiler(machine: Machine) -> None:
    machine.add_python()
    assert "no C compiler found: install one (Debian, Ubuntu: apt install gcc;" in machine.complaint()


def test_a_compiler_that_is_not_there(machine: Machine) -> None:
    machine.add_python()
    machine.add("gcc")
    assert "the C compiler CC=no-such-cc is not there" in machine.complaint(CC="no-such-cc")


def test_no_headers(machine: Machine) -> None:
    machine.add("gcc")
    machine.add_python(header="/no/such/Python.h")
    complaint = machine.complaint()
    assert "the headers of python3 are missing (/no/such/Python.h)" in complaint
    assert "apt install python3-dev" in complaint


def test_another_compiler_serves(machine: Machine) -> None:
    machine.add("clang")
    machine.add_python(fails=3)
    done = machine.run()
    assert "no C compiler" not in done.stderr
    assert "ran: -m venv .venv" in done.stderr, "it went on"


def test_venv_that_fails(machine: Machine) -> None:
    machine.add("gcc")
    machine.add_python(fails=3)
    done = machine.run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "rift: cannot create .venv: on Debian and Ubuntu, apt install python3-venv"


@pytest.mark.parametrize(("system", "fails"), [("Darwin", 0), ("Darwin", 1), ("Linux", 0), ("", 0)])
def test_a_mac_gets_a_signed_python(machine: Machine, system: str, fails: int) -> None:
    """Every time, since it may have failed before; and nothing but the backend depends on it."""
    machine.add("gcc")
    machine.add_python()
    if system:
        machine.add("uname", f"#!{shutil.which('sh')}\necho {system}\n")
    programs = machine.folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(machine.programs / "python3")
    (programs / "rift").write_text(f"#!{shutil.which('sh')}\necho ran: $*\nexit {fails}\n")
    (programs / "rift").chmod(0o755)
    for _ in range(2):  # with the installation, and without
        done = machine.run()
        assert done.returncode == 0, done.stderr
        assert ("ran: macos-sign --if-needed" in done.stdout) == (system == "Darwin")
        assert (machine.folder / ".venv" / "rift-demo.stamp").exists()
