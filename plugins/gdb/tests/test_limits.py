"""However much a client asks for, it is bounded, in memory and in time, and given back when it goes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rift_core.backend import Watchpoint
from rift_core.testing.leaks import TELLS_RESIDENT, resident
from rift_core.testing.tools import only_where
from rift_gdb.allocations import MOST_BYTES
from rift_gdb.errors import PacketError
from rift_gdb.guest_thread import GuestThread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged
    from gdb_rsp import Client

    Debug = Callable[..., Debugged]

GROWTH = 16 << 20
SECONDS = 20.0


def open_file(client: Client, debugged: Debugged) -> int:
    path = str(debugged.machine.binary.path).encode().hex()
    answer = client.ask(f"vFile:open:{path},0,0")
    return int(answer[1:], 16) if answer.startswith(b"F") and not answer.startswith(b"F-1") else -1


def how_often_open(path: Path) -> int:
    """Descriptors of this process that lead to a file."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found += os.readlink(f"/proc/self/fd/{name}") == str(path)
    return found


@only_where(TELLS_RESIDENT, "what a process has in memory is told otherwise here")
def test_open_files_take_no_memory(debug: Debug) -> None:
    """However large they are; and what a client leaves open is closed when it goes."""
    debugged = debug("main")
    path = debugged.machine.binary.path
    assert path is not None
    client = debugged.begin()
    large = path.with_name("large")
    with large.open("wb") as file:
        file.write(b"begin")
        file.truncate((1 << 28) + 3)
    debugged.server.add_payload(large, 0x7000_0000)
    before = resident()
    name = str(large).encode().hex()
    keys = [client.ask(f"vFile:open:{name},0,0") for _ in range(17)]
    assert keys[-1] == b"F-1,d", "so many are not opened"
    key = keys[3].decode()[1:]
    assert resident() - before < GROWTH
    assert client.ask(f"vFile:pread:{key},5,0") == b"F5;begin"
    assert client.ask(f"vFile:pread:{key},5,10000001") == b"F2;\0\0"
    assert client.ask(f"vFile:pread:{key},5,ffffffffffffffff") == b"F0;"
    assert client.ask(f"vFile:pread:{key},ffffffffffffffff,0").startswith(b"F7fe0;begin")
    assert how_often_open(large) == 16
    client.ask("D")
    gone(debugged)
    assert how_often_open(large) == 0
    large.unlink()


def gone(debugged: Debugged) -> None:
    deadline = time.monotonic() + 10
    while debugged.server.connected:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_memory_for_debuggers_has_a_limit_and_is_used_again(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    taken = [client.ask("_M1000000,rw") for _ in range(MOST_BYTES >> 24)]
    assert not any(answer.startswith(b"E") for answer in taken)
    assert client.ask("_M1000,rw").startswith(b"E"), "no more of it"
    place = int(taken[0], 16)
    client.write(place, b"left")
    assert client.ask(f"_m{place:x}") == b"OK"
    assert client.ask(f"_m{place:x}").startswith(b"E"), "it is given back already"
    assert client.ask("_M1000,rwx").startswith(b"E"), "with other permissions it is no use"
    assert int(client.ask("_M800000,rw"), 16) == place
    assert client.read(place, 4) == bytes(4)
    client.ask("D")
    gone(debugged)
    again = debugged.connect()
    again.stop("?")
    assert {again.ask("_M1000000,rw") for _ in taken} == set(taken)


def test_many_breakpoints_do_not_take_minutes(debug: Debug) -> None:
    """What one more costs does not depend on how many there are; some lie where nothing is mapped."""
    debugged = debug("main")
    client = debugged.begin(4)
    first = debugged.at("pages")
    began = time.monotonic()
    for number in range(1500):
        assert client.ask(f"Z0,{first + 4 * number:x},4") == b"OK"
    for number in range(500):
        client.ask(f"Z0,{0x6000_0000_0000 + 4 * number:x},4")
    assert client.ask(f"Z0,{debugged.at('twice'):x},1") == b"OK"
    stop = client.stop("vCont;c", 60)
    assert debugged.pc(stop) == debugged.at("twice")
    assert time.monotonic() - began < 30


def test_the_number_of_breakpoints_has_a_limit(debug: Debug, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rift_gdb.breakpoints.MOST", 3)
    debugged = debug("main")
    client = debugged.begin(4)
    place = debugged.at("pages")
    answers = [client.ask(f"Z0,{place + 4 * number:x},4") for number in range(4)]
    assert answers[:3] == [b"OK"] * 3
    assert b"3 breakpoints and watchpoints already" in answers[3]
    assert client.ask(f"Z2,{place:x},4").startswith(b"E")
    assert client.ask(f"z0,{place:x},4") == b"OK"
    assert client.ask(f"Z0,{place + 12:x},4") == b"OK"


@only_where(TELLS_RESIDENT, "what a process has in memory is told otherwise here")
def test_reading_takes_no_memory_for_good(debug: Debug) -> None:
    """The native side is told of pages again and again: here two that push each other out."""
    debugged = debug("main", sections={"memory": {"size": "64M"}})
    client = debugged.begin()
    assert client.monitor("phys on")
    held = debugged.server._session.connection._held  # type: ignore[union-attr]
    for number in range(3000):
        client.read((number % 2) * 0x200_0000, 0x7000)
        assert len(held) < 0x5000


def test_a_long_search_does_not_keep_the_machine_from_closing(debug: Debug, monkeypatch: pytest.MonkeyPatch) -> None:
    debugged = debug("main")
    client = debugged.begin()
    view = debugged.server._session.view()  # type: ignore[union-attr]

    def slow(address: int, size: int) -> bytes:
        time.sleep(0.01)
        return bytes(size)

    monkeypatch.setattr(view, "read", slow)
    monkeypatch.setattr(debugged.server._session, "view", lambda: view)
    client.send("qSearch:memory:0;100000000;abc")
    time.sleep(0.2)
    began = time.monotonic()
    debugged.machine.close()
    assert time.monotonic() - began < 5
    assert not debugged.server._thread.is_alive()


def test_a_watchpoint_that_is_not_possible_does_not_stand_in_the_way_of_others(
    debug: Debug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x86-64's debug registers watch for writes, and for all accesses: never for reads alone."""
    monkeypatch.setattr(GuestThread, "takes", lambda thread, b, w: all(each.access != "read" for each in w))
    debugged = debug("stores")
    target, place = debugged.server.target, debugged.at("watched")
    debugged.begin()
    assert not target._fits((), (Watchpoint(place, 8, "read"),))
    assert target._fits((), (Watchpoint(place, 8, "write"),))


def test_what_was_given_up_is_not_done_later(debug: Debug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told that a thread does not answer does not find its registers changed a moment later."""
    debugged = debug("spin")
    debugged.begin()
    target = debugged.server.target
    (thread,) = target.threads
    busy, free, done = threading.Event(), threading.Event(), threading.Event()

    def take_long() -> None:
        busy.set()
        assert free.wait(SECONDS)

    thread.context.post(take_long)
    assert busy.wait(SECONDS)
    with monkeypatch.context() as patched:
        patched.setattr("rift_gdb.inspection._REQUEST_SECONDS", 0.05)
        patched.setattr(GuestThread, "held", True)  # it was, a moment ago
        with pytest.raises(PacketError, match="does not answer"):
            target.ask(thread, done.set)
    free.set()
    thread.context.post(lambda: None).result(SECONDS)
    assert not done.is_set()
