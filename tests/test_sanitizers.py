"""A short run of the native pieces under AddressSanitizer; `make sanitize` runs all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from machine_code import CODE, ISA

from rift_core import open_machine
from rift_core.testing.tools import load_module, require_machine, require_tool, skip_here

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "plugins/handlers/tests/test_conformance.py",
    "plugins/kvm/tests/test_kvm_kick.py",
    "plugins/loader_elf/tests/test_native_fuzz.py",
    "plugins/x86_64/tests/test_page_tables.py",
    "tests/test_soak.py",
)


@pytest.mark.slow
def test_machines_calls_kicks_and_files_without_a_finding(tmp_path: Path) -> None:
    tool = load_module(ROOT / "tools" / "sanitize.py")
    if not tool.runtimes(require_tool("gcc")):
        skip_here("gcc comes without libasan and libubsan", "install the package gcc")
    require_machine(lambda: open_machine(code=CODE["halt"], isa=ISA, backend="kvm")).close()
    command = [sys.executable, str(ROOT / "tools" / "sanitize.py"), "--folder", str(tmp_path), "-q", "-x", *TESTS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "passed" in run.stdout


@pytest.mark.slow
def test_a_finding_ends_the_run(tmp_path: Path) -> None:
    """That the extensions are instrumented shows when one of them writes where it must not."""
    tool = load_module(ROOT / "tools" / "sanitize.py")
    gcc = require_tool("gcc")
    preload = tool.runtimes(gcc)
    if not preload:
        skip_here("gcc comes without libasan and libubsan", "install the package gcc")
    source = tmp_path / "wrong.c"
    # A size that is known would let UndefinedBehaviorSanitizer speak first; a store that is dead would vanish.
    source.write_text(
        "#include <stdlib.h>\n"
        "void wrong(void) { volatile size_t n = 8; volatile char *p = malloc(n); p[n] = 1; free((void *)p); }\n"
    )
    library = tmp_path / "wrong.so"
    subprocess.run([gcc, *tool.FLAGS.split(), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    program = f"import ctypes; ctypes.CDLL({str(library)!r}).wrong(); print('went on')"
    environment = tool.environment_of(tmp_path, preload)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
    assert "went on" not in run.stdout
