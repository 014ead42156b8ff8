"""``rift debug`` as people use it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from debuggers import find_debugger
from gdb_rsp import Client

from rift_core.cli import status_of
from rift_gdb.address import Address, parse_address
from rift_gdb.clients import launch_configurations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 40.0

Run = "Callable[..., Running]"


class Running:
    """A command that runs."""

    def __init__(self, line: list[str], folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RIFT_")}
        environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "rift"), *line], cwd=folder, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.errors = ""
        self.clients: list[Client] = []

    def address(self) -> Address:
        """Where it says that debuggers may come to."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line
            found = re.search(r"(?:debugger at|come to) (\S+)$", line)
            if found is not None:
                return parse_address(found[1])
        raise AssertionError(f"it does not listen: {self.errors}")

    def end(self) -> int:
        """Its status."""
        assert self.process.stderr is not None
        self.errors += self.process.stderr.read()  # not communicate(), which passes over what is buffered here
        assert "Traceback" not in self.errors, self.errors
        return self.process.wait(SECONDS)

    def connect(self, address: Address) -> Client:
        """A client, which has been told why the machine stands."""
        self.clients.append(Client(address))
        self.clients[-1].stop("?")
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def rift(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts ``rift`` in a folder of its own, which is first in PATH."""
    made: list[Running] = []

    def run(*line: str) -> Running:
        made.append(Running(list(line), tmp_path))
        return made[-1]

    yield run
    for each in made:
        each.close()


@pytest.fixture
def words(kind: tuple[str, str], built: Callable[..., Path]) -> list[str]:
    """``debug``, with the payload and where it runs."""
    backend, isa = kind
    return ["debug", str(built(isa)), "--backend", backend]


def put_client(folder: Path, name: str, status: int = 0) -> None:
    """A debugger that writes down what it was called with, and lets the guest go."""
    script = f"""#!{sys.executable}
import json, re, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from debuggers import find_debugger
from gdb_rsp import Client
from rift_gdb.address import parse_address
json.dump(sys.argv[1:], open("called.json", "w"))
if {status}:
    sys.exit({status})
target = sys.argv[-1].split()[-1].replace("unix-connect://", "")
client = Client(parse_address(target))
client.stop("?")
assert client.ask("D") == b"OK"
"""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_the_guest_waits_at_a_port(rift: Run, words: list[str]) -> None:
    running = rift(*words, "--port", "0", "--", "4")
    address = running.address()
    assert address.port != 0
    client = running.connect(address)
    assert client.ask("vCont;c") == b"W0c"
    assert running.end() == 12
    assert "gdb " in running.errors
    assert f"target remote {address}" in running.errors
    assert f"gdb-remote {address}" in running.errors


def test_a_socket(rift: Run, words: list[str], tmp_path: Path) -> None:
    running = rift(*words, "--socket", "here")
    address = running.address()
    assert address.path == Path("here")
    path = tmp_path / "here"
    assert path.stat().st_mode & 0o777 == 0o600
    client = running.connect(Address(path=path))
    assert client.ask("vCont;c") == b"W06"
    assert running.end() == 6
    assert not path.exists()


def test_a_guest_that_does_not_wait(rift: Run, words: list[str]) -> None:
    running = rift(*words, "--port", "0", "--no-wait")
    running.address()
    assert running.end() == 6


@pytest.mark.parametrize("debugger", ["gdb", "lldb"])
def test_the_debugger_is_started(
    rift: Run, words: list[str], kind: tuple[str, str], built: Callable[..., Path], tmp_path: Path, debugger: str
) -> None:
    for name in (debugger, f"{debugger}-multiarch"):
        put_client(tmp_path, name)
    running = rift(*words, f"--{debugger}", "--", "5")
    assert running.end() == 20
    called = json.loads((tmp_path / "called.json").read_text())
    assert str(built(kind[1])) in called
    assert "-ex" in called if debugger == "gdb" else "-o" in called
    socket = Path(called[-1].split()[-1].removeprefix("unix-connect://"))
    assert not socket.exists()
    assert not socket.parent.exists()


def test_another_program_at_a_port(rift: Run, words: list[str], tmp_path: Path) -> None:
    put_client(tmp_path, "mine")
    running = rift(*words, "--gdb", "--client-program", "./mine", "--port", "0")
    assert running.end() == 6
    assert re.fullmatch(r"target remote 127\.0\.0\.1:\d+", json.loads((tmp_path / "called.json").read_text())[-1])


def test_a_debugger_that_fails_at_once(rift: Run, words: list[str], tmp_path: Path) -> None:
    put_client(tmp_path, "mine", 3)
    running = rift(*words, "--gdb", "--client-program", "./mine")
    assert running.end() == 1


def test_a_debugger_that_is_not_there(rift: Run, words: list[str]) -> None:
    running = rift(*words, "--gdb", "--client-program", "./nowhere")
    assert running.end() == 1
    assert "no ./nowhere is installed" in running.errors


def test_ctrl_c_is_the_debuggers(rift: Run, words: list[str], tmp_path: Path) -> None:
    """The terminal sends it to both."""
    script = f"""#!{sys.executable}
import os, signal, sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from debuggers import find_debugger
from gdb_rsp import Client
from rift_gdb.address import parse_address
client = Client(parse_address(sys.argv[-1].split()[-1]))
client.stop("?")
client.send("vCont;c")
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.2)
client.interrupt()
assert client.stop()["signal"] == 2
client.send("k")
"""
    (tmp_path / "mine").write_text(script)
    (tmp_path / "mine").chmod(0o755)
    running = rift(*words, "--gdb", "--client-program", "./mine", "--set", 'threads.main.entry="spin"')
    running.end()
    assert "error" not in running.errors.lower()


def test_the_configuration_is_kept(
    rift: Run, kind: tuple[str, str], built: Callable[..., Path], tmp_path: Path
) -> None:
    """Options stand above ``[debug]``, whose other keys stay."""
    (tmp_path / "rift.toml").write_text(
        f'backend = "{kind[0]}"\n[binary]\npath = "{built(kind[1])}"\n'
        '[debug]\nlisten = "unix:there"\nhold_faults = true\non_disconnect = "kill"\n'
    )
    running = rift("debug", "rift.toml")
    assert running.address().path is not None
    client = running.connect(Address(path=tmp_path / "there"))
    client.close()
    began = time.monotonic()
    running.end()
    assert time.monotonic() - began < SECONDS, "on_disconnect = kill"
    running = rift("debug", "rift.toml", "--port", "0", "--no-wait")
    assert running.address().path is None
    assert running.end() == 6


def test_a_source_is_built_first(rift: Run, kind: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "small.c").write_text("int main(void) { return 21; }\n")
    running = rift("debug", "small.c", "--backend", kind[0], "--isa", kind[1], "--port", "0", "--no-wait")
    running.address()
    assert running.end() == 21


def test_for_vs_code(rift: Run, words: list[str], tmp_path: Path) -> None:
    running = rift(*words, "--port", "0", "--no-wait", "--write-vscode")
    address = running.address()
    assert running.end() == 6
    data = json.loads((tmp_path / ".vscode" / "launch.json").read_text())
    assert {each.get("gdb-remote-port") for each in data["configurations"]} == {None, address.port}


@pytest.mark.parametrize("debugger", ["gdb", "lldb"])
@pytest.mark.parametrize("origin", ["system", "pypi"])
def test_what_it_says_can_be_typed(
    rift: Run, built: Callable[..., Path], debugger: str, origin: str, tmp_path: Path
) -> None:
    """Whatever the payload and the socket are called."""
    program = find_debugger(debugger, origin)
    payload = tmp_path / """my "guest's" own.elf"""
    payload.write_bytes(built("x86_64").read_bytes())
    running = rift("debug", str(payload), "--backend", "emulator", "--socket", str(tmp_path / "the socket"))
    assert running.process.stderr is not None
    while True:
        said = running.process.stderr.readline()
        assert said, "it has ended"
        if said.startswith(f"rift:   {debugger} "):
            break
    words = shlex.split(said)[2:]
    assert words[0] == str(payload)
    line = [program, "-nx", "-q", "-batch", *words, "-ex", "bt"]
    if debugger == "lldb":
        line = [program, "-X", "-b", *words, "-o", "bt"]
    answer = subprocess.run(
        line, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True
    )
    assert re.search(r"#0.*\bmain\b", answer.stdout), answer.stdout + answer.stderr


def test_an_lldb_takes_what_is_written_for_codelldb(lldb: str, built: Callable[..., Path], tmp_path: Path) -> None:
    payload = tmp_path / """my "guest's" \\own.elf"""
    payload.write_bytes(built("x86_64").read_bytes())
    codelldb = launch_configurations(parse_address("9999"), payload, "x86_64")[0]
    answer = subprocess.run(
        [lldb, "-X", "-b", "-o", *codelldb["targetCreateCommands"], "-o", "image lookup -n work"],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert "1 match found" in answer.stdout, answer.stdout + answer.stderr


def test_other_machines_need_a_flag(rift: Run, words: list[str]) -> None:
    running = rift(*words, "--port", "0.0.0.0:0")
    assert running.end() == 2
    assert "--allow-remote" in running.errors or "allow_remote" in running.errors
    running = rift(*words, "--port", "0.0.0.0:0", "--allow-remote", "--no-wait")
    assert running.end() == 6
    assert "no authentication" in running.errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "1", "--socket", "x"], "not both"),
        (["--port", "nonsense"], "is no address"),
        (["--", "nonsense"], "are integers"),
        (["--socket", "nowhere/at/all"], "nowhere"),
    ],
)
def test_wrong_usage(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert status_of([*words, *options]) in (1, 2)
    errors = capfd.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken(rift: Run, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    running = rift(*words, "--port", "0")
    address = running.address()
    assert status_of([*words, "--port", str(address.port)]) == 1
    errors = capfd.readouterr().err
    assert str(address.port) in errors
    assert "Traceback" not in errors
