"""The pytest plugin of Rift's test kit, loaded wherever ``riftvm-core`` and pytest are installed.

``--rift-require=kvm[,...]``
    The named backends must work here. A test that needs one that does not fails, instead of being skipped;
    so does a test for which a tool or module is missing (``require_tool``, ``require_module``), a test that is
    skipped because any backend lacks a capability, unless the list of expected gaps says so, and a test that
    is skipped without any of these: ``skip_here`` is for what a host cannot have.

``--rift-gaps=FOLDER``
    Where those lists are; ``tests/expected_gaps`` below pytest's root folder unless given. One file for each
    kind of machine (``ProbeResult.machine``), such as ``kvm-pvm.toml``::

        [gaps]
        "debug_hw_breakpoint" = "kvm_pvm reports no hardware breakpoints in user mode"
        "test_int_n" = "INT n is #UD there"

    A key is a capability, an exit kind, the name of a test function (with parameters, if it is not about all of
    them), or a whole test id. A test that needs a listed capability or exit kind is skipped. A listed test of the
    suites (conformance of backends, behaviour of CPUs) runs, and is expected to fail: where ``--rift-require`` is
    given, one that passes is a failure. When all tests were selected (no ``-k``, ``-m``, path or test id on the
    command line) and ``--rift-require`` is given, an entry that no test asked for fails the run: lists
    stay true.

Without ``--rift-require`` skips are skips; the summary names what was missing and what to install.

Marker ``rift_requires(need, ...)``, better written ``@requires(...)`` from :mod:`rift_core.testing.backend`:
capabilities or exit kinds that a conformance test needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from rift_core.testing.tools import TestSession

pytest.register_assert_rewrite(
    "rift_core.testing.aarch64_exceptions",
    "rift_core.testing.aarch64_host",
    "rift_core.testing.aarch64_machine",
    "rift_core.testing.aarch64_paging",
    "rift_core.testing.backend",
    "rift_core.testing.backend_exits",
    "rift_core.testing.backend_memory",
    "rift_core.testing.backend_native",
    "rift_core.testing.backend_vcpus",
    "rift_core.testing.exit_handler",
    "rift_core.testing.isa",
    "rift_core.testing.isa_page_tables",
    "rift_core.testing.loader",
    "rift_core.testing.x86_64_devices",
    "rift_core.testing.x86_64_exceptions",
    "rift_core.testing.x86_64_machine",
    "rift_core.testing.x86_64_paging",
)

_OLD_SESSION: pytest.StashKey[TestSession] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rift")
    group.addoption(
        "--rift-require",
        metavar="BACKEND[,BACKEND]",
        default="",
        help="fail, instead of skipping, where one of these backends, a tool, or an unlisted capability is missing",
    )
    group.addoption(
        "--rift-gaps",
        metavar="FOLDER",
        default=None,
        help="lists of expected gaps, a file for each kind of machine (default: tests/expected_gaps)",
    )


def pytest_configure(config: pytest.Config) -> None:
    from rift_core.testing.tools import TestSession, set_session

    config.addinivalue_line("markers", "rift_requires(need, ...): capabilities or exit kinds that the test needs")
    names = tuple(name.strip() for name in config.getoption("rift_require").split(",") if name.strip())
    folder = config.getoption("rift_gaps")
    path = Path(folder) if folder is not None else config.rootpath / "tests" / "expected_gaps"
    config.stash[_OLD_SESSION] = set_session(TestSession(names, path))


def pytest_unconfigure(config: pytest.Config) -> None:
    from rift_core.testing.tools import set_session

    if _OLD_SESSION in config.stash:
        set_session(config.stash[_OLD_SESSION])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``--rift-require`` a skip that nobody has accounted for is a failure."""
    report = yield
    reason = _unaccounted(call.excinfo)
    if report.skipped and reason is not None and not _is_listed(item):
        report.outcome, report.longrepr = "failed", _UNACCOUNTED.format(reason=reason)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module."""
    report = yield
    if report.skipped and report.call is not None:
        reason = _unaccounted(report.call.excinfo)
        if reason is not None:
            report.outcome, report.longrepr = "failed", _UNACCOUNTED.format(reason=reason)
    return report


_UNACCOUNTED = (
    "--rift-require: skipped because: {reason}\n"
    "A skip must say why it may be one: require_tool, require_module, require_backend, require_capability, skip_here "
    "of rift_core.testing.tools, or the test's name in the list of expected gaps."
)


def _unaccounted(error: pytest.ExceptionInfo[BaseException] | None) -> str | None:
    """The reason of a skip, if everything is required and it was not decided in ``rift_core.testing.tools``."""
    from rift_core.testing.tools import session as current

    if error is None or not isinstance(error.value, pytest.skip.Exception) or not current().required:
        return None
    reason = str(error.value.msg)
    return None if reason in current().accounted else reason


def _is_listed(item: pytest.Item) -> bool:
    """Whether a list of expected gaps that is in use names the test."""
    from rift_core.testing.tools import session as current

    names = {item.nodeid, item.name, getattr(item, "originalname", item.name)}
    for gaps in current().lists.values():
        listed = names & gaps.reasons.keys()
        if listed:
            gaps.used |= listed
            return True
    return False


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    from rift_core.testing.tools import session as current

    if exitstatus == pytest.ExitCode.OK and _is_whole_run(session.config) and any(current().unlisted()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    from rift_core.testing.tools import session as current

    now = current()
    if now.missing:
        terminalreporter.section("Rift: not tested here")
        for sentence, count in sorted(now.missing.items()):
            remedy = f"; {now.remedies[sentence]}" if sentence in now.remedies else ""
            terminalreporter.line(f"{count} test{'s' if count != 1 else ''}: {sentence}{remedy}")
    if _is_whole_run(config):
        stale = list(now.unlisted())
        if stale:
            terminalreporter.section("Rift: expected gaps that are none", red=True)
            for line in stale:
                terminalreporter.line(line)


def _is_whole_run(config: pytest.Config) -> bool:
    """Everything was selected and required: only then an unused entry means something."""
    option = config.option
    narrowed = any(
        getattr(option, name, None)
        for name in ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "failedfirst", "stepwise")
    )
    chosen = config.args_source is pytest.Config.ArgsSource.ARGS and config.args != [str(config.rootpath)]
    return bool(config.getoption("rift_require")) and not narrowed and not chosen and not option.collectonly
