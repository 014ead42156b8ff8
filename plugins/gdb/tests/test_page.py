"""docs/debugging.md: its sessions are real ones, by each GDB and LLDB that is here."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal
from test_editors import Adapter, begin

from rift_core import hooks, open_machine
from rift_core.testing.tools import load_module, require_isa, require_payload_compiler

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60.0


pages: Any = load_module(ROOT / "tests" / "pages.py")


@dataclass
class Page:
    """The page, with a free port in it, and a folder with its files and payloads."""

    text: str
    folder: Path
    environment: dict[str, str]

    def session(self, language: str, prompt: str, number: int = 0) -> tuple[str, list[tuple[str, str]]]:
        """A debugger's session: what is printed before the first prompt, and the commands with what they print."""
        body = pages.blocks(self.text, language)[number]
        first, *parts = re.split(rf"^\({prompt}\) (.*)\n", body, flags=re.MULTILINE)
        return first, list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture
def page(tmp_path: Path) -> Page:
    require_isa("x86_64")
    require_payload_compiler("x86_64", "gcc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8").replace("4711", str(port))
    pages.write_files(text, tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RIFT_")}
    environment = {
        **kept,
        "HOME": str(tmp_path), "DEBUGINFOD_URLS": "", "RIFT_CC": "gcc",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    for name in ("primes", "crash"):
        line = ["rift", "build", "-O", "0", "--isa", "x86_64", "-o", f"{name}.elf", f"{name}.c"]
        subprocess.run(line, cwd=tmp_path, env=environment, check=True, timeout=SECONDS)
    return Page(text, tmp_path, environment)


def agree(command: str, expected: str, printed: str) -> None:
    printed = printed.replace("\r", "")
    assert pages.matches(expected, printed), f"{command}\n--- the page says\n{expected}\n--- it prints\n{printed}"


@pytest.mark.parametrize(("number", "status"), [(0, 87), (1, 0)])
def test_the_sessions_in_gdb(page: Page, gdb: str, number: int, status: int) -> None:
    assert len(pages.blocks(page.text, "gdb")) == 2
    first, commands = page.session("gdb", "gdb", number)
    line, expected = re.match(r"\$ ([^\n]*)\n(.*)", first, re.DOTALL).groups()  # type: ignore[union-attr]
    folder = Path(gdb).parent
    environment = {**page.environment, "PATH": f"{folder}{os.pathsep}{page.environment['PATH']}"}
    terminal = Terminal(line.split(), page.folder, environment)
    try:
        agree(line, expected, terminal.until("(gdb) ").removesuffix("(gdb) "))
        for command, answer in commands:
            terminal.type(command + "\n")
            if command == "quit":
                break
            printed = terminal.until("(gdb) ").removesuffix("(gdb) ").replace("\r", "")
            agree(command, answer, printed.removeprefix(command))
        assert os.waitstatus_to_exitcode(terminal.wait()) == status
    finally:
        terminal.close()


def test_the_session_in_lldb(page: Page, lldb: str) -> None:
    """As a script: what LLDB prints when it is typed at is the same, but comes whenever it comes."""
    first, commands = page.session("lldb", "lldb")
    server, answer, client, _ = re.split(r"^\$ (.*)\n", first, flags=re.MULTILINE)[1:]
    with subprocess.Popen(
        server.split(), cwd=page.folder, env=page.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            assert running.stderr is not None
            agree(server, answer, "".join(running.stderr.readline() for _ in range(3)))
            words = [word for command, _ in commands for word in ("-o", command)]
            done = subprocess.run(
                [lldb, "-X", "-b", *client.split()[1:], *words], cwd=page.folder, env=page.environment,
                capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert running.wait(SECONDS) == 87
        finally:
            running.kill()
    parts = re.split(r"^\(lldb\) (.*)\n", done.stdout, flags=re.MULTILINE)
    printed = list(zip(parts[1::2], parts[2::2], strict=True))[-len(commands) :]
    for (command, expected), (echo, text) in zip(commands, printed, strict=True):
        assert command == echo
        agree(command, expected, text)


def part_of(expected: Any, whole: Any) -> bool:
    """Whether all that is expected is there; of lists the beginning."""
    if isinstance(expected, dict):
        return all(key in whole and part_of(value, whole[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return len(expected) <= len(whole) and all(map(part_of, expected, whole))
    return bool(expected == whole)


def test_the_session_of_an_editor(page: Page, newest_gdb: str) -> None:
    (body,) = pages.blocks(page.text, "dap")
    server, client, *lines = body.splitlines()
    words = client.removeprefix("$ gdb ").split()
    with subprocess.Popen(
        server.removeprefix("$ ").split(), cwd=page.folder, env=page.environment, stderr=subprocess.PIPE, text=True
    ) as running:
        adapter = Adapter([newest_gdb, "-nx", *words], page.folder)
        try:
            assert running.stderr is not None
            running.stderr.readline()
            begin(adapter, "gdb")
            asked = []
            for line in lines:
                mark, name, values = re.match(r"(..) (\w*) ?(.*)", line).groups()  # type: ignore[union-attr]
                content = json.loads(values or "{}")
                if mark == "->":
                    asked.append(adapter.send(name, **content))
                elif mark == "<-":
                    happened = adapter.event(name)
                    assert part_of(content, happened), (line, happened)
                else:
                    answer = adapter.response(asked.pop())
                    assert part_of(content, answer), (line, answer)
            for number in asked:  # none of them has failed
                adapter.response(number)
            assert running.wait(SECONDS) == 87
        finally:
            adapter.close()
            running.kill()


def test_the_commands(page: Page) -> None:
    """``rift build``, ``rift run --core``, ``gdb``, ``rift debug --write-vscode``."""
    ran = 0
    for commands in pages.sessions(page.text):
        for command, printed in pages.run(commands, page.folder):
            agree(command.line, command.output, printed)
            ran += 1
    assert ran >= 4
    (expected,) = pages.blocks(page.text, "json")
    shown = json.loads(expected)
    written = json.loads((page.folder / ".vscode" / "launch.json").read_text().replace(f"{page.folder}/", ".../"))
    assert written == shown


def test_the_configuration(page: Page) -> None:
    from rift_core.catalog import Catalog
    from rift_core.config import load_config
    from rift_gdb.config import GdbConfig

    (table,) = pages.blocks(page.text, "toml")
    path = page.folder / "rift.toml"
    path.write_text(f'{table}\n[binary]\npath = "primes.elf"\n')
    config = load_config(path, catalog=Catalog.installed())
    (section,) = (section for section in config.extensions if isinstance(section, GdbConfig))
    assert (section.listen, section.wait, section.on_disconnect, section.hold_faults) == ("9999", True, "stop", True)
    assert all(f"`{name}`" in page.text or name in table for name in ("listen", "wait", "on_disconnect", "hold_faults"))


def test_monitor_commands_of_a_plugin(page: Page) -> None:
    from types import ModuleType

    from gdb_rsp import Client

    (body,) = pages.blocks(page.text, "python")
    plugin = ModuleType("greeting")
    exec(compile(body, "greeting", "exec"), plugin.__dict__)
    with open_machine({"binary": {"path": str(page.folder / "primes.elf")}}) as machine:
        server = machine.debug(listen="0")
        machine.engine.hooks = machine.engine.hooks.extended(plugin)
        assert isinstance(machine.engine.hooks, hooks.Hooks)
        client = Client(server.address)
        assert client.monitor("greet good morning") == "a guest of x86_64 says good morning\n"
        client.close()


def test_every_command_of_the_monitor_is_in_the_table(page: Page) -> None:
    from rift_gdb import monitor

    for usage, _, _ in monitor._COMMANDS.values():
        assert f"| `monitor {usage.replace('|', chr(92) + '|')}` |" in page.text, usage
