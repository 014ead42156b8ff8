"""What editors do: the Debug Adapter Protocol by GDB's and LLDB's own adapters, and GDB/MI, which cppdbg speaks."""

from __future__ import annotations

import json
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from debuggers import SOURCE, gdb_for

from rift_core.testing.tools import require_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


def line_of(mark: str) -> int:
    """The line of the payload with this comment."""
    lines = SOURCE.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if f"/* {mark} */" in line)


class Program:
    """A program that is talked to by pipes."""

    def __init__(self, line: list[str], folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            line, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.data = b""

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def more(self, deadline: float) -> None:
        """Some more of its output."""
        assert self.process.stdout is not None
        left = deadline - time.monotonic()
        ready = select.select([self.process.stdout], [], [], max(left, 0))[0]
        assert ready, f"it says no more than {self.data!r}"
        got = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        assert got, f"it has ended: {self.data!r}"
        self.data += got

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Adapter(Program):
    """A debug adapter."""

    def __init__(self, line: list[str], folder: Path | None = None) -> None:
        super().__init__(line, folder)
        self.sequence = 0
        self.events: list[dict[str, Any]] = []
        self.responses: dict[int, dict[str, Any]] = {}
        self.output = ""

    def send(self, command: str, **arguments: Any) -> int:
        self.sequence += 1
        message = {"seq": self.sequence, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(message).encode()
        self.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        return self.sequence

    def _next(self, deadline: float) -> dict[str, Any]:
        while True:
            head = re.match(rb"(?:[^\r\n]*\r\n)*?Content-Length: (\d+)\r\n(?:[^\r\n]+\r\n)*\r\n", self.data)
            if head is not None and len(self.data) >= head.end() + int(head[1]):
                end = head.end() + int(head[1])
                message: dict[str, Any] = json.loads(self.data[head.end() : end])
                self.data = self.data[end:]
                if message.get("event") == "output":
                    self.output += message["body"]["output"]
                return message
            self.more(deadline)

    def _take(self, deadline: float) -> None:
        """One more message."""
        message = self._next(deadline)
        if message["type"] == "event":
            self.events.append(message)
        elif message["type"] == "response":
            self.responses[message["request_seq"]] = message

    def response(self, number: int) -> Any:
        """The answer to a request, which succeeded."""
        deadline = time.monotonic() + SECONDS
        while number not in self.responses:
            self._take(deadline)
        message = self.responses.pop(number)
        assert message["success"], message
        return message.get("body") or {}

    def ask(self, command: str, **arguments: Any) -> Any:
        return self.response(self.send(command, **arguments))

    def event(self, name: str) -> Any:
        """The next event of a name, be it one that came before an answer."""
        deadline = time.monotonic() + SECONDS
        while True:
            for message in self.events:
                if message["event"] == name:
                    self.events.remove(message)
                    return message.get("body") or {}
            self._take(deadline)


@pytest.fixture
def adapter() -> Iterator[Callable[..., Adapter]]:
    made: list[Adapter] = []

    def make(*line: str) -> Adapter:
        made.append(Adapter(list(line)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def begin(adapter: Adapter, client: str) -> None:
    """What an editor says first."""
    adapter.ask("initialize", clientID="test", adapterID=client, linesStartAt1=True, columnsStartAt1=True)


def break_at_call(adapter: Adapter, attach: int) -> int:
    """A breakpoint in work, and on to it; the thread's number."""
    adapter.event("initialized")
    adapter.ask("setBreakpoints", source={"path": str(SOURCE)}, breakpoints=[{"line": line_of("call")}])
    adapter.ask("configurationDone")
    adapter.response(attach)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        number: int = adapter.event("stopped")["threadId"]
        stack = adapter.ask("stackTrace", threadId=number, startFrame=0, levels=20)["stackFrames"]
        if stack and stack[0]["name"] == "work":
            return number
        if not any(
            message["event"] == "stopped" for message in adapter.events
        ):  # where it waited; some adapters tell of that twice
            adapter.ask("continue", threadId=number)
    raise AssertionError("the breakpoint is not reached")


def test_gdbs_adapter(debug: Debug, newest_gdb: str, adapter: Callable[..., Adapter]) -> None:
    debugged = debug("main")
    debugged.start()
    dap = adapter(newest_gdb, "-q", "-nx", "-i", "dap")
    begin(dap, "gdb")
    attach = dap.send("attach", program=str(debugged.machine.binary.path), target=str(debugged.server.address))
    number = break_at_call(dap, attach)
    (thread,) = dap.ask("threads")["threads"]
    assert thread["name"] == "main"
    frames = dap.ask("stackTrace", threadId=number)["stackFrames"]
    assert [frame["name"] for frame in frames[:2]] == ["work", "main"]
    assert frames[0]["line"] == line_of("call")
    scopes = {scope["name"]: scope for scope in dap.ask("scopes", frameId=frames[0]["id"])["scopes"]}
    assert "Registers" in scopes
    local = scopes["Locals"]["variablesReference"]
    variables = {each["name"]: each["value"] for each in dap.ask("variables", variablesReference=local)["variables"]}
    assert variables["sum"] == "0"
    assert dap.ask("evaluate", expression="counter", frameId=frames[0]["id"], context="watch")["result"] == "7"
    text = dap.ask("evaluate", expression="monitor threads", context="repl")["result"]
    assert "vCPU 0" in text + dap.output
    memory = dap.ask("readMemory", memoryReference=hex(debugged.at("constant")), count=4)
    assert memory["data"] == "0gQAAA=="  # 1234
    dap.ask("next", threadId=number)
    dap.event("stopped")
    dap.ask("setBreakpoints", source={"path": str(SOURCE)}, breakpoints=[])
    dap.ask("continue", threadId=number)
    dap.event("exited")
    assert debugged.join().status == 6


def test_lldbs_adapter(debug: Debug, adapter: Callable[..., Adapter]) -> None:
    """lldb-dap, or lldb-vscode, as it was called before LLDB 18."""
    names = ("lldb-dap", "lldb-vscode", "lldb-vscode-14", "lldb-dap-19", "/usr/lib/llvm-14/bin/lldb-vscode")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        program = require_tool("lldb-dap", package="lldb")
    debugged = debug("main")
    debugged.start()
    dap = adapter(program)
    begin(dap, "lldb")
    attach = dap.send(
        "attach",
        program=str(debugged.machine.binary.path),
        attachCommands=[f"gdb-remote {debugged.server.address}"],
        stopOnEntry=True,
    )
    number = break_at_call(dap, attach)
    (thread,) = dap.ask("threads")["threads"]
    assert "main" in thread["name"]
    frames = dap.ask("stackTrace", threadId=number, startFrame=0, levels=20)["stackFrames"]
    assert [frame["name"] for frame in frames[:2]] == ["work", "main"]
    scopes = {scope["name"]: scope for scope in dap.ask("scopes", frameId=frames[0]["id"])["scopes"]}
    local = scopes["Locals"]["variablesReference"]
    variables = {each["name"]: each["value"] for each in dap.ask("variables", variablesReference=local)["variables"]}
    assert variables["sum"] == "0"
    dap.ask("next", threadId=number)
    dap.event("stopped")
    dap.ask("setBreakpoints", source={"path": str(SOURCE)}, breakpoints=[])
    dap.ask("disconnect", terminateDebuggee=False)
    assert debugged.join().status == 6


class MachineInterface(Program):
    """A GDB that is spoken to in GDB/MI."""

    def __init__(self, program: str) -> None:
        super().__init__([program, "-q", "-nx", "-i", "mi"])
        self.number = 0

    def until(self, pattern: str) -> str:
        """The next line that the pattern fits, all before it being dropped."""
        deadline = time.monotonic() + SECONDS
        while True:
            found = re.search(rb"^(" + pattern.encode() + rb".*)\n", self.data, re.MULTILINE)
            if found is not None:
                self.data = self.data[found.end() :]
                return found[1].decode()
            self.more(deadline)

    def ask(self, command: str) -> str:
        """A command's result, which is not an error."""
        self.number += 1
        self.write(f"{self.number}{command}\n".encode())
        result = self.until(rf"{self.number}\^")
        assert "^error" not in result, result
        return result


def test_cppdbgs_commands(debug: Debug, gdb: str) -> None:
    """As Microsoft's C/C++ extension sends them."""
    debugged = debug("main")
    debugged.start()
    interface = MachineInterface(gdb_for(debugged.isa, gdb))
    try:
        interface.ask("-gdb-set mi-async on")
        interface.ask(f"-file-exec-and-symbols {debugged.machine.binary.path}")
        interface.ask(f"-target-select remote {debugged.server.address}")
        assert 'func="work"' in interface.ask(f"-break-insert -f {SOURCE.name}:{line_of('call')}")
        interface.ask("-exec-continue")
        assert 'reason="breakpoint-hit"' in interface.until(r"\*stopped")
        assert 'name="main"' in interface.ask("-thread-info")
        frames = interface.ask("-stack-list-frames 0 1")
        assert re.search(r'func="work".*func="main"', frames)
        assert 'name="sum",type="int",value="0"' in interface.ask(
            "-stack-list-variables --thread 1 --frame 0 --simple-values"
        )
        assert 'value="7"' in interface.ask("-data-evaluate-expression counter")
        assert 'contents="d2040000"' in interface.ask(f"-data-read-memory-bytes {debugged.at('constant'):#x} 4")
        interface.ask("-exec-next")
        assert 'reason="end-stepping-range"' in interface.until(r"\*stopped")
        interface.ask("-target-detach")
    finally:
        interface.close()
    assert debugged.join().status == 6


def test_what_is_written_for_editors_is_what_was_tried_here(debug: Debug) -> None:
    from rift_gdb.clients import find_program, launch_configurations

    debugged = debug("main")
    path = debugged.machine.binary.path
    assert isinstance(path, Path)
    codelldb, lldb_dap, cppdbg = launch_configurations(debugged.server.address, path, debugged.isa)
    assert codelldb["processCreateCommands"] == [f"gdb-remote {debugged.server.address}"]
    assert lldb_dap["gdb-remote-port"] == debugged.server.address.port
    assert codelldb["stopOnEntry"] is lldb_dap["stopOnEntry"] is cppdbg["stopAtConnect"] is True
    assert cppdbg["miDebuggerServerAddress"] == str(debugged.server.address)
    assert Path(cppdbg["miDebuggerPath"]).name == Path(find_program("gdb", debugged.isa)).name
