"""What the pages say is so: their programs run and print what they show, and nothing is left out."""

from __future__ import annotations

import ast
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

import rift_core
from rift_core.capabilities import CAPABILITIES, unknown
from rift_core.catalog import Catalog
from rift_core.machine import Machine, MachineSymbol, open_machine
from rift_core.sharing import Share
from rift_core.testing.tools import load_module, require_compiler, require_machine, require_module, skip_here
from rift_core.thread import Thread

ROOT = Path(__file__).resolve().parent.parent


pages = load_module(ROOT / "tests" / "pages.py")
reference = load_module(ROOT / "tools" / "reference.py")

README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKDOWN = [
    path
    for pattern in ("*.md", "docs/**/*.md", "rift_core/*.md", "plugins/*/*.md", "examples/*/*.md", "changes/*.md")
    for path in sorted(ROOT.glob(pattern))
]
PROGRAMS = ["README.md", "docs/getting-started.md", "docs/guest-runtime.md", "docs/python-api.md"]
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/README.md"))


def check_sessions(text: str, folder: Path, *, numbers: bool = False) -> int:
    """Run all sessions of a page; how many commands that were."""
    ran = 0
    for session in pages.sessions(text):
        columns = max((len(line) for command in session for line in command.output.splitlines()), default=0)
        for command, printed in pages.run(session, folder, max(columns, 80)):
            assert pages.matches(command.output, printed, numbers=numbers), (
                f"$ {command.line}\n--- the page says\n{command.output}\n--- it prints\n{printed}"
            )
            ran += 1
    return ran


@pytest.fixture
def a_machine() -> None:
    """A compiler and a backend, or a skip."""
    require_compiler()
    require_machine(lambda: open_machine(code=b"\xf4", isa="x86_64")).close()


@pytest.mark.usefixtures("a_machine")
@pytest.mark.parametrize("page", PROGRAMS)
def test_programs_of_a_page(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert pages.write_files(text, tmp_path), "the page shows no file"
    assert check_sessions(text, tmp_path) > 0, "the page runs nothing"


@pytest.mark.usefixtures("a_machine")
@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "third_party_handler"])
def test_sessions_of_an_example(example: str, tmp_path: Path) -> None:
    if example == "threads":
        require_module("numpy")
    folder = Path(shutil.copytree(ROOT / "examples" / example, tmp_path / example))
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert check_sessions(text, folder, numbers=True) > 0


@pytest.mark.usefixtures("a_machine")
def test_the_demo_prints_what_the_readme_says(tmp_path: Path) -> None:
    (session,) = [one for one in pages.sessions(README) if one[0].line == "make demo"]
    lines = session[0].output.splitlines(keepends=True)
    assert lines[0].startswith("Creating .venv")
    assert lines[1].startswith("Installing Rift")
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^demo:\n\t@tools/bootstrap\.sh demo\n\t@\.venv/bin/(rift run \S+)", makefile, re.MULTILINE)
    assert target is not None, "the demo does something else now"
    example = Path(shutil.copytree(ROOT / "examples", tmp_path / "examples"))
    line = target[1].replace("examples/", f"{example}/")
    ((_, printed),) = pages.run([pages.Command(line, "")], tmp_path)
    assert pages.matches("".join(lines[2:]), printed), printed


def test_the_check_runs_the_command_of_the_readme() -> None:
    assert any(session[0].line == "make test" for session in pages.sessions(README))
    assert re.search(r"^test: .*\n\t\.venv/bin/python -m pytest", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file = target.partition("#")[0]
            assert (path.parent / file).exists(), f"{path.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_on_a_page_is_valid(path: Path) -> None:
    for body in pages.blocks(path.read_text(encoding="utf-8"), "python"):
        compile(body, str(path), "exec")


@pytest.mark.parametrize("page", reference.PAGES)
def test_parts_that_are_made_from_the_code(page: str) -> None:
    if any(entry.distribution not in WORKSPACE for entry in Catalog.installed()):
        skip_here("plugins from elsewhere are installed, which the pages do not describe")
    made, stands = reference.page_of(ROOT / page), (ROOT / page).read_text(encoding="utf-8")
    assert made == stands, f"{page} is out of date: run  make reference"


WORKSPACE = {
    re.search(r'^name = "([\w-]+)"', path.read_text(), re.MULTILINE)[1]  # type: ignore[index]
    for path in [ROOT / "rift_core" / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
}


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    missing = [name for name in rift_core.__all__ if not re.search(rf"\b{name}\b", text)]
    for kind in (Machine, Thread, Share, MachineSymbol):
        members = {name for name in dir(kind) if not name.startswith("_")} - {"mro"}
        missing += [f"{kind.__name__}.{name}" for name in members if not re.search(rf"\b{name}\b", text)]
    assert not set(missing) - INTERNAL, f"docs/python-api.md does not mention {sorted(set(missing) - INTERNAL)}"


INTERNAL = {
    "Thread.enter_again",
    "Thread.read_registers",
    "Thread.write_registers",
    "Share.guest_address",
    "Share.size",
}
"""Public to core's own modules, or told by the docstring."""


def test_every_module_of_core_is_on_its_page() -> None:
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "rift_core" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`([\w*/]+)`", row)]
    folder = ROOT / "rift_core" / "src" / "rift_core"
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
    assert not {name for name in modules if not any(fnmatch(name, pattern) for pattern in named)}
    assert not {name for name in named if not (list(folder.glob(f"{name}.py")) or (folder / name).is_dir())}


def test_every_function_of_the_guest_is_on_its_page() -> None:
    text = (ROOT / "docs" / "guest-runtime.md").read_text(encoding="utf-8")
    text = re.sub(r"`(rift_atomic)_load`, ((?:`_\w+`,? ?(?:and )?)+)", _spell_out, text)
    guest = ROOT / "rift_core" / "src" / "rift_core" / "guest"
    header = "".join((guest / name).read_text() for name in ("rift_guest.h", "rift_format.h"))
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    names = set(re.findall(r"\b(rift_[a-z_]+)\(", header)) - {"rift_sink_fn", "rift_exception_fn"}
    missing = sorted(name for name in names if name not in text)
    assert len(names) > 30
    assert not missing, f"docs/guest-runtime.md does not mention {missing}"


def _spell_out(match: re.Match[str]) -> str:
    return " ".join([f"{match[1]}_load", *(match[1] + suffix for suffix in re.findall(r"_\w+", match[2]))])


def declared_capabilities() -> dict[str, str]:
    """Names in constants called ``...CAPABILITIES`` of any plugin, and where: sets, experiments, sets by ISA."""
    found = {}
    for path in [*ROOT.glob("plugins/*/src/**/*.py"), *ROOT.glob("rift_core/src/rift_core/testing/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            named = any(isinstance(t, ast.Name) and t.id.endswith("CAPABILITIES") for t in targets)
            if named and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for name in _names(node.value):
                    found[name] = path.relative_to(ROOT).as_posix()
    return found


def _names(value: ast.expr) -> list[str]:
    if isinstance(value, ast.Dict):
        keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
        if not ISAS & set(keys):
            return [key for key in keys if isinstance(key, str)]
        return [name for inner in value.values for name in _names(inner)]
    return [part.value for part in ast.walk(value) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


ISAS = {"x86_64", "aarch64"}


def test_every_capability_is_documented() -> None:
    declared = declared_capabilities()
    assert {"readonly_memory", "debug_watchpoint"} <= declared.keys()
    missing = {name: declared[name] for name in unknown(frozenset(declared))}
    assert not missing, "add these to rift_core.capabilities, and run  make reference"
    for entry in Catalog.installed().of_kind("backend"):
        if entry.info.probe is not None:
            assert not unknown(entry.info.probe(entry.info.config()).capabilities), entry.info.name
    text = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in CAPABILITIES)


def test_fragments_have_their_names() -> None:
    for path in (ROOT / "changes").glob("*"):
        if path.name != "README.md":
            assert re.fullmatch(r"[\w-]+\.(feature|fix|docs|removal)\.md", path.name), path.name


def test_decisions_are_numbered_once() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
