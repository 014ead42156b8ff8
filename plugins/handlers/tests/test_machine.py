"""The handlers in whole machines: guests in machine code on the fake backend."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import LimitError, RiftError, Stop, doorbell, open_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_core import Machine

    MakeMachine = Callable[..., Machine]

DOORBELL = doorbell.DEFAULT_ADDRESS
RETURN = b"\xc3"


def say(text: bytes) -> bytes:
    """mov byte [CONSOLE], imm8, for each byte"""
    return b"".join(b"\xc6\x04\x25" + struct.pack("<IB", DOORBELL + doorbell.CONSOLE, byte) for byte in text)


def out(port: int, value: int) -> bytes:
    """mov edx, port; mov al, value; out dx, al"""
    return b"\xba" + struct.pack("<I", port) + bytes((0xB0, value, 0xEE))


@pytest.fixture
def make() -> Iterator[MakeMachine]:
    made: list[Machine] = []

    def make(code: bytes, **options: Any) -> Machine:
        made.append(open_machine(code=code, isa="x86_64", backend="fake", **options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def test_everything_is_printed_when_a_call_returns(make: MakeMachine) -> None:
    console = io.StringIO()
    machine = make(say(b"one call ") + RETURN, console=console)
    for times in range(1, 6):
        machine.call(0x40_0000, restype=None)
        assert console.getvalue() == "one call " * times


def test_everything_is_printed_when_a_thread_has_ended(make: MakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    exit_with_5 = b"\xc7\x04\x25" + struct.pack("<II", DOORBELL + doorbell.EXIT, 5) + b"\xeb\xfe"
    assert make(say(b"no newline") + exit_with_5).thread("main").start().join(20) == Stop(5, "exit")
    assert capsys.readouterr().out == "no newline"


def test_everything_is_printed_when_a_thread_is_killed(make: MakeMachine) -> None:
    console = io.StringIO()
    machine = make(say(b"going round") + b"\xeb\xfe", console=console)
    thread = machine.thread("main").start()
    while "going round" not in console.getvalue():
        pass
    thread.kill()
    assert thread.join(20) == Stop(0, "killed")


def test_the_limit_ends_the_guest(make: MakeMachine) -> None:
    console = io.StringIO()
    body = say(b"flood")
    code = body + b"\xe9" + struct.pack("<i", -(len(body) + 5))
    machine = make(code, console=console, limits={"console_bytes": 102})
    with pytest.raises(LimitError) as caught:
        machine.thread("main").start().join(20)
    assert caught.value.limit == "limits.console_bytes"
    assert console.getvalue() == ("flood" * 21)[:102]


def test_a_stream_that_refuses_is_what_join_raises(make: MakeMachine) -> None:
    console = io.StringIO()
    machine = make(say(b"text") + RETURN, console=console)
    console.close()
    with pytest.raises(RiftError, match="cannot be written to the given stream"):
        machine.thread("main").start().join(20)
    with pytest.raises(RiftError, match="cannot be written to the given stream"):
        machine.call(0x40_0000, restype=None)


def test_a_payload_for_bare_metal(make: MakeMachine) -> None:
    console = io.StringIO()
    code = b"".join(out(0x3F8, byte) for byte in b"serial\n") + out(0xF4, 0x10) + b"\xeb\xfe"
    machine = make(code, console=console, exit_handlers=[{"name": "uart16550"}, {"name": "debug-exit"}])
    assert machine.thread("main").start().join(20) == Stop(33, "exit")
    assert console.getvalue() == "serial\n"
