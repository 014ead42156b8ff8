"""The debuggers to test with, and the payload's source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rift_core.testing.tools import require_tool, session

SOURCE = Path(__file__).with_name("payload.c")


def find_debugger(name: str, origin: str) -> str:
    """Path of a debugger; a skip, or a failure where something is required, without it."""
    own = Path(sys.executable).parent / name
    if origin == "pypi":
        if own.exists():
            return str(own)
        sentence = f"{name}-for-pwndbg is not installed"
        if session().required:
            pytest.fail(f"--rift-require: {sentence}: pip install -r requirements-dev.txt", pytrace=False)
        session().skip(sentence, "pip install -r requirements-dev.txt")
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != own.parent]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return found if found is not None else require_tool(f"{name} of the distribution", package=name)


@cache
def architectures(gdb: str) -> frozenset[str]:
    """What a GDB can debug, by its own names. Debian's plain one knows the instruction set of its host alone."""
    answer = subprocess.run(
        [gdb, "-nx", "-batch", "-ex", "set architecture"], capture_output=True, text=True, timeout=60
    )
    names = (answer.stdout + answer.stderr).partition("Valid arguments are ")[2]
    return frozenset(names.strip().rstrip(".").split(", "))


def gdb_for(isa: str, gdb: str) -> str:
    """This GDB, or the distribution's for all instruction sets if this one does not know the payload's."""
    wanted = {"x86_64": "i386:x86-64"}.get(isa, isa)
    return gdb if wanted in architectures(gdb) else find_debugger("gdb-multiarch", "system")
