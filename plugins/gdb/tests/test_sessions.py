"""Clients come and go: hello, detaching, killing, a second one, one that vanishes, files."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest
from gdb_rsp import Client

from rift_core import ConfigError, ExitHandler, ExitKind, Resume, Stop, open_machine
from rift_core.dispatch import Dispatcher
from rift_gdb.listener import ListenError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


def counting(debugged: Debugged, seconds: float = 5.0) -> bool:
    """Whether the guest runs."""
    view = debugged.machine.symbol("counts").view().cast("q")
    before, deadline = view[0], time.monotonic() + seconds
    while view[0] == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def stands(debugged: Debugged) -> bool:
    return not counting(debugged, 0.1)


def test_what_is_announced_is_answered(debug: Debug) -> None:
    debugged = debug("main")
    debugged.start()
    client = debugged.connect(features="swbreak+;hwbreak+;xmlRegisters=i386")
    assert "swbreak+" in client.supported
    assert "PacketSize=10000" in client.supported
    assert "no-resumed" not in client.supported, "the client has not announced it"
    for kind, annex in (
        ("features", "target.xml"),
        ("threads", ""),
        ("memory-map", ""),
        ("libraries", ""),
        ("exec-file", ""),
    ):
        assert f"qXfer:{kind}:read+" in client.supported
        assert client.document(kind, annex)
    assert client.document("exec-file") == str(debugged.machine.binary.path)
    assert client.ask("qXfer:features:read:nonsense:0,100").startswith(b"E")
    assert client.ask("qXfer:nonsense:read::0,100") == b""
    assert client.ask("vCont?") == b"vCont;c;C;s;S;t;r"
    assert client.ask("vMustReplyEmpty") == b""
    assert client.ask("qTStatus") == b""
    assert client.ask("qAttached") == b"1"


def test_breakpoint_reasons_only_if_the_client_knows_them(debug: Debug) -> None:
    debugged = debug("main")
    debugged.start()
    client = debugged.connect(features="multiprocess+")
    client.stop("?")
    assert client.ask(f"Z0,{debugged.at('twice'):x},1") == b"OK"
    assert "swbreak" not in client.stop("vCont;c")


def test_acknowledgements_until_they_are_not_wanted(debug: Debug) -> None:
    debugged = debug("main")
    debugged.start()
    client = debugged.connect(acknowledge=True)
    client.socket.sendall(b"$qAttached#00")  # a wrong checksum: the client is asked again
    deadline = time.monotonic() + 5
    seen = b""
    while b"-" not in seen and time.monotonic() < deadline:
        seen += client.socket.recv(64)
    assert b"-" in seen
    assert client.ask("qAttached") == b"1"
    client.send("qAttached")
    assert client._receive(SECONDS) == b"1"
    client.socket.sendall(b"-")  # once more, please
    assert client._receive(SECONDS) == b"1"


def test_detaching_lets_the_guest_run_without_breakpoints(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('bump'):x},1") == b"OK"
    client.stop("vCont;c")
    assert stands(debugged)
    assert client.ask("D") == b"OK"
    assert counting(debugged)
    with pytest.raises((EOFError, ConnectionError)):
        client.ask("?")
    # The next one finds it running, and no breakpoint left.
    again = debugged.connect()
    assert again.stop("?")["signal"] == 5
    assert stands(debugged)
    again.send("vCont;c")
    assert counting(debugged)


@pytest.mark.parametrize(("packet", "answer"), [("k", b"X09"), ("vKill;1", b"OK")])
def test_killing_ends_guest_threads_and_nothing_else(debug: Debug, packet: str, answer: bytes) -> None:
    debugged = debug("spin", "spin_too")
    client = debugged.begin()
    assert client.ask(packet) == answer
    for thread in debugged.machine.threads:
        assert thread.join(SECONDS) == Stop(0, "killed")
    assert debugged.machine.call("twice", 4) == 8, "the machine is as good as before"


def test_a_second_client_is_refused_with_the_reason(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    import socket

    address = debugged.server.address
    with socket.create_connection((address.hosts[0], address.port)) as second:
        second.settimeout(SECONDS)
        second.sendall(b"$qSupported:swbreak+#00".replace(b"#00", b"#%02x" % (sum(b"qSupported:swbreak+") & 0xFF)))
        data = b""
        while True:
            got = second.recv(4096)
            if not got:
                break
            data += got
    assert b"another debugger, from 127.0.0.1, is connected already" in data
    assert client.ask("qAttached") == b"1", "the first one has noticed nothing"


def test_a_second_client_that_says_nothing_does_not_stop_the_first(debug: Debug) -> None:
    import socket

    debugged = debug("main")
    client = debugged.begin()
    address = debugged.server.address
    with socket.create_connection((address.hosts[0], address.port)):
        assert client.ask("qAttached") == b"1"


def test_a_client_that_vanishes_leaves_the_guest_running(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('bump'):x},1") == b"OK"
    client.stop("vCont;c")
    client.close()
    assert counting(debugged)


def test_or_stopped_if_that_is_wanted(debug: Debug) -> None:
    debugged = debug("spin", on_disconnect="stop")
    client = debugged.begin()
    client.send("vCont;c")
    assert counting(debugged)
    client.close()
    deadline = time.monotonic() + 5
    while debugged.server.connected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stands(debugged)
    again = debugged.connect()
    again.stop("?")
    again.send("vCont;c")
    assert counting(debugged)


def test_or_ended(debug: Debug) -> None:
    debugged = debug("spin", on_disconnect="kill")
    debugged.begin().close()
    assert debugged.join() == Stop(0, "killed")


def test_a_client_before_any_thread(debug: Debug) -> None:
    """It waits a moment; then it is told that nothing runs."""
    debugged = debug("spin")
    client = debugged.connect()
    timer = threading.Timer(0.3, debugged.start)
    timer.start()
    assert client.stop("?")["thread"] == 1
    timer.join()
    other = debug("spin")
    assert other.connect().ask("?") == b"W00"


def test_a_client_that_comes_while_the_host_answers_an_exit(debug: Debug) -> None:
    """There is a thread; it stops when the handler returns."""
    debugged = debug("unanswered", wait=False)
    inside, leave = threading.Event(), threading.Event()

    def answer(vcpu: object, exit: object) -> Resume:
        inside.set()
        assert leave.wait(SECONDS)
        return Resume()

    doorbell = debugged.machine.doorbell + 0x700
    handler = ExitHandler("slow", frozenset({ExitKind.MMIO}), range(doorbell, doorbell + 8), answer)
    debugged.machine.engine.dispatcher = Dispatcher([handler])
    debugged.start()
    assert inside.wait(SECONDS)
    client = debugged.connect()
    stop = client.stop("?")
    assert stop["thread"] == 1
    assert f"{debugged.numbers['pc']:02x}" not in stop, "nothing is made up"
    refusal = client.ask("g")
    leave.set()
    assert b"all threads are inside exit handlers" in refusal
    deadline = time.monotonic() + SECONDS
    while client.ask("g").startswith(b"E"):
        assert time.monotonic() < deadline
    assert client.ask("vCont;c") == b"W04"


def test_the_exit_status_ends_the_session(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin(4)
    assert client.ask("vCont;c") == b"W0c"
    assert debugged.join().status == 12
    with pytest.raises((EOFError, ConnectionError)):
        client.ask("?")


def test_a_thread_killed_from_outside_while_it_is_stopped(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    debugged.machine.kill()
    assert debugged.join() == Stop(0, "killed")
    assert client.ask("vCont;c") == b"X09"


def test_closing_the_machine_while_a_client_waits(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    client.send("vCont;c")
    assert counting(debugged)
    began = time.monotonic()
    debugged.machine.close()
    assert time.monotonic() - began < 5
    assert client.receive() == b"X09"


def test_closing_the_machine_while_it_is_stopped(debug: Debug) -> None:
    debugged = debug("spin")
    debugged.begin()
    began = time.monotonic()
    debugged.machine.close()
    assert time.monotonic() - began < 5


def test_dropping_the_machine_closes_it(kind: tuple[str, str], built: Callable[..., Path]) -> None:
    """The server does not keep a machine that nobody else has."""
    import gc

    backend, isa = kind
    machine = open_machine({"binary": {"path": str(built(isa))}, "backend": backend, "debug": {"listen": "0"}})
    engine, server = machine.engine, machine.debug()
    del machine
    gc.collect()
    deadline = time.monotonic() + 10
    while not engine.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.closed
    with pytest.raises(OSError, match=r"."):
        Client(server.address)


def test_the_payloads_file_can_be_read_and_no_other(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    path = debugged.machine.binary.path
    assert path is not None
    content = path.read_bytes()

    def file(packet: str) -> tuple[int, bytes]:
        answer = client.ask(f"vFile:{packet}")
        head, _, data = answer.partition(b";")
        return int(head[1:].split(b",")[0], 16), data

    assert file("setfs:0") == (0, b"")
    for name in ("/etc/passwd", "just probing", str(path) + "x"):
        assert file(f"open:{name.encode().hex()},0,0")[0] == -1
    assert file(f"open:{str(path).encode().hex()},1,0")[0] == -1, "not for writing"
    number, _ = file(f"open:{str(path).encode().hex()},0,0")
    assert number > 0
    size, record = file(f"fstat:{number:x}")
    assert size == len(record) == 64
    assert int.from_bytes(record[28:36], "big") == len(content)
    data = b""
    while True:
        count, piece = file(f"pread:{number:x},1000,{len(data):x}")
        assert count == len(piece)
        if not piece:
            break
        data += piece
    assert data == content
    assert file(f"close:{number:x}") == (0, b"")
    assert file(f"pread:{number:x},10,0")[0] == -1


def test_a_unix_socket_is_for_its_owner(debug: Debug, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    debugged = debug("main", listen=f"unix:{path}")
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    client = debugged.begin()
    assert client.ask("vCont;c") == b"W06"
    debugged.machine.close()
    assert not path.exists()


def test_both_of_this_machines_own_addresses(debug: Debug) -> None:
    import socket

    debugged = debug("main", listen="localhost:0")
    debugged.start()
    port = debugged.server.address.port
    families = {server.family for server in debugged.server._listener.sockets}
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        if family in families:
            with socket.create_connection((host, port), SECONDS):
                pass
    assert socket.AF_INET in families


def test_the_debugger_costs_an_exit_nothing_while_nobody_is_there(debug: Debug) -> None:
    """No observer, no handler, nothing that the loop asks: only runs have become a little longer."""
    debugged = debug("main", wait=False)
    machine = debugged.machine
    assert not machine.dispatcher._observers
    assert not any(handler.name.startswith("gdb") for handler in machine.dispatcher.handlers)
    asked = []
    hooks = machine.engine.hooks
    original = hooks.exit_unanswered
    hooks.exit_unanswered = lambda *words: asked.append(words) or original(*words)  # type: ignore[method-assign]
    try:
        assert machine.call("twice", 3) == 6
    finally:
        hooks.exit_unanswered = original  # type: ignore[method-assign]
    assert not asked


def test_forked_children_have_no_debugger(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    child = os.fork()
    if child == 0:
        os._exit(0 if debugged.server.connected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.ask("qAttached") == b"1"


def test_other_machines_are_not_let_in_by_accident(kind: tuple[str, str], built: Callable[..., Path]) -> None:
    backend, isa = kind
    configuration = {"binary": {"path": str(built(isa))}, "backend": backend}
    with pytest.raises(ConfigError, match="allow_remote"):
        open_machine({**configuration, "debug": {"listen": "0.0.0.0:0"}})
    with open_machine(configuration) as machine, pytest.raises(ConfigError, match="no address"):
        machine.debug(listen="nonsense")


def test_letting_other_machines_in_is_warned_of(debug: Debug, capfd: pytest.CaptureFixture[str]) -> None:
    debug("main", listen="0.0.0.0:0", allow_remote=True)
    assert "no authentication" in capfd.readouterr().err


def test_from_python(kind: tuple[str, str], built: Callable[..., Path]) -> None:
    backend, isa = kind
    with open_machine({"binary": {"path": str(built(isa))}, "backend": backend}) as machine:
        server = machine.debug(listen="0", wait=True)
        assert machine.debug() is server
        assert machine.extension("gdb") is server
        assert not server.connected
        assert not server.wait_for_client(0.01)
        machine.thread().start()
        client = Client(server.address)
        client.stop("?")
        assert server.wait_for_client(5)
        assert client.ask("vCont;c") == b"W06"
        client.close()


def test_clients_that_are_turned_away_do_not_keep_the_first_waiting(debug: Debug) -> None:
    """Silent ones, and one that talks without end."""
    import socket

    debugged = debug("main")
    client = debugged.begin()
    address = debugged.server.address
    others = []
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection((address.hosts[0], address.port)) as noisy:
                noisy.settimeout(0.2)
                while not stop.is_set():
                    noisy.sendall(b"+" * 4096)

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        began = time.monotonic()
        for _ in range(12):
            others.append(socket.create_connection((address.hosts[0], address.port)))
            assert client.ask("qAttached") == b"1"
        assert time.monotonic() - began < 10
        others[0].settimeout(SECONDS)
        with contextlib.suppress(ConnectionError):
            assert others[0].recv(16) == b"", "so many are not kept"
    finally:
        stop.set()
        flooder.join()
        for other in others:
            other.close()


def test_closing_the_machine_while_the_client_does_not_read(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    wanted = b"$qXfer:features:read:target.xml:0,ffff#"
    wanted += b"%02x" % (sum(wanted[1:-1]) & 0xFF)
    client.socket.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            client.socket.sendall(wanted * 100)
    began = time.monotonic()
    debugged.machine.close()
    assert time.monotonic() - began < 4
    assert not debugged.server._thread.is_alive()


def test_a_server_that_cannot_listen_leaves_the_machine_as_it_was(
    kind: tuple[str, str], built: Callable[..., Path]
) -> None:
    """Not paused for ever, and no descriptor lost."""
    import socket

    backend, isa = kind
    configuration = {"binary": {"path": str(built(isa))}, "backend": backend}
    with open_machine(configuration) as machine, socket.create_server(("127.0.0.1", 0)) as taken:
        machine.call("twice", 1)
        before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
        with pytest.raises(ListenError, match="in use"):
            machine.debug(listen=f"127.0.0.1:{taken.getsockname()[1]}", wait=True)
        assert machine.call("twice", 4, timeout=SECONDS) == 8
        assert not before or len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_closed_server_writes_to_nobody_elses_file(debug: Debug, tmp_path: Path) -> None:
    """The number of its pipe may be another file's by then."""
    debugged = debug("main")
    server, path = debugged.server, debugged.machine.binary.path
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    debugged.machine.close()
    files = [(tmp_path / str(n)).open("wb", buffering=0) for n in range(len(before) + 16)]
    assert path is not None
    server.add_payload(path, 0x1000)
    for file in files:
        file.close()
    assert not any((tmp_path / str(n)).stat().st_size for n in range(len(files)))


def test_forked_children_do_not_keep_connections(debug: Debug) -> None:
    """The client hears of the end, and the port is free, although a child lives on."""
    import socket

    debugged = debug("main")
    client = debugged.begin()
    reader, writer = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(tell, b"!")
        os.read(reader, 1)
        os._exit(0)
    try:
        os.close(reader)
        assert os.read(ready, 1) == b"!"
        address = debugged.server.address
        assert client.ask("D") == b"OK"
        with pytest.raises((EOFError, ConnectionError)):
            client.ask("?")
        debugged.machine.close()
        with pytest.raises(ConnectionError):
            socket.create_connection((address.hosts[0], address.port)).close()
    finally:
        for descriptor in (writer, ready, tell):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_going_on_twice_is_an_error(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    client.send("vCont;c")
    assert client.ask("vCont;c").startswith(b"E")
    client.interrupt()
    assert client.stop()["signal"] == 2
