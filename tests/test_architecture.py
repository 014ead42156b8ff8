"""Rules of the architecture that reading alone would not keep."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from rift_core import doorbell, hookspecs
from rift_core.exits import ExitKind

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "rift_core" / "src" / "rift_core"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
SOURCES = [path for folder in ("rift_core/src", "plugins") for path in (ROOT / folder).rglob("*.py")]
SHIPPED = [path for path in SOURCES if "/src/" in path.as_posix() and not path.name.startswith("_native")]
HOOKS = [value for name, value in vars(hookspecs).items() if name.startswith("rift_")]


def imports_of(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_a_plugin_depends_on_core_and_on_no_other_plugin(plugin: Path) -> None:
    own = {p.name for p in (plugin / "src").iterdir() if p.is_dir()}
    for path in (plugin / "src").rglob("*.py"):
        foreign = {name for name in imports_of(path) if name.startswith("rift_")} - own - {"rift_core"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_core_imports_no_plugin() -> None:
    plugins = {p.name for plugin in PLUGINS for p in (plugin / "src").iterdir() if p.is_dir()}
    for path in CORE.rglob("*.py"):
        assert not imports_of(path) & plugins, path.relative_to(ROOT)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_the_package_of_a_plugin_loads_no_native_code(plugin: Path) -> None:
    for package in (plugin / "src").glob("rift_*/__init__.py"):
        tree = ast.parse(package.read_text())
        top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top_level:
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not any("_native" in name for name in names), package


@pytest.mark.parametrize("name", sorted(path.name for path in (CORE / "include").glob("*.[ch]")))
def test_the_shared_c_files_exist_once(name: str) -> None:
    copies = list(ROOT.glob(f"plugins/*/src/*/native/{name}"))
    for path in copies:
        assert path.is_symlink(), f"{path.relative_to(ROOT)} must be a symbolic link"
        assert path.resolve() == (CORE / "include" / name).resolve()
    if name != "rift_dispatch.c":
        assert copies


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_shipped_code_asserts_nothing_at_run_time(path: Path) -> None:
    if "testing" in path.parts:
        return
    asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert in lines {asserts}: an error that users meet is raised, not asserted"


def test_c_code_asserts_and_prints_nothing() -> None:
    pattern = re.compile(r"\b(assert|printf|fprintf|abort|exit)\s*\(")
    for path in ROOT.glob("plugins/*/src/*/native/*.c"):
        code = re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"]*\"", "", path.read_text(), flags=re.DOTALL)
        assert not pattern.search(code), path.relative_to(ROOT)


@pytest.mark.parametrize("spec", HOOKS, ids=lambda s: s.__name__)
def test_every_hook_is_documented_with_its_signature(spec: object) -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    heading = f"### `{spec.__name__}{inspect.signature(spec)}`".replace("'", "")  # type: ignore[attr-defined,arg-type]
    assert heading in text, f"docs/hooks.md lacks the heading\n{heading}"


@pytest.mark.parametrize("spec", HOOKS, ids=lambda s: s.__name__)
def test_every_hook_says_who_calls_and_who_implements_it(spec: object) -> None:
    text = spec.__doc__ or ""
    assert "Called by:" in text
    assert "Implemented by:" in text
    options = spec.rift_spec  # type: ignore[attr-defined]
    assert bool(options["firstresult"]) == ("Stops at the first result that is not None." in text)


@pytest.mark.parametrize("spec", HOOKS, ids=lambda s: s.__name__)
def test_every_hook_is_implemented_or_exercised_somewhere(spec: object) -> None:
    name = spec.__name__  # type: ignore[attr-defined]
    places = [*ROOT.glob("plugins/*/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("rift_core/tests/*.py")]
    assert any(f"def {name}(" in path.read_text() for path in places), f"no plugin or test implements {name}"


def test_exit_kinds_are_those_of_the_c_header() -> None:
    text = (CORE / "include" / "rift_abi.h").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"RIFT_EXIT_(\w+) = (\d+)", text)}
    assert numbers.pop("KINDS") == max(ExitKind) + 1
    assert numbers == {kind.name: kind.value for kind in ExitKind}


def test_the_guest_header_has_the_numbers_of_the_doorbell() -> None:
    text = "".join(path.read_text() for path in sorted((CORE / "guest").glob("*.h")))
    address = re.search(r"#define RIFT_DOORBELL\s+(0x[0-9a-fA-F]+)", text)
    assert address is not None
    assert int(address[1], 0) == doorbell.DEFAULT_ADDRESS


@pytest.mark.parametrize("plugin", [ROOT / "rift_core", *PLUGINS], ids=lambda p: p.name)
def test_every_distribution_has_the_same_shape(plugin: Path) -> None:
    project = tomllib.loads((plugin / "pyproject.toml").read_text())
    assert project["project"]["name"].startswith("riftvm-")
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["project"]["license"] == "MIT"
    assert "pytest" not in project.get("tool", {}), "only the top-level pyproject configures pytest"
    assert (plugin / "src").is_dir()
    assert (plugin / "tests").is_dir()
    assert (plugin / "README.md").is_file()
    assert project["project"]["name"] in (ROOT / "pyproject.toml").read_text()


def test_source_files_stay_readable() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in [*SHIPPED, *ROOT.glob("plugins/*/src/*/native/*.[ch]")]
        if not path.is_symlink() and (count := len(path.read_text().splitlines())) > 700
    }
    assert not long, "more than one concept in a room?"
