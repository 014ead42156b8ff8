"""Where a server listens, and what debuggers on this machine are told: no machine is needed for it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from rift_gdb.address import Address, parse_address
from rift_gdb.clients import (
    ClientError,
    command_line,
    find_program,
    launch_configurations,
    shell_line,
    target_of,
    write_launch_file,
)
from rift_gdb.config import GdbConfig

PAYLOAD = Path("/somewhere/payload.elf")


@pytest.mark.parametrize(
    ("text", "hosts", "port"),
    [
        ("9999", ("127.0.0.1", "::1"), 9999),
        (":9999", ("127.0.0.1", "::1"), 9999),
        ("localhost:9999", ("127.0.0.1", "::1"), 9999),
        ("127.0.0.1:0", ("127.0.0.1",), 0),
        ("[::1]:9999", ("::1",), 9999),
        ("tcp:9999", ("127.0.0.1", "::1"), 9999),
        ("some.host:65535", ("some.host",), 65535),
        (" 9999 ", ("127.0.0.1", "::1"), 9999),
    ],
)
def test_addresses_of_hosts(text: str, hosts: tuple[str, ...], port: int) -> None:
    address = parse_address(text)
    assert (address.hosts, address.port, address.path) == (hosts, port, None)


@pytest.mark.parametrize("text", ["unix:/run/rift", "/run/rift"])
def test_addresses_of_unix_sockets(text: str) -> None:
    assert parse_address(text).path == Path("/run/rift")
    assert parse_address(text).is_local


def test_a_unix_socket_may_be_anywhere() -> None:
    assert parse_address("unix:here").path == Path("here")
    assert parse_address("./here").path == Path("here")
    assert parse_address("unix:~/here").path == Path.home() / "here"


@pytest.mark.parametrize("text", ["", "host", "host:", "host:no", ":-1", "65536", "::1:9999", "unix:", "9999x", "1.5"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|path"):
        parse_address(text)
    with pytest.raises(ValidationError, match=r"address|path"):
        GdbConfig(listen=text)


@pytest.mark.parametrize(
    ("text", "local"),
    [("9999", True), ("127.3.2.1:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("[::]:1", False), ("h:1", False)],
)
def test_who_can_come(text: str, local: bool) -> None:
    assert parse_address(text).is_local is local


@pytest.mark.parametrize("text", ["127.0.0.1:9999", "[::1]:9999", "unix:/run/rift", "h:1"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_address(text)) == text
    assert parse_address(str(parse_address(text))) == parse_address(text)


def test_settings() -> None:
    assert GdbConfig(listen=9999).listen == "9999"  # type: ignore[arg-type]
    assert parse_address(GdbConfig().listen) == Address("127.0.0.1", 1234)
    with pytest.raises(ValidationError):
        GdbConfig(on_disconnect="explode")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        GdbConfig(lisen="9999")  # type: ignore[call-arg]


# -- debuggers on this machine -------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_the_gdb_that_knows_the_isa(programs: Path) -> None:
    with pytest.raises(ClientError, match="package gdb-multiarch"):
        find_program("gdb", "aarch64")
    with pytest.raises(ClientError, match=r"package gdb$"):
        find_program("gdb", "x86_64")
    with pytest.raises(ClientError, match=r"no lldb is installed: install the package lldb"):
        find_program("lldb", "x86_64")
    put(programs, "gdb")
    assert find_program("gdb", "x86_64") == str(programs / "gdb")
    assert find_program("gdb", "aarch64") == str(programs / "gdb"), "it may know more than the host's"
    put(programs, "gdb-multiarch", "my-gdb")
    assert find_program("gdb", "x86_64") == str(programs / "gdb")
    assert find_program("gdb", "aarch64") == str(programs / "gdb-multiarch")
    assert find_program("gdb", "x86_64", "my-gdb") == str(programs / "my-gdb")
    with pytest.raises(ClientError, match="no your-gdb is installed"):
        find_program("gdb", "x86_64", "your-gdb")


def test_vs_code_is_given_a_gdb_that_is_there(programs: Path) -> None:
    def given() -> object:
        return launch_configurations(parse_address("9999"), PAYLOAD, "aarch64")[2]["miDebuggerPath"]

    assert given() == "gdb-multiarch", "what is to be installed"
    put(programs, "gdb")
    assert given() == "gdb", "all that an AArch64 machine needs"
    put(programs, "gdb-multiarch")
    assert given() == "gdb-multiarch"


def test_how_debuggers_connect() -> None:
    tcp, unix = parse_address("[::1]:9999"), parse_address("unix:/run/rift")
    assert target_of("gdb", tcp) == "target remote [::1]:9999"
    assert target_of("gdb", unix) == "target remote /run/rift"
    assert target_of("lldb", tcp) == "gdb-remote [::1]:9999"
    assert target_of("lldb", unix) == "process connect --plugin gdb-remote unix-connect:///run/rift"
    assert command_line("gdb", "g", tcp, PAYLOAD) == ["g", "-q", str(PAYLOAD), "-ex", target_of("gdb", tcp)]
    monitor = "command regex monitor 's/^(.*)$/process plugin packet monitor %1/'"
    assert command_line("lldb", "l", tcp, None) == ["l", "-o", monitor, "-o", target_of("lldb", tcp)]
    assert shell_line("lldb", tcp, PAYLOAD) == f"lldb {PAYLOAD} -o 'gdb-remote [::1]:9999'"
    spaces = Path("/a folder/it's")
    assert shlex.split(shell_line("gdb", tcp, spaces)) == ["gdb", str(spaces), "-ex", target_of("gdb", tcp)]


def test_vs_code_keeps_what_is_not_ours(tmp_path: Path) -> None:
    address = parse_address("127.0.0.1:9999")
    entries = launch_configurations(address, PAYLOAD, "aarch64")
    path = write_launch_file(tmp_path, entries)
    assert path == tmp_path / ".vscode" / "launch.json"
    data = json.loads(path.read_text())
    assert data["version"] == "0.2.0"
    assert {entry["type"] for entry in data["configurations"]} == {"lldb", "lldb-dap", "cppdbg"}
    assert all(str(PAYLOAD) in json.dumps(entry) and "9999" in json.dumps(entry) for entry in data["configurations"])
    data["configurations"].insert(0, {"name": "Mine", "type": "node"})
    data["inputs"] = [1]
    path.write_text(json.dumps(data))
    write_launch_file(tmp_path, launch_configurations(parse_address("8888"), PAYLOAD, "x86_64"))
    again = json.loads(path.read_text())
    assert again["inputs"] == [1]
    assert [entry["name"] for entry in again["configurations"]] == ["Mine", *(entry["name"] for entry in entries)]
    assert "9999" not in path.read_text()


@pytest.mark.parametrize("content", ["// mine\n{}", "[]", '{"configurations": 5}', '{"configurations": [1]}', "\xff"])
def test_a_file_of_vs_codes_that_is_no_plain_json_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".vscode" / "launch.json"
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    entries = launch_configurations(parse_address("9999"), PAYLOAD, "x86_64")
    with pytest.raises(ClientError, match="left as it is"):
        write_launch_file(tmp_path, entries)
    assert path.read_bytes() == content.encode("latin-1")


def test_vs_code_does_not_connect_by_unix_sockets() -> None:
    with pytest.raises(ClientError, match="--port"):
        launch_configurations(parse_address("unix:/run/rift"), PAYLOAD, "x86_64")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / ".vscode").write_text("a file")
    with pytest.raises(ClientError, match="cannot be written"):
        write_launch_file(tmp_path, [])
