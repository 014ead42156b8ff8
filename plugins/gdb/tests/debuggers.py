"""The debuggers to test with, and the payload's source."""

from __future__ import annotations

import os
import shutil
import sys
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
