"""Executables that the program puts into guest memory beside the machine's own: debuggers find their symbols."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import pytest
from test_gdb import Gdb
from test_lldb import Lldb

from rift_core import ConfigError
from rift_core.build import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 60.0
BASE = 0x5000_0000
SOURCE = """
__attribute__((noinline)) int helper(volatile int *value) {
    return *value + 1000;
}

int begin(int value) {
    volatile int place = value;
    return helper(&place);
}
"""


class Second(NamedTuple):
    """A second executable: its file, and where its first segment stands."""

    path: Path
    address: int

    def put_into(self, debugged: Debugged) -> None:
        """What a program does that loads executables by itself."""
        for virtual, content in segments(self.path.read_bytes()):
            start = virtual & ~0xFFF
            debugged.machine.map(start, (virtual + len(content) - start + 0xFFF) & ~0xFFF, "rx")
            debugged.machine.engine.write_virtual(virtual, content)

    def function(self) -> int:
        """The address of ``begin``."""
        entry: int = struct.unpack_from("<Q", self.path.read_bytes(), 24)[0]
        return entry


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Address and content of what an ELF file has loaded."""
    offset, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + 56 * at) for at in range(count)]
    return [(header[3], data[header[2] : header[2] + header[5]]) for header in headers if header[0] == 1 and header[5]]


@pytest.fixture
def second(kind: tuple[str, str], tmp_path: Path) -> Second:
    source, output = tmp_path / "second.c", tmp_path / "second.elf"
    source.write_text(SOURCE)
    build(source, output, kind[1], optimize="1", entry="begin", base=BASE, runtime=False)
    return Second(output, min(address for address, _ in segments(output.read_bytes())))


class Caller:
    """Calls the second executable on a thread of its own, so that debuggers can stop it."""

    def __init__(self, debugged: Debugged, address: int) -> None:
        self.results: list[int] = []
        self.thread = threading.Thread(target=lambda: self.results.append(debugged.machine.call(address, 5)))
        self.thread.start()

    def result(self) -> int:
        self.thread.join(SECONDS)
        return self.results[0]


def test_the_list_and_the_file(debug: Debug, second: Second) -> None:
    debugged = debug("main")
    client = debugged.begin()
    assert list(ElementTree.fromstring(client.document("libraries"))) == []
    name = str(second.path).encode().hex()
    assert client.ask(f"vFile:open:{name},0,0") == b"F-1,2", "it is nobody's yet"
    debugged.server.add_payload(second.path, second.address)
    (library,) = ElementTree.fromstring(client.document("libraries"))
    assert library.get("name") == str(second.path)
    assert [segment.get("address") for segment in library] == [f"{second.address:#x}"]
    handle = client.ask(f"vFile:open:{name},0,0").decode()[1:]
    assert client.ask(f"vFile:pread:{handle},4,0") == b"F4;\x7fELF"
    assert client.ask("vCont;c") == b"W06", "what it has read is no news"


def test_a_client_that_stands_is_told_before_it_goes_on(debug: Debug, second: Second) -> None:
    debugged = debug("main")
    client = debugged.begin()
    client.document("libraries")
    debugged.server.add_payload(second.path, second.address)
    stop = client.stop("vCont;c")
    assert "library" in stop
    assert stop["signal"] == 0
    assert client.ask("vCont;c") == b"W06", "it is told once"


def test_a_client_that_waits_is_told_at_once(debug: Debug, second: Second) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    client.document("libraries")
    client.send("vCont;c")
    debugged.server.add_payload(second.path, second.address)
    assert "library" in client.stop()
    client.send("vCont;c")
    client.interrupt()
    assert client.stop()["signal"] == 2


def test_a_client_that_does_not_ask_is_told_nothing(debug: Debug, second: Second) -> None:
    debugged = debug("main")
    client = debugged.begin()
    debugged.server.add_payload(second.path, second.address)
    assert client.ask("vCont;c") == b"W06"


def test_gdb_finds_its_symbols(debug: Debug, gdb: str, second: Second) -> None:
    debugged = debug("spin")
    second.put_into(debugged)
    debugged.server.add_payload(second.path, second.address)
    caller = Caller(debugged, second.function())
    text = Gdb(gdb).run(debugged, "info sharedlibrary\nbreak helper\ncontinue\nprint *value\ndelete\ndetach\n")
    assert second.path.name in text
    assert "Breakpoint 1, helper (value=" in text
    assert "$1 = 5" in text
    assert caller.result() == 1005


def test_gdb_notices_one_that_comes_later(debug: Debug, gdb: str, second: Second) -> None:
    """A breakpoint that waits for it is set as soon as it is there."""
    debugged = debug("spin")
    debugged.start()
    callers: list[Caller] = []

    def come() -> None:
        debugged.server.wait_for_client(SECONDS)
        counts = debugged.machine.symbol("counts").view().cast("q")
        while counts[0] == 0:
            threading.Event().wait(0.01)
        with debugged.machine.pause():
            second.put_into(debugged)
        debugged.server.add_payload(second.path, second.address)
        while len(debugged.server.target.breakpoints.software) == 0:
            threading.Event().wait(0.01)
        callers.append(Caller(debugged, second.function()))

    coming = threading.Thread(target=come)
    coming.start()
    text = Gdb(gdb).run(debugged, "set breakpoint pending on\nbreak helper\ncontinue\nprint *value\ndelete\ndetach\n")
    coming.join(SECONDS)
    assert "Breakpoint 1, helper (value=" in text
    assert "$1 = 5" in text
    assert callers[0].result() == 1005


def test_lldb_takes_the_file_from_its_user(debug: Debug, lldb: str, second: Second) -> None:
    """It does not look into the list by itself."""
    debugged = debug("spin")
    second.put_into(debugged)
    debugged.server.add_payload(second.path, second.address)
    caller = Caller(debugged, second.function())
    slide = f"--slide 0 --file {second.path}"
    text = Lldb(lldb).run(
        debugged,
        f"target modules add {second.path}\ntarget modules load {slide}\nbreakpoint set -n helper\ncontinue\n"
        "frame variable *value\nbreakpoint delete -f\nprocess detach\n",
    )
    assert "stop reason = breakpoint 1.1" in text
    assert "(volatile int) *value = 5" in text
    assert caller.result() == 1005


def test_what_cannot_be_added(debug: Debug, tmp_path: Path) -> None:
    server = debug("main").server
    with pytest.raises(ConfigError, match="no such file"):
        server.add_payload(tmp_path / "nothing", BASE)
    (tmp_path / "something").touch()
    with pytest.raises(ConfigError, match="no address"):
        server.add_payload(tmp_path / "something", -1)
