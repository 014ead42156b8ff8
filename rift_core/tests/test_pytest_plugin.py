"""``--rift-require``, expected gaps, the summary, assertion rewriting: whole pytest runs in a folder of their own."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from rift_core.host_memory import HostMemory
from rift_core.testing.leaks import no_leaks

pytest_plugins = ["pytester"]

PLUGIN = """
import pytest
from types import SimpleNamespace
from rift_core.backend import ProbeResult
from rift_core.exits import ExitKind
from rift_core.plugin import PluginInfo

def module(available=True, capabilities=("sleep",)):
    probe = lambda section: ProbeResult(
        available, "there is no dream device", "close your eyes", capabilities=frozenset(capabilities),
        exit_kinds=frozenset({ExitKind.MMIO}), machine="dream-1",
    )
    return SimpleNamespace(rift_plugin=lambda: PluginInfo("backend", "dream", "dreams", probe=probe))
"""


@pytest.fixture
def folder(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\ntestpaths = .\n")
    pytester.makepyfile(dream=PLUGIN)
    pytester.syspathinsert()
    return pytester


def gaps(folder: pytest.Pytester, text: str) -> None:
    path = folder.path / "tests" / "expected_gaps"
    path.mkdir(parents=True)
    (path / "dream-1.toml").write_text(text)


UNAVAILABLE = """
from dream import module
from rift_core.testing.tools import require_backend
def test_it(): require_backend(module(available=False))
"""

CAPABILITY = """
import pytest
from dream import module
from rift_core.exits import ExitKind
from rift_core.testing.tools import require_backend, require_capability
def test_has(): require_capability("dream", "x86_64", require_backend(module()), "sleep")
def test_lacks(): require_capability("dream", "x86_64", require_backend(module()), "fly", ("test_lacks",))
def test_exit():
    require_capability("dream", "x86_64", require_backend(module(capabilities=())), ExitKind.HALT, ("test_exit",))
"""


def test_unavailable_backend_is_skipped(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=UNAVAILABLE)
    result = folder.runpytest_inprocess()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*not tested here*", "1 test: backend dream is not available here: there is no dream device; close your eyes"]
    )


def test_required_backend_must_be_available(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=UNAVAILABLE)
    result = folder.runpytest_inprocess("--rift-require=other, dream")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--rift-require=dream: there is no dream device. close your eyes*"])


def test_backend_that_is_not_installed(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_a="from rift_core.testing.tools import require_backend\ndef test_it(): require_backend('nowhere')"
    )
    folder.runpytest_inprocess().assert_outcomes(skipped=1)
    folder.runpytest_inprocess("--rift-require=nowhere").assert_outcomes(failed=1)


def test_capability_skips(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=CAPABILITY)
    result = folder.runpytest_inprocess("-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines_random(
        ["*dream/x86_64 on dream-1 lacks capability fly*", "*dream/x86_64 on dream-1 cannot cause the exit HALT*"]
    )


def test_unlisted_capability_skip_fails_when_required(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=CAPABILITY)
    gaps(folder, '[gaps]\n"fly" = "no wings"\n')
    result = folder.runpytest_inprocess("--rift-require=dream")
    result.assert_outcomes(passed=1, skipped=1, failed=1)
    result.stdout.fnmatch_lines(["*HALT, which is not listed in expected_gaps/dream-1.toml*"])


def test_listed_gaps_are_skips(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=CAPABILITY)
    gaps(folder, '[gaps]\n"fly" = "no wings"\n"test_exit" = "HALT is asleep"\n')
    result = folder.runpytest_inprocess("--rift-require=dream")
    result.assert_outcomes(passed=1, skipped=2)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*lacks capability fly; expected: no wings"])


def test_stale_entry_fails_a_whole_run_only(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=CAPABILITY)
    gaps(folder, '[gaps]\n"fly" = "no wings"\n"HALT" = "asleep"\n"swim" = "no fins"\n')
    result = folder.runpytest_inprocess("--rift-require=dream")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*dream-1.toml lists 'swim', but no test asked for it: remove the entry"])
    for part in (["-k", "lacks or exit"], ["test_a.py"], ["test_a.py::test_lacks"], ["-m", "not slow"]):
        assert folder.runpytest_inprocess("--rift-require=dream", *part).ret == pytest.ExitCode.OK
    assert folder.runpytest_inprocess().ret == pytest.ExitCode.OK


def test_gap_list_of_another_shape(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=CAPABILITY)
    gaps(folder, '[gaps]\n"fly" = ""\n')
    result = folder.runpytest_inprocess()
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*dream-1.toml: ?gaps? takes lines like*"])


LISTED = """
import pytest
from dream import module
from rift_core.testing.tools import expect_gap, require_backend

@pytest.fixture
def machine(request): expect_gap(require_backend(module()).machine, request.node)

@pytest.mark.parametrize("depth", [1, 2])
def test_swims(machine, depth): assert depth == 1
def test_walks(machine): pass
"""


def test_a_listed_test_is_expected_to_fail(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=LISTED)
    gaps(folder, '[gaps]\n"test_swims[2]" = "too deep"\n')
    result = folder.runpytest_inprocess("--rift-require=dream", "-rx")
    result.assert_outcomes(passed=2, xfailed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["XFAIL *test_swims?2? does not work on dream-1; expected: too deep*"])


def test_a_listed_test_that_passes_is_no_gap(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=LISTED)
    gaps(folder, '[gaps]\n"test_swims[2]" = "too deep"\n"test_walks" = "no legs"\n')
    result = folder.runpytest_inprocess("--rift-require=dream", "test_a.py", "-k", "walks")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*strict*test_walks does not work on dream-1; expected: no legs*"])
    folder.runpytest_inprocess("-k", "walks").assert_outcomes(xpassed=1)


def test_conformance_marks(folder: pytest.Pytester) -> None:
    """A subclass with one fixture inherits everything; a listed test is expected to fail, and does not."""
    folder.makepyfile(
        test_a="""
        import pytest
        from rift_core.testing import fakes
        from rift_core.testing.backend import BackendConformance

        class TestFake(BackendConformance):
            @pytest.fixture
            def plugin(self):
                return fakes
        """
    )
    path = folder.path / "tests" / "expected_gaps"
    path.mkdir(parents=True)
    (path / "fake.toml").write_text('[gaps]\n"test_halt" = "for the test"\n')
    result = folder.runpytest_inprocess("--rift-require=fake", "-k", "test_halt or test_mmio_write or test_shutdown")
    result.assert_outcomes(passed=5, failed=1, deselected=None)
    result.stdout.fnmatch_lines(["*strict*test_halt does not work on fake; expected: for the test*"])


def test_missing_tool(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_a="""
        from rift_core.testing.tools import require_tool
        def test_has(): assert require_tool("sh").endswith("sh")
        def test_lacks(): require_tool("no-such-compiler", package="compilers")
        """
    )
    result = folder.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["1 test: the program no-such-compiler is missing; install package compilers"])
    result = folder.runpytest_inprocess("--rift-require=fake")
    result.assert_outcomes(passed=1, failed=1)


def test_failures_inside_the_suites_show_values(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_a="""
        from rift_core.testing.backend_exits import run_to_fault
        from rift_core.exits import Exit, ExitKind
        class Bench:
            def run(self, vcpu): return Exit(ExitKind.HALT, 0x1234)
            def describe(self, vcpu, exit): return str(exit)
        def test_it(): run_to_fault(Bench(), None)
        """
    )
    result = folder.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*HALT at 0x1234*"])


class TestLeaks:
    def test_nothing(self) -> None:
        with no_leaks():
            pass

    def test_descriptor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rift_core.testing.leaks._SETTLE_SECONDS", 0.05)
        opened = -1
        with pytest.raises(AssertionError, match="file descriptors"), no_leaks():
            opened = os.open(os.devnull, os.O_RDONLY)
        os.close(opened)

    def test_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rift_core.testing.leaks._SETTLE_SECONDS", 0.05)
        release = threading.Event()
        thread = threading.Thread(target=release.wait, name="left-over")
        with pytest.raises(AssertionError, match="left-over"), no_leaks():
            thread.start()
        release.set()
        thread.join()

    def test_a_thread_that_is_about_to_end_is_waited_for(self) -> None:
        timer = threading.Timer(0.1, lambda: None)
        with no_leaks():
            timer.start()

    def test_one_map_of_a_memfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rift_core.testing.leaks._SETTLE_SECONDS", 0.05)
        kept = []
        with pytest.raises(AssertionError, match="maps of files"), no_leaks():
            kept.append(HostMemory(mmap.PAGESIZE))
        kept.clear()

    def test_many_anonymous_maps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rift_core.testing.leaks._SETTLE_SECONDS", 0.05)
        kept = []
        with pytest.raises(AssertionError, match="anonymous maps"), no_leaks():
            kept += [mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE, p) for p in (mmap.PROT_READ, 3) * 10]
        for each in kept:
            each.close()

    def test_stacks_that_the_c_library_keeps_do_not_count(self) -> None:
        def burst(count: int) -> None:
            gate = threading.Event()
            threads = [threading.Thread(target=gate.wait) for _ in range(count)]
            for thread in threads:
                thread.start()
            gate.set()
            for thread in threads:
                thread.join()

        with no_leaks():
            burst(30)


SKIPS = """
import pytest
from rift_core.testing.tools import require_module, skip_here
def test_plain(): pytest.skip("no time")
@pytest.mark.skip(reason="not today")
def test_marked(): pass
def test_here(): skip_here("another moon", "move")
def test_module(): require_module("no_such_module", package="moon")
@pytest.mark.xfail(reason="known", strict=True)
def test_expected_failure(): raise ValueError
"""


def test_skips_are_skips_where_nothing_is_required(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=SKIPS)
    result = folder.runpytest_inprocess()
    result.assert_outcomes(skipped=4, xfailed=1)
    result.stdout.fnmatch_lines(["1 test: another moon; move", "1 test: the module no_such_module is missing *"])


def test_a_skip_must_say_why_it_may_be_one(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a=SKIPS)
    result = folder.runpytest_inprocess("--rift-require=dream")
    result.assert_outcomes(skipped=1, failed=2, errors=1, xfailed=1)  # a mark is an error of the setup
    for reason in ("no time", "not today"):
        result.stdout.fnmatch_lines([f"*--rift-require: skipped because: {reason}*"])
    result.stdout.fnmatch_lines(["*--rift-require: the module no_such_module is missing*pip install moon*"])


def test_a_module_that_skips_itself_is_a_failure(folder: pytest.Pytester) -> None:
    folder.makepyfile(test_a="import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n")
    folder.runpytest_inprocess().assert_outcomes(skipped=1)
    result = folder.runpytest_inprocess("--rift-require=dream")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--rift-require: skipped because: could not import*no_such_module*"])


def test_a_listed_test_may_skip_as_it_likes(folder: pytest.Pytester) -> None:
    gaps(folder, '[gaps]\n"test_plain" = "the dream has no time"\n')
    folder.makepyfile(
        test_a="""
        import pytest
        from dream import module
        from rift_core.testing.tools import require_backend, session
        def test_first(): session().gaps(require_backend(module()).machine)
        def test_plain(): pytest.skip("no time")
        """
    )
    folder.runpytest_inprocess("--rift-require=dream").assert_outcomes(passed=1, skipped=1)
