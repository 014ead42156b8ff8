"""The debugger's server beside a C server that knows its one answer; the same C client asks both over Unix sockets."""

from __future__ import annotations

import ctypes
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import exits
from benchmarks.pairs import Result, compare
from benchmarks.twin import Counter, debugger_library, function_address
from rift_core import ExitHandler, ExitKind, NativeHandler, Resume, open_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_core.machine import Machine

NOP = bytes.fromhex("90")
FLOOD = bytes.fromhex("893c2500010070ffcf75f5c3")  # again: mov [0x70000100], edi; dec edi; jnz again; ret
SPIN = bytes.fromhex("ebfe")  # jmp to itself
EXITS = 1000
PACKETS = 2000
MEMORY_PACKETS = 200
PIECE = 0x4000  # bytes of memory in one packet
PIECE_PROMISE = f"Rift <= {PIECE / 50e6 * 1e6:.0f} us"  # 50 MB/s
FRESH = 0x4_0000_0000
FRESH_SIZE = 0x20_0000
ANSWER_LIMIT = 1 << 20


def frame(content: bytes) -> bytes:
    """A packet; the contents here need no escapes."""
    return b"$" + content + b"#%02x" % (sum(content) & 0xFF)


class Asked:
    """One connection to ask: ``ask`` for an answer, ``time`` for seconds of one round trip."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, content: bytes) -> bytes:
        """The whole answer, framed."""
        packet, answer = frame(content), ctypes.create_string_buffer(ANSWER_LIMIT)
        size = debugger_library().debugger_ask(
            self._connection.fileno(), packet, len(packet), answer, ANSWER_LIMIT
        )  # fmt: skip
        if not size:
            raise ConnectionError(f"no answer to {content!r}")
        return answer.raw[:size]

    def time(self, content: bytes, count: int, expected: int) -> float:
        """Seconds for one of ``count`` round trips, whose answers have ``expected`` bytes."""
        packet = frame(content)
        spent = debugger_library().debugger_packets(self._connection.fileno(), packet, len(packet), count, expected)
        if not spent:
            raise ConnectionError(f"{content!r} was answered otherwise")
        return float(spent) / 1e9 / count


@contextmanager
def debugged() -> Iterator[tuple[Machine, Asked]]:
    """A machine whose thread waits at its entry, and a client."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rift-bench-"))
        path = Path(folder) / "socket"
        machine = stack.enter_context(
            open_machine(code=SPIN, isa="x86_64", backend="kvm", debug={"listen": f"unix:{path}", "wait": True})
        )
        machine.thread().start()
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.connect(str(path))
        connection.sendall(frame(b"QStartNoAckMode"))
        while not connection.recv(4096).endswith(b"#9a"):  # +, then OK
            pass
        connection.sendall(b"+")
        client = Asked(connection)
        if not client.ask(b"?").startswith(b"$T"):
            raise ConnectionError("the thread does not stand")
        yield machine, client


def _compare(
    name: str, what: str, content: bytes, pairs: int, promise: str, client: Asked, once: Callable[[Asked, int], float]
) -> Result:
    """``once``: seconds of one round trip, by a client and the size of the answers; ``content`` is answered alike."""
    answer = client.ask(content)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    server = debugger_library().debugger_serve(there.fileno(), answer, len(answer))
    if not server:
        raise OSError("the twin's server cannot be made")
    twin = Asked(here)
    try:
        return compare(
            name, what, lambda: once(client, len(answer)), lambda: once(twin, len(answer)),
            pairs=pairs, promise=promise,
        )  # fmt: skip
    finally:
        here.close()
        debugger_library().debugger_join(server)
        there.close()


def registers(pairs: int) -> Result:
    """A register of a stopped thread: ``p``."""
    with debugged() as (_, client):
        return _compare(
            "debugger_registers", "debugger: a p packet", b"p10", pairs, "Rift <= 50 us", client,
            lambda asked, size: asked.time(b"p10", PACKETS, size),
        )  # fmt: skip


def words(pairs: int) -> Result:
    """Eight bytes of memory: ``m``."""
    with debugged() as (machine, client):
        content = b"m%x,8" % machine.thread().entry
        return _compare(
            "debugger_words", "debugger: an m packet", content, pairs, "Rift <= 50 us", client,
            lambda asked, size: asked.time(content, PACKETS, size),
        )  # fmt: skip


def memory(pairs: int) -> Result:
    """Memory in bulk, which was read before since the guest has stopped: ``m``, hexadecimal."""
    with debugged() as (machine, client):
        content = b"m%x,%x" % (machine.load_code(NOP * PIECE), PIECE)
        return _compare(
            "debugger_memory", f"debugger: {PIECE >> 10} KiB of memory", content, pairs, PIECE_PROMISE, client,
            lambda asked, size: asked.time(content, MEMORY_PACKETS, size),
        )  # fmt: skip


def fresh_memory(pairs: int) -> Result:
    """The same of memory that is read for the first time: every page is looked up in the guest's page tables."""
    with debugged() as (machine, client):
        machine.map(FRESH, FRESH_SIZE, "rw", largest_page=machine.isa.page_sizes[0])
        machine.write_virtual(FRESH, NOP * FRESH_SIZE)
        contents = [b"m%x,%x" % (at, PIECE) for at in range(FRESH, FRESH + FRESH_SIZE, PIECE)]

        def once(asked: Asked, size: int) -> float:
            if asked is client:
                asked.ask(b"M%x,1:90" % FRESH)  # what is known of memory is forgotten
            return sum(asked.time(content, 1, size) for content in contents) / len(contents)

        return _compare(
            "debugger_fresh_memory", f"debugger: {PIECE >> 10} KiB of memory, the first time", contents[0], pairs,
            PIECE_PROMISE, client, once,
        )  # fmt: skip


def _flooded(stack: ExitStack, **sections: Any) -> Callable[[], float]:
    """Seconds of one exit with a native handler, in a machine with these tables."""
    counter = Counter()
    counter.limit = 1 << 62
    native = NativeHandler(function_address("twin_count_exit"), ctypes.addressof(counter), counter)
    machine = open_machine(code=FLOOD, isa="x86_64", backend="kvm", **sections)
    stack.enter_context(machine)
    doorbell = range(exits.DOORBELL, exits.DOORBELL + 8)
    machine.vm.install(ExitHandler("count", frozenset({ExitKind.MMIO}), doorbell, lambda vcpu, exit: Resume(), native))
    entry, call = machine.thread().entry, machine.call

    def once() -> float:
        begin = time.perf_counter()
        call(entry, EXITS)
        return (time.perf_counter() - begin) / EXITS

    return once


def exit_cost(pairs: int) -> Result:
    """The same guest in a machine with the server, to which nobody has come, and in one without."""
    with ExitStack() as stack:
        ours = _flooded(stack, debug={"listen": "127.0.0.1:0"})
        bare = _flooded(stack)
        return compare(
            "debugger_exit", "an exit, with a debugger's server and without", ours, bare, pairs=pairs,
            promise="interval from <= 1.03",
        )  # fmt: skip
