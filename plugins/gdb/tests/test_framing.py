"""The packet layer by itself: what comes out of a byte stream, whatever is in it; and the native answers."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_gdb.connection import ClientGoneError, Connection, Event, crc, frame, from_hex, to_hex
from rift_gdb.registers import Image, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 256
_CASES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Pair:
    """A connection and the client's end of it."""

    def __init__(self, limit: int = LIMIT, *, acknowledge: bool = False) -> None:
        self.client, server = socket.socketpair()
        self.client.settimeout(5)
        server.setblocking(False)
        self.connection = Connection(server, limit)
        if not acknowledge:
            self.connection.stop_acknowledging()

    def events(self) -> list[Any]:
        """All that has come so far."""
        found = []
        while (incoming := self.connection.next(seconds=0)).event is not Event.TIMEOUT:
            found.append(incoming)
            if incoming.event is Event.CLOSED:
                break
        return found

    def close(self) -> None:
        self.client.close()
        self.connection.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def packet(content: bytes) -> bytes:
    """As a client frames it, escapes included; an own implementation to compare with."""
    escaped = b"".join(b"}" + bytes([b ^ 0x20]) if b in b"#$}*" else bytes([b]) for b in content)
    return b"$" + escaped + b"#%02x" % (sum(escaped) & 0xFF)


@_CASES
@given(st.binary(max_size=LIMIT))
def test_any_content_survives(content: bytes) -> None:
    assert frame(content) == packet(content)
    made = Pair()
    try:
        made.client.sendall(packet(content))
        (incoming,) = made.events()
        assert (incoming.event, incoming.data) == (Event.PACKET, content)
        made.connection.send(content)
        assert made.client.recv(4 * LIMIT) == packet(content)
    finally:
        made.close()


@_CASES
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 1 << 32))
def test_packets_in_any_pieces(contents: list[bytes], seed: int) -> None:
    """The stream is cut anywhere; interrupts and acknowledgements stand between packets."""
    source = random.Random(seed)
    stream, expected = b"", []
    for content in contents:
        between = source.choice([b"", b"+", b"-", b"\x03", b"noise"])
        stream += between + packet(content)
        expected += [(Event.INTERRUPT, b"")] if between == b"\x03" else []
        expected.append((Event.PACKET, content))
    made = Pair()
    try:
        got = []
        while stream:
            size = source.randint(1, 20)
            made.client.sendall(stream[:size])
            stream = stream[size:]
            got += [(incoming.event, incoming.data) for incoming in made.events()]
        assert got == expected
    finally:
        made.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(st.binary(max_size=600), st.sampled_from([b"$", b"#", b"}", b"#00", b"$#00", b"\x03", b"+-"])))
)
def test_garbage_ends_in_events_and_the_next_packet_is_understood(pieces: list[bytes]) -> None:
    made = Pair()
    try:
        for piece in pieces:
            made.client.sendall(piece)
            for incoming in made.events():
                assert incoming.event in (Event.PACKET, Event.INTERRUPT, Event.DAMAGED, Event.OVERSIZED)
                assert len(incoming.data) <= LIMIT
        # An end of whatever was begun, then something whole.
        made.client.sendall(b"#00" + packet(b"qAttached"))
        last = made.events()[-1]
        assert (last.event, last.data) == (Event.PACKET, b"qAttached")
    finally:
        made.close()


def test_damage_is_asked_for_again_or_told(pair: Pair) -> None:
    pair.client.sendall(b"$abc#00")
    assert [incoming.event for incoming in pair.events()] == [Event.DAMAGED]
    pair.client.sendall(b"$abc}#a3")  # the last byte begins an escape
    assert [incoming.event for incoming in pair.events()] == [Event.DAMAGED]
    polite = Pair(acknowledge=True)
    polite.client.sendall(b"$abc#00" + packet(b"abc"))
    assert [incoming.data for incoming in polite.events()] == [b"abc"]
    assert polite.client.recv(16) == b"-+"
    polite.close()


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1, 2 * LIMIT + 4, 10 * LIMIT, 1 << 20])
def test_too_much_is_skipped(pair: Pair, size: int) -> None:
    import threading

    def send() -> None:
        pair.client.sendall(packet(b"x" * size) + packet(b"next"))

    sender = threading.Thread(target=send)
    sender.start()
    events = []
    while not events or events[-1].data != b"next":
        incoming = pair.connection.next(seconds=5)
        assert incoming.event is not Event.TIMEOUT
        events.append(incoming)
    sender.join()
    expected = Event.PACKET if size <= LIMIT else Event.OVERSIZED
    assert [incoming.event for incoming in events] == [expected, Event.PACKET]


def test_a_packet_that_never_ends_takes_no_memory(pair: Pair) -> None:
    import threading

    def send() -> None:
        pair.client.sendall(b"$")
        for _ in range(64):
            pair.client.sendall(b"y" * (1 << 20))
        pair.client.sendall(b"#00" + packet(b"next"))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender = threading.Thread(target=send)
    sender.start()
    events = [pair.connection.next(seconds=10), pair.connection.next(seconds=10)]
    sender.join()
    assert [incoming.event for incoming in events] == [Event.OVERSIZED, Event.PACKET]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024, "KiB"


def test_hanging_up(pair: Pair) -> None:
    pair.client.sendall(b"$half")
    pair.client.close()
    assert [incoming.event for incoming in pair.events()] == [Event.CLOSED]
    with pytest.raises(ClientGoneError):
        pair.connection.send(b"anybody there?")


def test_a_client_that_does_not_read_counts_as_gone() -> None:
    made = Pair(1 << 20)
    with pytest.raises(ClientGoneError, match="timed out"):
        made.connection.send(b"z" * (1 << 20), seconds=0.05)
    made.close()


@_CASES
@given(st.binary(max_size=64))
def test_hexadecimal(data: bytes) -> None:
    assert to_hex(data) == data.hex().encode()
    assert from_hex(data.hex().upper().encode()) == data


@pytest.mark.parametrize("text", [b"0", b"0g", b"  ", b"0x", b"1-"])
def test_what_is_no_hexadecimal(text: bytes) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        from_hex(text)


def test_checksum_in_pieces() -> None:
    data = bytes(range(256)) * 5
    assert crc(data[100:], crc(data[:100])) == crc(data)
    assert crc(b"123456789") == 0x0376E6E7  # CRC-32/MPEG-2's check value


# -- native answers ------------------------------------------------------------------------------


def test_memory_is_answered_from_known_pages(pair: Pair) -> None:
    content = bytes(range(256)) * 32
    pair.connection.add_pages(0x7000, memoryview(content))
    pair.client.sendall(packet(b"m7ffc,8"))
    assert pair.events() == []
    assert pair.client.recv(64) == packet(content[0xFFC:0x1004].hex().encode())
    assert pair.connection.served == 1
    for unknown in (b"m6fff,2", b"m8fff,2", b"m9000,1", b"x7000,1", b"m7000,0", b"m7000,81", b"mzz,1", b"m7000"):
        pair.client.sendall(packet(unknown))
        assert [incoming.data for incoming in pair.events()] == [unknown]
    pair.connection.set_binary(1)
    pair.client.sendall(packet(b"x7020,8"))
    assert pair.events() == []
    assert pair.client.recv(64) == packet(b"b" + content[0x20:0x28])
    pair.connection.forget_pages()
    pair.client.sendall(packet(b"m7000,1"))
    assert len(pair.events()) == 1


def test_registers_are_answered_from_images(pair: Pair) -> None:
    from test_registers import isa_named

    isa = isa_named("x86_64")
    layout = Layout(isa, ["rax", "rbx"])
    one = Image(layout, 1, {"rax": 0x1234, "rbx": 5})
    two = Image(layout, 2, {"rax": 7})
    pair.connection.set_images((one, two), 2)

    def ask(content: bytes) -> bytes | None:
        pair.client.sendall(packet(content))
        events = pair.events()
        return None if events else pair.client.recv(8192)[1:-3]

    assert ask(b"p0") == b"0700000000000000"
    assert ask(b"p0;thread:1;") == b"3412000000000000"
    assert ask(b"p1;thread:1;") == b"0500000000000000"
    for unknown in (b"p1", b"p0;thread:3;", b"p0;thread:1", b"p0;thread:", b"p0;nonsense", b"pffff", b"p", b"g"):
        assert ask(unknown) is None, unknown
    pair.connection.set_images((), 0)
    assert ask(b"p0") is None


def test_a_client_that_never_pauses_keeps_nobody_else_waiting(pair: Pair) -> None:
    count, answer = 20_000, packet(b"00")
    pair.connection.add_pages(0x7000, memoryview(bytes(0x1000)))
    other, bell = socket.socketpair()

    def read() -> None:
        answers = pair.client.makefile("rb")
        assert answers.read(len(answer)) == answer
        bell.sendall(b"!")
        assert answers.read((count - 1) * len(answer)) == (count - 1) * answer
        answers.close()
        pair.client.close()

    with other, bell, ThreadPoolExecutor(2) as executor:
        writing = executor.submit(pair.client.sendall, count * packet(b"m7000,1"))
        reading = executor.submit(read)
        assert pair.connection.next([other.fileno()], 30).event is Event.READABLE
        assert pair.connection.served < count
        assert pair.connection.next((), 30).event is Event.CLOSED
        writing.result(20)
        reading.result(20)


def test_noise_that_never_ends_is_no_reason_to_stay() -> None:
    """Time over is over, although something keeps coming."""
    made = Pair()
    stop = threading.Event()

    def flood() -> None:
        made.client.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                made.client.sendall(b"+" * 0x10000)

    flooders = [threading.Thread(target=flood) for _ in range(3)]
    for flooder in flooders:
        flooder.start()
    try:
        for seconds in (0, 0.05):
            began = time.monotonic()
            assert made.connection.next((), seconds).event is Event.TIMEOUT
            assert time.monotonic() - began < 1
    finally:
        stop.set()
        for flooder in flooders:
            flooder.join()
        made.close()
