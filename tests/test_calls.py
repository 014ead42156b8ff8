"""Calls into the guest on the caller's own thread."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from machine_code import CODE, ISA, NAMES

from rift_core import (
    GuestExitError,
    GuestFaultError,
    Machine,
    ReentrancyError,
    StateError,
    SymbolNotFoundError,
    open_machine,
)
from rift_core.testing.leaks import no_leaks
from rift_core.testing.tools import require_machine

SOON = 1.0


def test_a_call_returns_the_functions_result(machine: Machine, functions: dict[str, int]) -> None:
    assert machine.call(functions["add"], 2, 3, timeout=10, restype=ctypes.c_int64) == 5
    assert machine.call(functions["add"], 2, -3) == -1
    assert machine.call(functions["identity"], -1, restype=ctypes.c_uint64) == (1 << 64) - 1
    assert machine.call(functions["identity"], 300, restype=ctypes.c_uint8) == 44
    assert machine.call(functions["identity"], 1, restype=ctypes.c_bool) is True
    assert machine.call(functions["identity"], 1, restype=None) is None


def test_an_unknown_restype_or_symbol_is_refused(machine: Machine, functions: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="restype"):
        machine.call(functions["add"], 1, 2, restype=str)
    with pytest.raises(SymbolNotFoundError, match="nothing_like_it"):
        machine.call("nothing_like_it")


def test_a_call_that_spins_times_out_and_the_machine_stays_usable(machine: Machine, functions: dict[str, int]) -> None:
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="did not return"):
            machine.call(functions["spin"], timeout=0.1)
        assert time.monotonic() - began < 0.1 + SOON
        assert machine.call(functions["add"], 1, 1) == 2


@pytest.mark.parametrize("seconds", [1e300, math.inf])
def test_limits_longer_than_python_can_wait(machine: Machine, functions: dict[str, int], seconds: float) -> None:
    assert machine.call(functions["add"], 2, 3, timeout=seconds) == 5
    with machine.pause(timeout=seconds):
        pass
    machine.run(timeout=seconds)
    machine.thread().join(timeout=seconds)


def test_a_limit_that_is_no_number(machine: Machine, functions: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="timeout is nan"):
        machine.call(functions["add"], 2, 3, timeout=math.nan)
    assert machine.call(functions["add"], 2, 3) == 5


def test_a_fault_is_raised_and_the_machine_stays_usable(machine: Machine, functions: dict[str, int]) -> None:
    for _ in range(3):
        with pytest.raises(GuestFaultError, match=NAMES.undefined):
            machine.call(functions["undefined"])
        assert machine.call(functions["add"], 1, 1) == 2


def test_a_function_that_ends_the_guest_is_an_error_of_its_own(machine: Machine, functions: dict[str, int]) -> None:
    with pytest.raises(GuestExitError, match="did not return") as caught:
        machine.call(functions["exit"], 5)
    assert (caught.value.stop.status, caught.value.stop.reason) == (5, "exit")
    with pytest.raises(GuestExitError):
        machine.call(functions["halt"])
    assert machine.call(functions["add"], 1, 1) == 2


def test_kill_ends_a_call_from_another_thread(machine: Machine, functions: dict[str, int]) -> None:
    timer = threading.Timer(0.1, machine.kill)
    timer.start()
    with pytest.raises(GuestExitError, match="killed"):
        machine.call(functions["spin"])
    timer.join()


def test_several_python_threads_call_at_once(machine: Machine, functions: dict[str, int]) -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        results[number] = [machine.call(functions["add"], number, i) for i in range(50)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n + i for i in range(50)] for n in range(6)}


def test_a_nested_call_from_a_handler_is_refused(machine: Machine, functions: dict[str, int]) -> None:
    from rift_core import Exit, ExitHandler, ExitKind, Resume

    seen: list[BaseException] = []

    def handle(vcpu: object, exit: Exit) -> Resume:
        try:
            machine.call(functions["add"], 1, 2)
        except ReentrancyError as error:
            seen.append(error)
        try:
            machine.close()
        except StateError as error:
            seen.append(error)
        return Resume()

    handler = ExitHandler("nested", frozenset({ExitKind.MMIO}), range(0x7000_0100, 0x7000_0108), handle)
    machine.engine.dispatcher = type(machine.dispatcher)([handler])
    machine.call(functions["doorbell"], 1, restype=None)
    assert [type(error) for error in seen] == [ReentrancyError, StateError]


def test_thousands_of_short_lived_threads_share_a_few_vcpus(machine: Machine, functions: dict[str, int]) -> None:
    results: list[int] = []

    def call(number: int) -> None:
        results.append(machine.call(functions["add"], number, 1))

    def run(numbers: range) -> None:
        for number in numbers:
            thread = threading.Thread(target=call, args=(number,))
            thread.start()
            thread.join()

    run(range(10))
    with no_leaks():
        run(range(10, 5000))
    assert results == list(range(1, 5001))
    assert len(machine.engine.contexts) < 10


def test_close_works_while_callers_sit_idle(machine: Machine, functions: dict[str, int]) -> None:
    called, go = threading.Event(), threading.Event()

    def work() -> None:
        machine.call(functions["add"], 1, 2)
        called.set()
        go.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    assert called.wait(10)
    machine.close()
    go.set()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(StateError, match="closed"):
        machine.call(functions["add"], 1, 2)


def test_close_ends_a_call_in_progress(machine: Machine, functions: dict[str, int]) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            machine.call(functions["spin"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    machine.close()
    assert time.monotonic() - began < SOON
    thread.join(10)
    assert isinstance(errors[0], GuestExitError | StateError)


def test_ctrl_c_ends_a_call_and_leaves_the_machine_usable(machine: Machine, functions: dict[str, int]) -> None:
    began = 0.0

    def interrupt() -> None:
        nonlocal began
        time.sleep(0.1)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        machine.call(functions["spin"], timeout=30)
    assert time.monotonic() - began < SOON
    assert machine.call(functions["add"], 20, 22) == 42


STORM = """
import os, random, signal, sys, threading, time
from machine_code import CODE, ISA
from rift_core import open_machine
from rift_core.testing.leaks import no_leaks

caught = 0
waiting = threading.Event()

def storm():
    while True:
        waiting.wait()
        waiting.clear()
        time.sleep(random.random() * 0.002)
        os.kill(os.getpid(), signal.SIGINT)
        if random.random() < 0.5:
            thread.kick()

def interrupted(count):
    global caught
    for number in range(count):
        try:
            waiting.set()
            what = number % 4
            if what == 0:
                machine.call(add, 1, 2, timeout=20)
            elif what == 1:
                machine.call(spin, timeout=20)
            elif what == 2:
                machine.unmap(machine.map(0x10_0000, 0x2000) and 0x10_0000, 0x2000)
            else:
                thread.kill()
                thread.join(20)
                thread.start()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            caught += 1
            if what == 2 and machine.translate(0x10_0000).physical is not None:
                machine.unmap(0x10_0000, 0x2000)

def settle():
    thread.kill()  # it may have been interrupted between kill, join and start
    thread.join(20)
    thread.start()

with open_machine(code=CODE["spin"], isa=ISA) as machine:
    spin = machine.load_code(CODE["spin"])
    add = machine.load_code(CODE["add"])
    thread = machine.thread().start()
    threading.Thread(target=storm, daemon=True).start()
    interrupted(100)
    settle()
    with no_leaks():
        interrupted(1000)
        settle()
    assert machine.call(add, 1, 2) == 3
    assert len(machine.engine.contexts) < 10
print(caught)
"""


@pytest.mark.slow
def test_a_thousand_interrupts_at_random_moments_all_arrive() -> None:
    require_machine(lambda: open_machine(code=CODE["halt"], isa=ISA)).close()
    run = subprocess.run(
        [sys.executable, "-c", STORM],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == "1100"
