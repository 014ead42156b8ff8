"""Whatever a client sends, the server answers, and the guest and the process live on."""

from __future__ import annotations

import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from gdb_rsp import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_core import open_machine
from rift_gdb.packets import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core import Machine

SPIN = bytes.fromhex("ebfe")  # jmp to itself
_CASES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
registry.load()
_NUMBERS = st.one_of(
    st.sampled_from([b"0", b"1", b"-1", b"ffffffffffffffff", b"8000000000000000", b"10000", b"2", b"", b"zz", b"p1.1"]),
    st.integers(0, (1 << 64) + 5).map(lambda value: b"%x" % value),
)
_HARMLESS = sorted(set(registry.names()) - {"k", "D", "vKill", "c", "C", "vCont"})
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
                if packet[:1] in (b"s", b"S"):
                    continue  # going on is another test's
                client.send(packet)
                client.receive(20)
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
        assert client.receive(20)[:1] in (b"T", b"E", b"")
        assert client.ask("qAttached") == b"1"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with served() as made:
        yield made


def test_clients_that_come_and_go_leave_nothing(machine: Machine) -> None:
    import os

    alive(machine)
    descriptors = len(os.listdir("/proc/self/fd"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        alive(machine)
    address = machine.debug().address
    for _ in range(30):
        with socket.create_connection((address.hosts[0], address.port)) as raw:
            raw.sendall(b"$m0,ffff")
    alive(machine)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "KiB"
