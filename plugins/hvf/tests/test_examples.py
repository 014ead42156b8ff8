"""The examples of both ISAs run over the stand-ins, and print what they print on every other backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import StandIn

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "tests" / "test_examples.py"


def run_examples(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIFT_BACKENDS", "hvf")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rift-require=hvf", str(EXAMPLES)]
    done = subprocess.run([*command, "-k", isa], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.slow
def test_examples_in_ring_0(x86_64: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    run_examples("x86_64", monkeypatch)


@pytest.mark.slow
def test_examples_in_el1(aarch64: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    run_examples("aarch64", monkeypatch)


@pytest.mark.slow
def test_examples_over_another_framework(other_x86_64: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(other_x86_64))
    run_examples("x86_64 and (hello-gcc or page_fault or threads)", monkeypatch)
