"""Whatever a client sends, the server answers, and the guest and the process live on.

The limits: an answer within ``ANSWER_SECONDS``, and in the process's memory not more than ``GROWTH`` bytes for good.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from gdb_rsp import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_core import open_machine
from rift_core.testing.leaks import TELLS_RESIDENT, resident
from rift_core.testing.tools import only_where
from rift_gdb.connection import PACKET_LIMIT, frame
from rift_gdb.packets import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core import Machine

ANSWER_SECONDS = 10.0
GROWTH = 4 << 20
SPIN = bytes.fromhex("ebfe")  # jmp to itself
_CASES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
registry.load()
_NUMBERS = st.one_of(
    st.sampled_from([b"0", b"1", b"-1", b"ffffffffffffffff", b"8000000000000000", b"10000", b"2", b"", b"zz", b"p1.1"]),
    st.integers(0, (1 << 64) + 5).map(lambda value: b"%x" % value),
)
_HARMLESS = sorted(set(registry.names()) - {"k", "D", "vKill", "c", "C", "vCont"})
_STEPS = {"s", "S"}
_ARGUMENTS = st.one_of(
    st.binary(max_size=40),
    st.lists(_NUMBERS, max_size=4).map(b",".join),
    st.lists(_NUMBERS, max_size=4).map(b";".join),
    st.tuples(_NUMBERS, _NUMBERS, st.binary(max_size=20)).map(lambda t: t[0] + b"," + t[1] + b":" + t[2]),
    st.tuples(st.sampled_from([b"=", b":", b";thread:", b",", b";"]), _NUMBERS).map(b"".join),
)
_PACKETS = st.tuples(st.sampled_from(_HARMLESS).map(str.encode), _ARGUMENTS).map(b"".join)
_LONG = st.tuples(
    st.sampled_from([b"m", b"M", b"X", b"vCont;", b"qXfer:features:read:", b"vFile:open:", b"qRcmd,", b"G"]),
    st.integers(0, 0x18000),
    st.sampled_from([b"0", b"f", b";", b",", b"\xff", b":"]),
).map(lambda t: t[0] + t[1] * t[2])


@contextmanager
def served() -> Iterator[Machine]:
    """A machine for one case: packets may write anything anywhere. The fake backend is enough, since it is the server
    that is under test."""
    with open_machine(code=SPIN, isa="x86_64", backend="fake", debug={"listen": "0", "wait": True}) as machine:
        machine.thread().start()
        yield machine


@contextmanager
def client_of(machine: Machine) -> Iterator[Client]:
    client = Client(machine.debug().address)
    try:
        yield client
    finally:
        client.close()


def alive(machine: Machine) -> None:
    """A client is served as ever."""
    with client_of(machine) as client:
        assert client.stop("?")["thread"] == 1
        assert client.ask("qC") == b"QC1"
        assert len(client.ask("g")) > 100


@_CASES
@given(st.lists(st.one_of(_PACKETS, _LONG), min_size=1, max_size=12))
def test_any_packets(packets: list[bytes]) -> None:
    with served() as machine:
        with client_of(machine) as client:
            client.stop("?")
            for packet in packets:
                if packet[:1].decode("latin-1") in _STEPS:
                    continue  # going on is another test's
                client.send(packet)
                client.receive(ANSWER_SECONDS)
            assert client.ask("qAttached") == b"1"
        with client_of(machine) as again:
            assert again.ask("qAttached") == b"1"


@_CASES
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes(pieces: list[bytes]) -> None:
    with served() as machine:
        address = machine.debug().address
        with socket.create_connection((address.hosts[0], address.port)) as raw:
            for piece in pieces:
                raw.sendall(piece)
        with client_of(machine) as client:
            assert client.ask("qAttached") == b"1"


@_CASES
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"c", b"s", b"C0b", b"S05", b"r0,ffff", b"t", b"r5,1", b"C", b"x", b"", b"r", b"cc"]),
            st.sampled_from([b"", b":1", b":-1", b":0", b":2", b":zz", b":p1.1"]),
        ).map(b"".join),
        max_size=4,
    ).map(b";".join)
)
def test_any_ways_to_go_on(actions: bytes) -> None:
    """Interrupted after each: a thread that goes on comes back, one that does not is an error."""
    with served() as machine, client_of(machine) as client:
        client.stop("?")
        client.send(b"vCont;" + actions)
        client.interrupt()
        assert client.receive(ANSWER_SECONDS)[:1] in (b"T", b"E", b"")
        assert client.ask("qAttached") == b"1"


_WHOLE = _PACKETS.filter(lambda packet: packet[:1].decode("latin-1") not in _STEPS).map(frame)
_PIECES = st.one_of(
    _WHOLE,
    st.tuples(_WHOLE, st.integers(1, 6)).map(lambda t: t[0][: -t[1]]),  # its end is missing
    st.tuples(_WHOLE, st.integers(0, 40), st.sampled_from(b"$#}*\x03+-")).map(
        lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] :]
    ),
    st.integers(PACKET_LIMIT - 1, 2 * PACKET_LIMIT + 9).map(lambda size: b"$m" + b"0" * size),
    st.sampled_from([b"\x03", b"+", b"-", b"$", b"#", b"}", b"#00", b"$#00", b"++", b"\x03\x03"]),
)


class Stream:
    """A client's end of a connection that is read from at any time."""

    def __init__(self, machine: Machine) -> None:
        address = machine.debug().address
        self.socket = socket.create_connection((address.hosts[0], address.port), ANSWER_SECONDS)
        self.data = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while got := self.socket.recv(1 << 16):
                self.data += got
        except OSError:
            pass

    def send(self, data: bytes, seed: int = 0) -> None:
        """All of it, cut anywhere."""
        source = random.Random(seed)
        while data:
            size = source.choice([1, 2, 3, 7, 30, 1 << 16])
            self.socket.sendall(data[:size])
            data = data[size:]

    def answers(self, word: str) -> None:
        """A packet that is like no other is answered in time."""
        began = time.monotonic()
        self.socket.sendall(b"#00" + frame(b"qRcmd," + word.encode().hex().encode()))
        while word.encode().hex().encode() not in self.data:
            assert time.monotonic() - began < ANSWER_SECONDS
            time.sleep(0.002)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self.socket.close()


@_CASES
@given(st.lists(_PIECES, max_size=14), st.integers(0, 1 << 32))
def test_any_stream(pieces: list[bytes], seed: int) -> None:
    """Packets, whole, cut short, with something inside, and too long, in any pieces; others want to come meanwhile."""
    with served() as machine:
        stream = Stream(machine)
        other = Stream(machine)
        try:
            other.send(frame(b"?"))
            for number, piece in enumerate(pieces):
                stream.send(piece, seed + number)
            stream.answers("unheard-of")
        finally:
            other.close()
            stream.close()
        with client_of(machine) as client:
            assert client.stop("?")["thread"] == 1


@pytest.fixture
def machine() -> Iterator[Machine]:
    with served() as made:
        yield made


def garbage(machine: Machine, seed: int) -> None:
    """A client that sends much of everything that makes no sense."""
    source = random.Random(seed)
    stream = Stream(machine)
    try:
        for _ in range(20):
            content = source.choice(_HARMLESS).encode() + source.randbytes(source.choice([0, 3, 40, PACKET_LIMIT]))
            if content[:1].decode("latin-1") not in _STEPS:
                whole = frame(content)
                stream.send(whole[: source.choice([len(whole), len(whole) // 2])], seed)
        stream.answers("unheard-of")
    finally:
        stream.close()


@only_where(TELLS_RESIDENT, "what a process has in memory is told otherwise here")
def test_garbage_takes_no_memory(machine: Machine) -> None:
    for seed in range(20):
        garbage(machine, seed)
    before = resident()
    for seed in range(20, 220):
        garbage(machine, seed)
    assert resident() - before < GROWTH
    alive(machine)


@only_where(TELLS_RESIDENT, "what a process has in memory is told otherwise here")
def test_clients_that_come_and_go_leave_nothing(machine: Machine) -> None:
    alive(machine)
    before, descriptors = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        alive(machine)
    address = machine.debug().address
    for _ in range(30):
        with socket.create_connection((address.hosts[0], address.port)) as raw:
            raw.sendall(b"$m0,ffff")
    alive(machine)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert resident() - before < GROWTH
