"""Clients that cannot be accepted: the process has no file descriptor left, or they have gone again."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rift_gdb.address import parse_address
from rift_gdb.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener(parse_address("127.0.0.1:0"))
    yield listener
    listener.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_nobody_looks_for_a_while(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    (descriptor,), seconds = listener.descriptors()
    assert seconds is None
    with socket.create_connection((listener.address.hosts[0], listener.address.port)):
        assert select.select([descriptor], [], [], SECONDS)[0]
        for _ in range(2):
            with no_descriptors():
                assert listener.accept(descriptor) is None
            others, seconds = listener.descriptors()
            assert others == []
            assert seconds is not None
            assert 0 < seconds < 1
            time.sleep(seconds + 0.01)
            assert listener.descriptors() == ([descriptor], None)
        assert [record.getMessage() for record in caplog.records] == [
            f"a debugger that has come waits until it can be accepted: {os.strerror(errno.EMFILE)}"
        ]
        accepted = listener.accept(descriptor)
        assert accepted is not None
        accepted[0].close()


def test_nobody_waits_for_a_client_that_is_not_there(listener: Listener) -> None:
    (descriptor,), _ = listener.descriptors()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(listener.accept(descriptor)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found == [None]


class Failing:
    """A listening socket of a process that has no file descriptor left."""

    def __init__(self, server: socket.socket) -> None:
        self.server, self.looks, self.full = server, 0, True
        self.fileno, self.close = server.fileno, server.close

    def accept(self) -> tuple[socket.socket, Any]:
        self.looks += 1
        if self.full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.server.accept()


@pytest.mark.parametrize("served", [False, True], ids=["first", "second"])
def test_a_server_without_descriptors_does_not_spin(debug: Debug, served: bool) -> None:
    debugged = debug("main")
    debugged.start()
    client = debugged.connect() if served else None
    if client is not None:
        client.stop("?")
    listener = debugged.server._listener
    failing = [Failing(server) for server in listener.sockets]
    listener.sockets[:] = failing  # type: ignore[list-item]
    with socket.create_connection((debugged.server.address.hosts[0], debugged.server.address.port)):
        time.sleep(0.5)
        assert 1 <= sum(each.looks for each in failing) <= 5
        if client is not None:
            assert client.ask("qAttached") == b"1"
        for each in failing:
            each.full = False
        deadline = time.monotonic() + SECONDS
        while not served and not debugged.server.connected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
