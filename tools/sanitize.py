"""Runs tests with every native piece compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/sanitize.py [--folder SCRATCH] [pytest arguments: TESTS, -k, ...]

The plugins are built into a scratch folder (``build/sanitize`` unless given), which stands before the installed ones
on the path; the sources and the installed extensions stay as they are. The first finding ends the run. Leaks are not
looked for: Python's own would hide the others, and the suites count descriptors, threads and maps themselves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
RUNTIMES = ("libasan.so", "libubsan.so")
DEFAULT_TESTS = (
    "plugins/handlers/tests",
    "plugins/kvm/tests",
    "plugins/loader_elf/tests",
    "plugins/x86_64/tests",
    "tests/test_calls.py",
    "tests/test_hostile_tables.py",
    "tests/test_lifetimes.py",
    "tests/test_machine_memory.py",
    "tests/test_sandbox.py",
    "tests/test_threads.py",
)
LEFT_OUT = "not install and not discovery and not light"
"""Tests that look at what a fresh interpreter or environment loads."""


def runtimes(compiler: str) -> list[str]:
    """Paths of the sanitizers' run-time libraries; empty where the compiler has none."""
    paths = []
    for name in RUNTIMES:
        answer = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = answer.stdout.strip()
        if not os.path.isabs(path):
            return []
        paths.append(path)
    return paths


def build(folder: Path, compiler: str) -> Path:
    """Build all plugins; returns the folder for the path."""
    library = folder / "lib"
    shutil.rmtree(library, ignore_errors=True)
    environment = os.environ | {"CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": FLAGS, "LDFLAGS": FLAGS}
    for setup in sorted(ROOT.glob("plugins/*/setup.py")):
        command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(library)]
        command += ["--build-temp", str(folder / "objects" / setup.parent.name)]
        # The source of the extension is generated beside it: keep the one of the installed build as it is.
        before = {path: path.stat() for path in setup.parent.glob("src/*/_native.c")}
        subprocess.run(command, cwd=setup.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
        for path, status in before.items():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # The disassembler asks for RTLD_DEEPBIND, which AddressSanitizer refuses: reports show bytes instead.
    (library / "capstone.py").write_text('raise ImportError("not with sanitizers")\n')
    return library


def environment_of(library: Path, preload: list[str]) -> dict[str, str]:
    """What a process needs to run with the instrumented extensions."""
    path = os.pathsep.join([str(library), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {
        "PYTHONPATH": path,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def main() -> int:
    """Build, run, return pytest's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitize", help="where to build")
    options, arguments = parser.parse_known_args()
    compiler = shutil.which("gcc")
    preload = runtimes(compiler) if compiler else []
    if not compiler or not preload:
        print("sanitize: gcc with libasan and libubsan is missing: install the package gcc", file=sys.stderr)
        return 2
    library = build(options.folder, compiler)
    chosen = any((ROOT / a.partition("::")[0]).exists() for a in arguments if not a.startswith("-"))
    tests = [] if chosen else list(DEFAULT_TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment_of(library, preload), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
