"""What a test needs of its machine: backends, capabilities, tools. A skip is never silent.

Without ``--rift-require`` a test that lacks something is skipped and the terminal summary says what was
missing and what to install. With it the same is a failure, except for capabilities that the list of
expected gaps of this kind of machine names: see :mod:`rift_core.testing.pytest_plugin`.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from rift_core.errors import PluginUnavailableError
from rift_core.exits import ExitKind
from rift_core.plugin import ENTRY_POINTS, PluginInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from rift_core.backend import ProbeResult
    from rift_core.compilers import Compiler

M = TypeVar("M")

Need = str | ExitKind
"""A capability by name, or an exit kind that the backend must be able to cause."""


def need_name(need: Need) -> str:
    """How a need is written in lists and messages."""
    return need.name if isinstance(need, ExitKind) else need


@dataclass(slots=True)
class GapList:
    """``<machine>.toml``: what is known to be missing there. ``used`` are the entries that a test asked for."""

    machine: str
    reasons: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path | None, machine: str) -> GapList:
        """The list of ``machine``; empty where there is no file.

        :raises pytest.UsageError: the file is not a table ``[gaps]`` of strings.
        """
        path = folder / f"{machine}.toml" if folder is not None else None
        if path is None or not path.exists():
            return cls(machine)
        try:
            gaps = tomllib.loads(path.read_text(encoding="utf-8")).get("gaps", {})
        except tomllib.TOMLDecodeError as error:
            raise pytest.UsageError(f"{path}: {error}") from error
        if not isinstance(gaps, dict) or not all(isinstance(v, str) and v.strip() for v in gaps.values()):
            raise pytest.UsageError(f'{path}: [gaps] takes lines like  "capability-or-test" = "reason"')
        return cls(machine, dict(gaps))


@dataclass(slots=True)
class TestSession:
    """What one pytest run requires, and what it had to skip. ``__test__`` keeps pytest from collecting it."""

    __test__ = False

    required: tuple[str, ...] = ()
    gaps_folder: Path | None = None
    lists: dict[str, GapList] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)  # sentence -> tests
    remedies: dict[str, str] = field(default_factory=dict)  # sentence -> what to do
    accounted: set[str] = field(default_factory=set)  # reasons of skips that were decided here

    def gaps(self, machine: str) -> GapList:
        """The expected gaps of a kind of machine, read once."""
        if machine not in self.lists:
            self.lists[machine] = GapList.read(self.gaps_folder, machine)
        return self.lists[machine]

    def skip(self, sentence: str, remedy: str = "") -> NoReturn:
        """Skip the test and have the summary say so."""
        self.missing[sentence] += 1
        if remedy:
            self.remedies[sentence] = remedy
        reason = f"{sentence}; {remedy}" if remedy else sentence
        self.accounted.add(reason)
        pytest.skip(reason)

    def unlisted(self) -> Iterator[str]:
        """Entries of the lists in use that no test needed."""
        for machine, gaps in sorted(self.lists.items()):
            for key in sorted(gaps.reasons.keys() - gaps.used):
                yield f"{machine}.toml lists {key!r}, but no test asked for it: remove the entry"


class _Current:
    """The session of this process: pytest's plugin sets it."""

    session = TestSession()


def session() -> TestSession:
    """The running session."""
    return _Current.session


def set_session(new: TestSession) -> TestSession:
    """Make ``new`` the running session; returns the one before."""
    old, _Current.session = _Current.session, new
    return old


def plugin_module(kind: str, name: str) -> object | None:
    """The installed plugin module that declares ``(kind, name)``, or None. Broken plugins are passed over."""
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: e.name != name.partition("/")[0]):
        try:
            module = entry.load()
            found = plugin_info(module, kind, name)
        except Exception:  # one broken plugin must not hide the others
            continue
        if found is not None:
            loaded: object = module
            return loaded
    return None


def plugin_info(module: object, kind: str, name: str | None = None) -> PluginInfo | None:
    """What a module declares of a kind, and of a name where one is given."""
    declared = module.rift_plugin()  # type: ignore[attr-defined]
    infos = (declared,) if isinstance(declared, PluginInfo) else declared
    return next((i for i in infos if i.kind == kind and name in (None, i.name)), None)


def probe_backend(plugin: object) -> tuple[str, ProbeResult]:
    """Name and probe of a backend module.

    :raises TypeError: the module declares no backend with a probe.
    """
    info = plugin_info(plugin, "backend")
    if info is None or info.probe is None:
        raise TypeError(f"{plugin!r} declares no backend with a probe")
    return info.name, info.probe(info.config())


def require_backend(plugin: object | str) -> ProbeResult:
    """The probe of a backend that works here; the test is skipped, or fails, where it does not.

    :param plugin: its name, or its module.
    """
    if isinstance(plugin, str):
        module = plugin_module("backend", plugin)
        if module is None:
            sentence, remedy = f"backend {plugin} is not installed", f"install the distribution of backend {plugin}"
            if plugin in session().required:
                pytest.fail(f"--rift-require={plugin}: {sentence}", pytrace=False)
            session().skip(sentence, remedy)
        plugin = module if module is not None else plugin
    name, probe = probe_backend(plugin)
    if not probe.available:
        if name in session().required:
            pytest.fail(f"--rift-require={name}: {probe.reason}. {probe.remedy}".rstrip(), pytrace=False)
        session().skip(f"backend {name} is not available here: {probe.reason}", probe.remedy)
    return probe


def require_machine(open_it: Callable[[], M]) -> M:
    """What ``open_it`` returns; the test is skipped where no backend works.

    It fails instead if ``--rift-require`` names a backend that runs on real CPUs or emulates one: any but ``fake``.
    """
    try:
        return open_it()
    except PluginUnavailableError as error:
        if any(name != "fake" for name in session().required):
            pytest.fail(f"--rift-require={','.join(session().required)}: {error}", pytrace=False)
        session().skip("no backend works here", "see `rift doctor`")


def require_isa(isa: str) -> None:
    """Skip the test where no backend runs guests of ``isa``.

    It fails instead if that is the host's own ISA and ``--rift-require`` names a backend that runs on real CPUs or
    emulates one.
    """
    from rift_core.assembly import choose_backend, host_isa
    from rift_core.catalog import Catalog
    from rift_core.config import code_config

    try:
        choose_backend(code_config(isa=isa, backend="auto"), Catalog.installed(), isa)
    except PluginUnavailableError as error:
        if isa == host_isa() and any(name != "fake" for name in session().required):
            pytest.fail(f"--rift-require={','.join(session().required)}: {error}", pytrace=False)
        session().skip(f"no backend runs {isa} guests here", "see `rift doctor`; the lab has machines of either ISA")


def require_compiler(name: str | None = None) -> str:
    """Name of a C compiler that is installed: ``name``, or whichever of gcc and clang; else a skip or a failure."""
    if name is None and shutil.which("gcc") is None and shutil.which("clang") is not None:
        return "clang"
    require_tool(name or "gcc", package=name or "gcc (or clang)")
    return name or "gcc"


def require_capability(backend: str, isa: str, probe: ProbeResult, need: Need, tests: tuple[str, ...] = ()) -> None:
    """Skip the test if the backend lacks ``need``; fail where that is not an expected gap.

    :param tests: names under which the list may speak of this test alone.
    """
    have = probe.exit_kinds if isinstance(need, ExitKind) else probe.capabilities
    if need in have:
        return
    name = need_name(need)
    verb = "cannot cause the exit" if isinstance(need, ExitKind) else "lacks capability"
    sentence = f"{backend}/{isa} on {probe.machine or 'this machine'} {verb} {name}"
    gaps = session().gaps(probe.machine)
    listed = next((key for key in (name, *tests) if key in gaps.reasons), None)
    if listed is not None:
        gaps.used.add(listed)
        session().skip(sentence, f"expected: {gaps.reasons[listed]}")
    if session().required:
        pytest.fail(
            f"--rift-require: {sentence}, which is not listed in expected_gaps/{probe.machine}.toml: "
            f'add  "{name}" = "reason"  if that is how this machine is',
            pytrace=False,
        )
    session().skip(sentence)


def names_of(node: pytest.Item) -> tuple[str, str, str]:
    """Under which names a list may speak of a test: whole id, name with its parameters, name of the function."""
    return node.nodeid, node.name, node.name.partition("[")[0]


def expect_gap(machine: str, node: pytest.Item) -> None:
    """Expect a test that the list of this machine names itself to fail.

    It runs all the same: where everything is required, one that passes is a failure, so that the list stays true.
    """
    gaps = session().gaps(machine)
    listed = next((key for key in names_of(node) if key in gaps.reasons), None)
    if listed is not None:
        gaps.used.add(listed)
        reason = f"{listed} does not work on {machine}; expected: {gaps.reasons[listed]}"
        node.add_marker(pytest.mark.xfail(reason=reason, strict=bool(session().required)))


def require_guests(plugin: object | str, isa: str, node: pytest.Item, needs: tuple[Need, ...] = ()) -> object:
    """The module of a backend that can run this test with guests of ``isa``; else a skip, a failure, an expected gap.

    :param plugin: its name, or its module.
    :param node: the test: what its marks ``rift_requires`` name is asked for, after ``needs``.
    """
    probe = require_backend(plugin).for_isa(isa)
    module = plugin_module("backend", plugin) if isinstance(plugin, str) else plugin
    assert module is not None
    name, _ = probe_backend(module)
    expect_gap(probe.machine, node)
    marked = [need for mark in node.iter_markers("rift_requires") for need in mark.args]
    for need in (*needs, *marked):
        require_capability(name, isa, probe, need, names_of(node))
    return module


def skip_here(sentence: str, remedy: str = "") -> NoReturn:
    """Skip, even where everything is required: for what this host cannot have, or nobody needs to have.

    Another operating system or CPU, an older version of a tool, a compiler beyond gcc and clang. Not for what
    ``require_tool`` and the others ask for.
    """
    session().skip(sentence, remedy)


def only_where(condition: bool, reason: str) -> pytest.MarkDecorator:
    """The same as a mark, for what is known when the module is imported: ``pytestmark = only_where(...)``."""
    session().accounted.add(reason)
    return pytest.mark.skipif(not condition, reason=reason)


def require_module(name: str, *, package: str = "") -> ModuleType:
    """An importable module; the test is skipped, or fails under ``--rift-require``, where it is missing.

    :param package: the distribution that has it; the module's name unless given.
    """
    try:
        return import_module(name)
    except ImportError as error:
        sentence, remedy = f"the module {name} is missing ({error})", f"pip install {package or name}"
        if session().required:
            pytest.fail(f"--rift-require: {sentence}; {remedy}", pytrace=False)
        session().skip(sentence, remedy)


def load_module(path: Path, name: str | None = None) -> ModuleType:
    """Import a file that is no part of a package, anew each time.

    :param name: of the module; the file's own, without its suffix, unless given.
    """
    spec = spec_from_file_location(name or path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def require_payload_compiler(isa: str, name: str | None = None) -> Compiler:
    """What ``rift build`` would take for ``isa``; the test is skipped, or fails under ``--rift-require``.

    :param name: a compiler; whichever is there unless given. Only gcc and clang are ever required.
    """
    from rift_core.build_target import BuildError, Target, isa_sources
    from rift_core.compilers import find_compiler

    try:
        return find_compiler(Target.read(isa, isa_sources(isa)), name)
    except BuildError as error:
        if session().required and name in (None, "gcc", "clang"):
            pytest.fail(f"--rift-require: {error}", pytrace=False)
        session().skip(str(error))


def require_macho_compiler(isa: str) -> None:
    """What makes Mach-O payloads for ``isa``; the test is skipped, or fails under ``--rift-require``, without it."""
    from rift_core.build_macho import find_compiler
    from rift_core.build_target import BuildError, Target, isa_sources

    try:
        find_compiler(Target.read(isa, isa_sources(isa)))
    except BuildError as error:
        if session().required:
            pytest.fail(f"--rift-require: {error}", pytrace=False)
        session().skip(str(error))


def require_tool(name: str, *, package: str = "") -> str:
    """Path of a program; the test is skipped, or fails under ``--rift-require``, where it is missing.

    :param package: the distribution's package that has it; the program's name unless given.
    """
    path = shutil.which(name)
    if path is None:
        sentence, remedy = f"the program {name} is missing", f"install package {package or name}"
        if session().required:
            pytest.fail(f"--rift-require: {sentence}; {remedy}", pytrace=False)
        session().skip(sentence, remedy)
    return path
