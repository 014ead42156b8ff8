"""Each example gives the same result from ELF and from Mach-O, whatever backend runs it.

The table is made of what is installed: a backend, an ISA or a loader that is added joins by itself. Both formats are
compiled by clang, and compared with what the first combination of their ISA has given.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from places import places, require_place

from rift_core import Machine, build_macho, load_config, open_machine
from rift_core.build_target import BuildError, Target, isa_sources
from rift_core.catalog import Catalog
from rift_core.testing.tools import load_module, require_tool, session

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STAND_IN = ROOT / "plugins" / "hvf" / "tests" / "stand_in_build.py"
FORMATS = ("elf", "macho")

RESULTS: dict[tuple[str, str], tuple[str, Any]] = {}
"""By example and ISA: the first combination, and what it gave."""


@pytest.fixture(scope="session")
def frameworks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """Stand-ins for Hypervisor.framework, as the tests of the HVF backend build them; None where there is none."""
    folder = tmp_path_factory.mktemp("stand_in")

    def framework(isa: str) -> Path | None:
        build = load_module(STAND_IN, "rift_stand_in_build")
        sources = getattr(build, {"x86_64": "X86_64", "aarch64": "ARM64"}[isa], None)
        if sources is None:
            return None
        flags: tuple[str, ...] = ()
        if isa == "aarch64":
            unicorn = importlib.util.find_spec("unicorn")
            if unicorn is None or unicorn.origin is None:
                return None
            flags = build.unicorn_flags(Path(unicorn.origin).parent)
        path: Path = build.build(folder, isa, sources, flags)
        return path

    return framework


@pytest.fixture(params=places(), ids="/".join)
def place(
    request: pytest.FixtureRequest, frameworks: Callable[[str], Path | None], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """A backend and an ISA that work here, and that the environment asks machines for."""
    backend, isa = request.param
    require_tool("clang")
    if backend == "hvf" and sys.platform != "darwin":
        path = frameworks(isa)
        if path is None:
            session().skip(f"there is no stand-in for Hypervisor.framework of {isa}")
        monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(path))
    require_place(backend, isa)
    try:
        build_macho.find_compiler(Target.read(isa, isa_sources(isa)), "clang")
    except BuildError as error:
        session().skip(str(error))
    monkeypatch.setenv("RIFT_BACKEND__NAME", backend)
    monkeypatch.setenv("RIFT_ISA__NAME", isa)
    monkeypatch.setenv("RIFT_CC", "clang")
    return backend, isa


def run_main(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """What ``python run.py`` does."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    status: int = load_module(folder / "run.py", f"example_{folder.name}").main()
    return status


def plain(text: str) -> list[str]:
    """Lines without addresses, which differ from format to format."""
    return [re.sub(r"0x[0-9a-f]+", "0x-", line).strip() for line in text.splitlines()]


def hello(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    console = io.StringIO()
    with open_machine(load_config(folder / "rift.toml"), console=console) as machine:
        status = machine.thread("main").start().join(timeout=30).status
        sums = [machine.call("add", a, b) for a, b in ((20, 22), (-5, 3))]
        reach = machine.translate(machine.symbol("main").address)
    return status, sums, str(reach.permissions), plain(console.getvalue())


def page_fault(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    status = run_main(folder, monkeypatch)
    lines = plain(output())
    report = lines.index("a fault that the guest does not handle:") + 1
    seen = [line for line in lines[:report] if not line.startswith("before:")]  # which table lacks it may differ
    return status, seen, lines[report].partition(" at ")[0], any("stray" in line for line in lines[report:])


def sandbox(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    monkeypatch.setenv("COLUMNS", "200")
    call = Machine.call

    def patient(machine: Machine, function: str, *arguments: int, **more: Any) -> Any:
        """A busy machine may need more than the example's second for what ends by itself."""
        return call(machine, function, *arguments, **(more if function == "spin" else {**more, "timeout": 60}))

    monkeypatch.setattr(Machine, "call", patient)
    status = run_main(folder, monkeypatch)
    cells = [line.split("│") for line in plain(output())]
    # Without the details of a fault: some hypervisors report a hole in the upper half now one way, now another.
    return status, {row[1].strip(): row[2].partition(", ")[0].strip() for row in cells if len(row) == 4}


def threads(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    status = run_main(folder, monkeypatch)
    return status, [line for line in output().splitlines() if "threads ended" in line or "as it should" in line]


def memory_benchmark(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    require_tool("gcc")  # for the host's side
    status = run_main(folder, monkeypatch, "--pages", "64", "--rounds", "1")
    patterns = re.findall(r"linear|random_order", output())
    configuration = {
        "binary": {"path": str(folder / "guest.c"), "runtime": False},
        "threads": [{"name": "main", "entry": "guest_linear", "privilege": "user"}],
    }
    with open_machine(configuration) as machine:
        counts = [machine.call(f"guest_{name}", 16, 3, restype=ctypes.c_uint64) for name in ("linear", "random_order")]
        touched = bytes(machine.symbol("array").view()[: 17 * 4096 : 4096])
        size = len(machine.symbol("array").view())
    return status, patterns, counts, touched, size


def third_party_handler(folder: Path, monkeypatch: pytest.MonkeyPatch, output: Callable[[], str]) -> Any:
    modules = {entry.module for entry in Catalog.installed() if entry.module is not None}
    catalog = Catalog.of([*modules, load_module(folder / "rift_dice.py", "rift_dice")])
    console = io.StringIO()
    config = load_config(folder / "rift.toml", catalog=catalog)
    with open_machine(config, catalog=catalog, console=console) as machine:
        return machine.thread("main").start().join(timeout=30).status, console.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "example", [hello, page_fault, sandbox, threads, memory_benchmark, third_party_handler], ids=lambda f: f.__name__
)
def test_the_same_result(
    example: Callable[..., Any],
    format: str,
    place: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    backend, isa = place
    folder = Path(shutil.copytree(EXAMPLES / example.__name__, tmp_path / example.__name__))
    monkeypatch.setenv("RIFT_BINARY__FORMAT", format)
    result = example(folder, monkeypatch, lambda: capfd.readouterr().out)
    first, expected = RESULTS.setdefault((example.__name__, isa), (f"{backend}/{isa}, {format}", result))
    assert result == expected, f"{backend}/{isa}, {format}: not what {first} gave"
