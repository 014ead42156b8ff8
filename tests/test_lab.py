"""The lab's own programs, without a boot: a program that takes QEMU's place runs the command on this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rift_core.testing.tools import only_where

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from rift_lab import cache, kernel, svm  # noqa: E402
from rift_lab.initramfs import Initramfs  # noqa: E402

pytestmark = only_where(sys.platform == "linux", "the lab needs Debian's packages")

STAND_IN = """#!{python}
# Takes QEMU's place: finds the run's folder and the pipes in its arguments, and does what guest/init would.
import os, pathlib, re, subprocess, sys, time
words, mode = " ".join(sys.argv[1:]), os.environ.get("STAND_IN", "run")
folder = pathlib.Path(re.search(r"id=share0,path=([^ ]*?),security_model", words)[1])
session = (folder / "session").read_text()
pathlib.Path(os.environ["STAND_IN_NOTES"]).write_text("\\n".join([str(os.getpid()), words, session]))
if mode == "dies":
    sys.exit(3)
if mode == "fails":
    (folder / "failed").write_text("the share cannot be mounted")
    sys.exit(0)
if mode != "never boots":
    (folder / "booted").write_text("1.0")
if mode != "run":
    time.sleep(300)
out, error = re.findall(r"-add-fd fd=(\\d+),set=[12]", words)
session = session.replace("/run/lab/", f"{{folder}}/")
session = session.replace("/dev/lab.out", f"/proc/self/fd/{{out}}").replace("/dev/lab.err", f"/proc/self/fd/{{error}}")
subprocess.run(["/bin/sh", "-c", session], env={{}}, pass_fds=[int(out), int(error)])
"""


class Lab:
    """The programs, with a cache of their own in which the machine ``svm`` is prepared, and the stand-in for QEMU."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        key = cache.digest(kernel._RECIPE, "amd64", *svm.MODULES, kernel._INIT.read_bytes())
        prepared = self.cache / f"kernel-amd64-{key}"
        prepared.mkdir(parents=True)
        for name in ("kernel", "initramfs"):
            (prepared / name).touch()
        self.programs = folder / "programs"
        self.programs.mkdir()
        qemu = self.programs / "qemu-system-x86_64"
        qemu.write_text(STAND_IN.format(python=sys.executable))
        qemu.chmod(0o755)
        self.notes = folder / "notes"

    def environment(self, **variables: str) -> dict[str, str]:
        """Variables of a run."""
        own = {"RIFT_LAB_CACHE": str(self.cache), "STAND_IN_NOTES": str(self.notes), "HOME": str(self.cache)}
        return {"PATH": f"{self.programs}:/usr/bin:/bin", **own, **variables}

    def run(
        self, *words: str, program: str = "run", directory: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``tests/lab/PROGRAM``."""
        start = [sys.executable] if program == "run" else ["/bin/sh"]
        return subprocess.run(
            [*start, str(ROOT / "tests" / "lab" / program), *words],
            cwd=directory, env=self.environment(**variables), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def qemu_is_running(self) -> bool:
        """That of the last run; where it was ended before it could say anything, it is not."""
        if not self.notes.exists():
            return False
        try:
            status = Path(f"/proc/{self.notes.read_text().splitlines()[0]}/status").read_text()
        except OSError:
            return False
        return "(zombie)" not in status


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that the lab says."""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("lab: "))
    return line.removeprefix("lab: ")


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: MACHINE"),
        (("vax", "--", "true"), "invalid choice: 'vax'"),
        (("svm",), "no command given: put it behind --"),
        (("svm", "true"), "unrecognized arguments: true"),
        (("svm", "--cpus", "many", "--", "true"), "--cpus: invalid int value"),
    ],
)
def test_wrong_use(lab: Lab, words: tuple[str, ...], message: str) -> None:
    done = lab.run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not lab.notes.exists()


def test_help_says_what_exit_statuses_mean(lab: Lab) -> None:
    done = lab.run("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "MACHINE [OPTION...] -- COMMAND" in text
    assert "124 when the time is over, 125 when the machine failed" in text


def test_what_follows_the_dashes_is_the_commands(lab: Lab) -> None:
    words = ("--verbose", "--", "a b", "'\"$HOME\"'", "two\nlines", "", "*", "\\")
    done = lab.run("svm", "--", "printf", "[%s]", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"[{word}]" for word in words)


def test_options_reach_qemu(lab: Lab) -> None:
    done = lab.run("svm", "--cpu", "max,+svm", "--cpus", "3", "--memory", "512", "--", "true")
    assert done.returncode == 0, done.stderr
    words = lab.notes.read_text()
    for option in ("-cpu max,+svm ", "-smp 3 ", "-m 512 ", "-nodefaults"):
        assert option in words


def test_preparing_starts_nothing(lab: Lab) -> None:
    assert lab.run("svm", "--prepare").returncode == 0
    assert not lab.notes.exists()


# -- what comes through ----------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 1", 1), ("exit 77", 77), ("kill -9 $$", 137)])
def test_exit_status(lab: Lab, script: str, status: int) -> None:
    assert lab.run("svm", "--", "sh", "-c", script).returncode == status


def test_command_that_does_not_exist(lab: Lab) -> None:
    done = lab.run("svm", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_output_and_errors_come_apart_and_whole(lab: Lab) -> None:
    script = "import sys; print('x' * 300_000); print('y' * 300_000, file=sys.stderr); print(sys.stdin.read() + 'end')"
    done = lab.run("svm", "--", sys.executable, "-c", script)
    assert done.returncode == 0
    assert done.stdout == "x" * 300_000 + "\nend\n"
    assert done.stderr == "y" * 300_000 + "\n"


def test_a_reader_that_goes_does_not_stop_the_command(lab: Lab, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run = [sys.executable, "tests/lab/run", "svm", "--", "sh", "-c", f"yes | head -c 1000000; touch {mark}"]
    with subprocess.Popen(run, cwd=ROOT, env=lab.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(60) == 0
    assert mark.exists()


def test_variables(lab: Lab) -> None:
    passed = {"CI": "1", "RIFT_BACKEND": "a b", "HYPOTHESIS_PROFILE": "ci", "PYTEST_ADDOPTS": "-x", "MINE": "'"}
    done = lab.run("svm", "--env", "MINE", "--", "env", OTHER="no", **passed)
    seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert {name: seen.get(name) for name in passed} == passed
    assert "OTHER" not in seen
    assert "RIFT_LAB_CACHE" not in seen
    assert seen["PATH"].startswith(f"{ROOT}/.venv/bin:")


def test_tests_get_more_time(lab: Lab) -> None:
    command = ("svm", "--", "sh", "-c", "echo $PYTEST_TIMEOUT")
    assert lab.run(*command).stdout == "1200\n"
    assert lab.run(*command, PYTEST_TIMEOUT="7").stdout == "7\n"


def test_folder(lab: Lab, tmp_path: Path) -> None:
    assert lab.run("svm", "--", "pwd", directory=ROOT / "docs").stdout == f"{ROOT / 'docs'}\n"
    assert lab.run("svm", "--", "pwd", directory=tmp_path).stdout == f"{ROOT}\n"


def test_writable_folder(lab: Lab, tmp_path: Path) -> None:
    assert lab.run("svm", "--writable", str(tmp_path), "--", "true").returncode == 0
    assert f"path={tmp_path}," in lab.notes.read_text()
    done = lab.run("svm", "--writable", str(tmp_path / "missing"), "--", "true")
    assert done.returncode == 125
    assert f"{tmp_path}/missing" in complaint(done)


# -- what fails ------------------------------------------------------------------------------------


def test_missing_packages_are_named(lab: Lab) -> None:
    empty = lab.programs / "none"
    empty.mkdir()
    done = lab.run("svm", "--", "true", PATH=str(empty))
    assert (done.returncode, complaint(done)) == (125, "missing here: apt install qemu-system-x86")
    done = lab.run("aarch64", "--", "true", PATH=str(empty))
    assert done.returncode == 125
    assert re.match(r"missing here: apt install .*\bqemu-system-arm\b", complaint(done))


def test_machine_that_never_boots(lab: Lab) -> None:
    start = time.monotonic()
    done = lab.run("svm", "--boot-limit", "1", "--", "true", STAND_IN="never boots")
    assert done.returncode == 125
    assert complaint(done) == "the machine has not booted within 1 s; --verbose shows its console"
    assert time.monotonic() - start < 60
    assert not lab.qemu_is_running()


def test_machine_that_dies(lab: Lab) -> None:
    done = lab.run("svm", "--", "true", STAND_IN="dies")
    assert done.returncode == 125
    assert complaint(done) == "the machine ended without a result (QEMU: 3); --verbose shows its console"


def test_machine_that_says_why(lab: Lab) -> None:
    done = lab.run("svm", "--", "true", STAND_IN="fails")
    assert (done.returncode, complaint(done)) == (125, "the share cannot be mounted")


def test_time_limit(lab: Lab) -> None:
    done = lab.run("svm", "--time-limit", "1", "--", "true", STAND_IN="hangs")
    assert (done.returncode, complaint(done)) == (124, "the time limit of 1 s is over")
    assert not lab.qemu_is_running()


def test_time_limit_behind_the_boot(lab: Lab) -> None:
    done = lab.run("svm", "--boot-limit", "8", "--time-limit", "9", "--", "true", STAND_IN="hangs")
    assert (done.returncode, complaint(done)) == (124, "the time limit of 9 s is over")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_machine(lab: Lab, number: signal.Signals) -> None:
    run = [sys.executable, "tests/lab/run", "svm", "--", "true"]
    with subprocess.Popen(run, cwd=ROOT, env=lab.environment(STAND_IN="hangs")) as process:
        end = time.monotonic() + 60
        while not lab.notes.exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert not lab.qemu_is_running()
    assert not list(lab.cache.glob("run-*"))


# -- suite and ci ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "message"), [((), "which machine"), (("svm", "some"), "some is none of")])
def test_suite_used_wrongly(lab: Lab, words: tuple[str, ...], message: str) -> None:
    done = lab.run(*words, program="suite")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("part", ["suites", "ci", "all"])
def test_suite_names_tests_that_exist(lab: Lab, part: str) -> None:
    assert lab.run("svm", part, "-x", program="suite", STAND_IN="dies").returncode == 125
    (command,) = (line for line in lab.notes.read_text().splitlines() if "-m pytest" in line)
    words = shlex.split(command)
    assert {"--rift-require=kvm", "-x"} <= set(words)
    paths = [word.removeprefix("--deselect=").partition("::")[0] for word in words if "/" in word]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert ("plugins/kvm" in paths) == (part != "all")


@pytest.mark.parametrize(("statuses", "result"), [((0, 0), 0), ((0, 1), 1), ((125, 0), 1)])
def test_ci_needs_both_machines(tmp_path: Path, statuses: tuple[int, int], result: int) -> None:
    folder = tmp_path / "tests" / "lab"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "lab" / "ci", folder)
    suite = folder / "suite"
    svm_status, arm_status = statuses
    suite.write_text(f'#!/bin/sh\necho "$*"\n[ "$1" = svm ] && exit {svm_status}\nexit {arm_status}\n')
    suite.chmod(0o755)
    run = ["/bin/sh", str(folder / "ci"), "-x"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False, start_new_session=True)
    assert done.returncode == result
    assert f"==== the lab: svm (exit status {svm_status})\nsvm ci -x\n" in done.stdout
    assert f"==== the lab: aarch64 (exit status {arm_status})\naarch64 ci -x\n" in done.stdout


# -- the cache -------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return cache.folder()


def test_an_entry_is_made_once(own_cache: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("content")

    first = cache.entry("thing", "1", make)
    assert cache.entry("thing", "1", make) == first == own_cache / "thing-1"
    assert len(made) == 1
    assert (first / "file").read_text() == "content"
    assert cache.entry("thing", "2", make) != first


def test_an_entry_that_cannot_be_made_leaves_nothing(own_cache: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").touch()
        raise cache.LabError("no network")

    with pytest.raises(cache.LabError, match="no network"):
        cache.entry("thing", "1", make)
    assert [path.name for path in own_cache.iterdir()] == ["locks"]


def test_what_nobody_has_used_for_long_goes(own_cache: Path) -> None:
    ages = {"thing-1": 8, "thing-2": 6, "run-old": 2, "run-new": 0, ".half": 2, "apt": 99, "locks": 99}
    for name, days in ages.items():
        path = own_cache / name
        path.mkdir()
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))
    cache.clean()
    assert {path.name for path in own_cache.iterdir()} == {"thing-2", "run-new", "apt", "locks"}


def test_digest_keeps_parts_apart() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("a") == cache.digest(b"a")


# -- what is started -------------------------------------------------------------------------------


def test_initramfs_is_an_archive() -> None:
    """Of format newc: headers of 13 numbers in hexadecimal, names and contents padded to 4 bytes."""
    archive = Initramfs()
    archive.add_file("init", b"#!/bin/sh\n", 0o755)
    data = archive.pack()
    files = {}
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size + 3 & ~3
        files[name] = (mode, data[at : at + size])
        at += size + 3 & ~3
    assert files["init"] == (0o100755, b"#!/bin/sh\n")
    assert files["dev/console"][0] == 0o020600
    assert list(files)[-1] == "TRAILER!!!"


def test_a_kernel_that_is_not_compressed_as_expected_stays_as_it_is() -> None:
    for image in (b"", b"MZ" + bytes(0x400), bytes(0x202) + b"HdrS" + bytes(0x400)):
        assert kernel._unpacked(image) == image
