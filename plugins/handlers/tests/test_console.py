"""The console: order, escaping, limits, streams that come, go and fail."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import pty
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rift_handlers
from rift_core import doorbell
from rift_core.errors import ConfigError, LimitError, RiftError
from rift_core.exits import Exit, ExitHandler, ExitKind, Resume
from rift_core.testing.exit_handler import USER_MEMORY, Answer, Halves, StandInMachine, StandInVCpu
from rift_handlers import flusher
from rift_handlers.console import Console, shared_console
from rift_handlers.output import Decoder, Output

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ANTI_HANG = 20.0  # seconds

HOSTILE = (
    "red \x1b[31m, clear \x1bc, bell \a, C1 \x9b2J, DEL \x7f, back \b, right-to-left \u202e, page \x0c, fine \t\r\n"
)
SHOWN = (
    "red \\x1b[31m, clear \\x1bc, bell \\x07, C1 \\x9b2J, DEL \\x7f, back \\x08, right-to-left \\u202e, page \\x0c, "
    "fine \t\r\n"
)


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def machine_for(stream: Any = None, *, console_bytes: int | None = None) -> StandInMachine:
    machine = StandInMachine(console_bytes=console_bytes)
    machine.console_stream = stream
    return machine


def console_on(stream: Any, *, limit: int | None = None) -> Console:
    return Console(Output(stream), limit)


def halves(machine: StandInMachine, *, native: bool = True, config: Any = None) -> Halves:
    handlers = list(rift_handlers.rift_exit_handlers(config or rift_handlers.ConsoleConfig(port=0xE9), machine))
    return Halves(machine, handlers, StandInVCpu(()), native=native)


def store(machine: StandInMachine, byte: int) -> Exit:
    return Exit(ExitKind.MMIO, machine.doorbell + doorbell.CONSOLE, 1, byte, True)


def say(half: Halves, text: bytes) -> list[Answer]:
    return [half.ask(store(half.machine, byte)) for byte in text]


# -- the native half ---------------------------------------------------------------------------------


def test_the_native_half_takes_bytes_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream))
    passed: list[int] = []
    original = Console.put

    def put(console: Console, byte: int) -> None:
        passed.append(byte)
        original(console, byte)

    monkeypatch.setattr(Console, "put", put)
    say(half, b"x" * 2000)
    half.finish()
    assert stream.getvalue() == b"x" * 2000
    assert len(passed) < 100, "only the first byte of each quiet time comes to Python"


def test_a_full_buffer_is_passed_on_and_nothing_is_lost() -> None:
    from rift_handlers._native import lib

    stream = io.BytesIO()
    console = console_on(stream)
    data = os.urandom(200_000)
    for byte in data:
        if not lib.rift_handlers_console_push(console.native, byte):
            console.put(byte)
    console.finish()
    assert stream.getvalue() == data


def test_bytes_of_several_threads_all_arrive_and_each_threads_keep_their_order() -> None:
    from rift_handlers._native import lib

    stream = io.BytesIO()
    console = console_on(stream)

    def work(number: int) -> None:
        for at in range(5000):
            byte = number << 5 | at % 32
            if not lib.rift_handlers_console_push(console.native, byte):
                console.put(byte)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANTI_HANG)
    console.finish()
    for number in range(4):
        mine = [byte & 31 for byte in stream.getvalue() if byte >> 5 == number]
        assert mine == [at % 32 for at in range(5000)]


def test_user_calls_and_stores_keep_their_order() -> None:
    stream = io.BytesIO()
    machine = machine_for(stream)
    half = halves(machine)
    machine.write_virtual(USER_MEMORY.start, b"[call]")
    say(half, b"one ")
    assert half.ask(Exit(ExitKind.USER_CALL, 1, info=(USER_MEMORY.start, 6, 0, 0, 0, 0))) == Answer("resume", 6)
    say(half, b" two ")
    half.ask(Exit(ExitKind.PORT_IO, 0xE9, 1, ord("!"), True))
    half.finish()
    assert stream.getvalue() == b"one [call] two !"


def test_bytes_appear_without_a_newline_and_while_the_guest_runs_on() -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream))
    say(half, b"prompt> ")
    deadline = time.monotonic() + ANTI_HANG
    while stream.getvalue() != b"prompt> " and time.monotonic() < deadline:
        time.sleep(0.005)
    assert stream.getvalue() == b"prompt> "


def test_a_quiet_console_is_watched_by_nobody_and_wakes_again() -> None:
    stream = io.BytesIO()
    console = console_on(stream)
    console.put(0x61)
    assert console.armed
    deadline = time.monotonic() + ANTI_HANG
    while console in flusher.FLUSHER._consoles and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not console.armed
    console.put(0x62)
    console.finish()
    assert stream.getvalue() == b"ab"


# -- user calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "length", "result"),
    [
        (0, 1, -14),
        (USER_MEMORY.stop, 1, -14),
        (USER_MEMORY.stop - 4, 100, 4),
        (USER_MEMORY.start, 0, 0),
        (0, 0, 0),
        (USER_MEMORY.start, 1 << 63, len(USER_MEMORY)),
        ((1 << 64) - 1, 2, -14),
        ((1 << 64) - 1, (1 << 64) - 1, -14),
    ],
)
def test_a_call_writes_what_user_mode_may_read_and_no_more(pointer: int, length: int, result: int) -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream))
    answer = half.ask(Exit(ExitKind.USER_CALL, 1, info=(pointer, length, 0, 0, 0, 0)))
    assert answer == Answer("resume", result % (1 << 64))
    half.finish()
    assert len(stream.getvalue()) == max(result, 0)


def test_a_call_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rift_handlers.console_handlers.WRITE_LIMIT", 5000)
    half = halves(machine_for(io.BytesIO()))
    answer = half.ask(Exit(ExitKind.USER_CALL, 1, info=(USER_MEMORY.start, 60_000, 0, 0, 0, 0)))
    assert answer == Answer("resume", 5000)


# -- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True])
def test_the_limit_is_exact(native: bool) -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream, console_bytes=10), native=native)
    answers = say(half, b"0123456789ABC")
    assert answers == [Answer("resume")] * 10 + [Answer("limit", "limits.console_bytes")] * 3
    half.finish()
    assert stream.getvalue() == b"0123456789"


def test_the_limit_is_exact_between_stores_and_calls() -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream, console_bytes=10))
    half.machine.write_virtual(USER_MEMORY.start, b"abcdefgh")
    say(half, b"01234")
    answer = half.ask(Exit(ExitKind.USER_CALL, 1, info=(USER_MEMORY.start, 8, 0, 0, 0, 0)))
    assert answer == Answer("limit", "limits.console_bytes")
    assert stream.getvalue() == b"01234abcde"


def test_the_limit_error_says_what_to_do() -> None:
    with pytest.raises(LimitError, match=r"limits\.console_bytes = 0.*raise the limit"):
        console_on(io.BytesIO(), limit=0).put(0x41)


# -- escaping ------------------------------------------------------------------------------------------


def test_a_terminal_obeys_nothing_that_the_guest_prints() -> None:
    terminal = Terminal()
    half = halves(machine_for(terminal))
    say(half, HOSTILE.encode())
    half.finish()
    assert terminal.getvalue() == SHOWN


def test_a_file_gets_the_bytes_unchanged() -> None:
    stream = io.BytesIO()
    half = halves(machine_for(stream))
    data = bytes(range(256)) + HOSTILE.encode()
    say(half, data)
    half.finish()
    assert stream.getvalue() == data


def test_escaping_can_be_switched() -> None:
    for escape, expected in ((True, b"\\x1b[m"), (False, b"\x1b[m")):
        stream = io.BytesIO()
        half = halves(machine_for(stream), config=rift_handlers.ConsoleConfig(escape=escape))
        say(half, b"\x1b[m")
        half.finish()
        assert stream.getvalue() == expected


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5), escape=st.booleans())
def test_text_does_not_depend_on_where_the_bytes_are_cut(data: bytes, cuts: list[int], escape: bool) -> None:
    whole = Decoder(escape).feed(data, final=True)
    decoder = Decoder(escape)
    edges = [0, *sorted(cuts), len(data)]
    parts = [decoder.feed(data[low:high]) for low, high in itertools.pairwise(edges)]
    assert "".join(parts) + decoder.feed(b"", final=True) == whole


@given(st.binary(max_size=60))
def test_nothing_unsafe_survives(data: bytes) -> None:
    text = Decoder(True).feed(data, final=True)
    for character in text:
        code = ord(character)
        assert character in "\n\t\r" or (code >= 0x20 and not 0x7F <= code < 0xA0)
        assert not 0x2028 <= code <= 0x202E
        assert not 0x2066 <= code <= 0x2069


def test_an_unfinished_character_waits_for_its_rest_but_not_for_ever() -> None:
    terminal = Terminal()
    console = console_on(terminal)
    console.write(b"\xe2\x86\n")
    console.write(b"\xe2\x86")
    console.write(b"\x92\n\xe2")
    console.finish()
    assert terminal.getvalue() == "\\xe2\\x86\n\u2192\n\\xe2"


def test_a_real_terminal_sees_lines_at_once_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher.FLUSHER, "watch", lambda console: True)  # and does not look after it
    ours, theirs = pty.openpty()
    try:
        with open(theirs, "w", encoding="utf-8", closefd=False) as stream:
            half = halves(machine_for(stream))
            say(half, b"hello \x1b[31m\n")
            assert os.read(ours, 100) == b"hello \\x1b[31m\r\n"
            half.finish()
    finally:
        os.close(theirs)
        os.close(ours)


# -- streams -------------------------------------------------------------------------------------------


def test_standard_output_is_what_it_is_at_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    half = halves(machine_for())
    say(half, b"captured")
    half.finish()
    assert capsys.readouterr().out == "captured"
    other = io.StringIO()
    with contextlib.redirect_stdout(other):
        say(half, b"redirected \xff")
        half.finish()
    assert other.getvalue() == "redirected \\xff"
    assert capsys.readouterr().out == ""


def test_the_guest_and_print_keep_their_order(capfd: pytest.CaptureFixture[str]) -> None:
    half = halves(machine_for())
    print("first", end=" ")
    say(half, b"second ")
    half.finish()
    print("third", flush=True)
    assert capfd.readouterr().out == "first second third\n"


def test_standard_error_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    half = halves(machine_for(), config=rift_handlers.ConsoleConfig(stream="stderr"))
    say(half, b"to stderr")
    half.finish()
    assert capsys.readouterr() == ("", "to stderr")


def test_no_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    half = halves(machine_for())
    assert say(half, b"nobody\n") == [Answer("resume")] * 7
    half.finish()


def test_a_stream_that_cannot_express_a_character_gets_its_code() -> None:
    raw = io.BytesIO()
    half = halves(machine_for(io.TextIOWrapper(raw, "ascii")), config=rift_handlers.ConsoleConfig(escape=True))
    say(half, "\u2192".encode())
    half.finish()
    assert raw.getvalue() == b"\\u2192"


def test_a_path_is_emptied_and_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old")
    machine = machine_for()
    half = halves(machine, config=rift_handlers.ConsoleConfig(stream=str(path)))
    assert path.read_bytes() == b""
    say(half, b"new \xff\x1b")
    half.finish()
    assert path.read_bytes() == b"new \xff\x1b"


@pytest.mark.parametrize("path", ["{0}/missing/log", "{0}", "{0}/fifo", "nul\0byte"])
def test_a_path_that_cannot_be_written_is_a_configuration_error(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot be opened for writing"):
        halves(machine_for(), config=rift_handlers.ConsoleConfig(stream=path.format(tmp_path)))


def test_handlers_that_name_one_stream_share_one_console(tmp_path: Path) -> None:
    machine = machine_for()
    path = str(tmp_path / "log")
    console = halves(machine, config=rift_handlers.ConsoleConfig(stream=path))
    uart = halves(machine, config=rift_handlers.Uart16550Config(stream=path))
    for _ in range(3):
        say(console, b"C")
        uart.ask(Exit(ExitKind.PORT_IO, 0x3F8, 1, ord("U"), True))
    console.finish()
    assert (tmp_path / "log").read_bytes() == b"CUCUCU"
    other = machine_for(io.BytesIO())
    assert shared_console(other, "stdout", "auto") is not shared_console(machine, path, "auto")


class Broken(io.RawIOBase):
    """A stream that refuses."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("native", [False, True])
def test_a_stream_that_refuses_ends_the_run_with_a_rift_error(native: bool) -> None:
    half = halves(machine_for(Broken()), native=native)
    say(half, b"lost")
    with pytest.raises(RiftError, match="cannot be written to the given stream: Broken pipe"):
        half.finish()


def test_what_the_flusher_could_not_write_is_reported_at_the_next_byte() -> None:
    console = console_on(Broken())
    console.put(0x41)
    deadline = time.monotonic() + ANTI_HANG
    while console._failure is None and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(RiftError, match="Broken pipe"):
        console.put(0x42)
    with pytest.raises(RiftError, match="Broken pipe"):
        console.finish()


def test_a_closed_stream_is_a_rift_error() -> None:
    stream = io.StringIO()
    console = console_on(stream)
    stream.close()
    console.put(0x41)
    with pytest.raises(RiftError, match="closed file"):
        console.finish()


class Dribble(io.RawIOBase):
    """A raw stream that takes three bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data[:3])
        return min(len(data), 3)


def test_a_raw_stream_may_take_less_than_it_is_given() -> None:
    stream = Dribble()
    console = console_on(stream)
    console.write(b"0123456789")
    console.finish()
    assert stream.data == b"0123456789"


# -- lifetimes -----------------------------------------------------------------------------------------


def is_open_here(path: Path) -> bool:
    """Whether a descriptor of this process refers to the file."""
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), path.stat()):
                return True
    return False


def test_nothing_is_left_of_a_machine_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    machine = machine_for()
    half = halves(machine, config=rift_handlers.ConsoleConfig(stream=str(path)))
    say(half, b"some text")
    half.finish()
    assert is_open_here(path)
    gone = weakref.ref(machine)
    del machine, half
    deadline = time.monotonic() + ANTI_HANG
    while (gc.collect() or gone() is not None or is_open_here(path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone() is None
    assert not is_open_here(path)
    assert path.read_bytes() == b"some text"


def test_a_stream_that_refers_to_its_machine_does_not_keep_it_alive() -> None:
    stream = io.BytesIO()
    machine = machine_for(stream)
    stream.machine = machine  # type: ignore[attr-defined]
    handlers: Iterable[ExitHandler] = rift_handlers.rift_exit_handlers(rift_handlers.ConsoleConfig(), machine)
    assert list(handlers)
    gone = weakref.ref(machine)
    del machine, stream, handlers
    gc.collect()
    assert gone() is None


def test_a_stream_may_use_the_console_that_writes_to_it() -> None:
    class Chatty(io.StringIO):
        console: Console

        def write(self, text: str) -> int:
            if "?" in text:
                self.console.write(b"answer ")
            return super().write(text)

    stream = Chatty()
    stream.console = console = console_on(stream)
    console.write(b"question? ")
    console.finish()
    console.finish()
    assert sorted(stream.getvalue().split()) == ["answer", "question?"]


def test_the_interpreter_ends_while_a_console_is_busy() -> None:
    program = (
        "import threading\n"
        "from rift_handlers.console import Console\n"
        "from rift_handlers.output import Output\n"
        "console = Console(Output('stdout'))\n"
        "def work():\n"
        "    while True:\n"
        "        console.put(0x2e)\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "import time; time.sleep(0.2)\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""


def test_a_forked_child_has_a_flusher_of_its_own() -> None:
    console = console_on(io.BytesIO())
    console.put(0x41)
    child = os.fork()
    if child == 0:
        stream = io.BytesIO()
        mine = console_on(stream)
        mine.put(0x42)
        for _ in range(500):
            if stream.getvalue() == b"B":
                os._exit(0)
            time.sleep(0.01)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_answer_to_a_write_is_to_go_on() -> None:
    machine = machine_for(io.BytesIO())
    handler = next(iter(rift_handlers.rift_exit_handlers(rift_handlers.ConsoleConfig(), machine)))
    vcpu: Any = StandInVCpu(())
    assert handler.handle(vcpu, store(machine, 0x41)) == Resume()
    assert handler.handle(vcpu, Exit(ExitKind.MMIO, machine.doorbell + doorbell.CONSOLE, 1)) is None
