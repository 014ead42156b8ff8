"""Ctrl-C held back, and forks that wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rift_core.forks import WHOLE
from rift_core.interrupts import HELD
from rift_core.testing.tools import skip_here

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """SIGINTs as they are delivered; on the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        skip_here("signal handlers run on the main thread")
    delivered: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, frame: delivered.append(number))
    yield delivered
    signal.signal(signal.SIGINT, old)


def test_an_interrupt_waits_for_the_end_of_the_outermost_block(interrupts: list[int]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with HELD:
        os.kill(os.getpid(), signal.SIGINT)
        with HELD:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interrupts == []
    assert interrupts == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_arrives_also_when_the_block_raises(interrupts: list[int]) -> None:
    def fail() -> None:
        with HELD:
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert interrupts == [signal.SIGINT]


def test_a_handler_that_is_set_inside_stays(interrupts: list[int]) -> None:
    seen: list[int] = []
    new = lambda number, frame: seen.append(number)  # noqa: E731
    with HELD:
        signal.signal(signal.SIGINT, new)
    assert signal.getsignal(signal.SIGINT) is new
    os.kill(os.getpid(), signal.SIGINT)
    assert (seen, interrupts) == ([signal.SIGINT], [])


def test_other_threads_hold_nothing_back(interrupts: list[int]) -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with HELD:
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts == [signal.SIGINT]
    done.set()
    thread.join()


STORM = """
import os, random, signal, threading, time
from rift_core.interrupts import HELD

whole = caught = 0
waiting = threading.Event()

def storm():
    while True:
        waiting.wait()
        waiting.clear()
        time.sleep(random.random() * 0.0005)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=storm, daemon=True).start()
for _ in range(2000):
    try:
        waiting.set()
        while True:
            with HELD:
                whole += 1
                sum(range(random.randrange(200)))
                whole -= 1
    except KeyboardInterrupt:
        caught += 1
        assert whole == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(caught)
"""


def test_no_block_is_cut_and_no_interrupt_lost() -> None:
    run = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=280, check=False)
    assert (run.stdout.strip(), run.stderr) == ("2000", "")


def test_a_fork_waits_for_blocks_of_other_threads() -> None:
    inside, leave = threading.Event(), threading.Event()
    left_at = 0.0

    def work() -> None:
        nonlocal left_at
        with WHOLE, WHOLE:
            inside.set()
            leave.wait(10)
            left_at = time.monotonic()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    threading.Timer(0.1, leave.set).start()
    child = os.fork()
    if child == 0:
        with WHOLE:  # usable in the child, whatever the parent's threads were at
            os._exit(7)
    forked_at = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    thread.join()
    assert forked_at >= left_at > 0
    with WHOLE:  # and in the parent
        child = os.fork()  # its own block is no obstacle
        if child == 0:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
