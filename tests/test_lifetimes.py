"""Who lives how long: close, garbage, fork, views, interpreter exit."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine_code import CODE, ISA, NAMES

from rift_core import (
    ForkedMachineError,
    GuestFaultError,
    Machine,
    RiftError,
    StateError,
    open_machine,
)
from rift_core.testing.leaks import no_leaks
from rift_core.testing.tools import require_machine

if TYPE_CHECKING:
    from collections.abc import Callable

ADD, SPIN = CODE["add"], CODE["spin"]


def open_code(code: bytes) -> Machine:
    """A machine that nothing but the caller refers to, or a skip that says why there is none."""
    return require_machine(lambda: open_machine(code=code, isa=ISA))


def open_spinning() -> Machine:
    return open_code(SPIN)


def test_a_thousand_machines_leave_nothing_behind() -> None:
    with open_code(ADD) as machine:  # reaper and watchdog stay
        machine.call(0x40_0000, 1, 1)
    with no_leaks():
        for number in range(1000):
            with open_machine(code=ADD, isa=ISA) as machine:
                assert machine.call(0x40_0000, number, 1) == number + 1


def test_close_is_idempotent_and_later_use_is_refused() -> None:
    machine = open_spinning()
    thread = machine.thread().start()
    machine.close()
    machine.close()
    assert thread.join(10).reason == "killed"
    for use in (
        lambda: machine.memory,
        lambda: machine.call(0x40_0000),
        lambda: machine.thread().start(),
        lambda: machine.map(0x10_0000, 0x1000),
        lambda: machine.symbol("x"),
        lambda: machine.translate(0),
        lambda: machine.load_code(CODE["return"]),
    ):
        with pytest.raises(StateError, match="closed"):
            use()


def test_views_outlive_close() -> None:
    machine = open_spinning()
    physical = machine.map(0x10_0000, 0x1000)
    view = machine.memory[physical : physical + 4]
    view[:] = b"kept"
    machine.close()
    gc.collect()
    assert bytes(view) == b"kept"
    view[0] = ord("K")
    assert bytes(view) == b"Kept"


def test_a_dropped_machine_is_collected_with_its_spinning_thread() -> None:
    machine = open_spinning()
    thread = machine.thread().start()
    engine = weakref.ref(machine.engine)
    gone = weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None
    assert thread.join(10).reason == "killed"
    del thread
    deadline = time.monotonic() + 10
    while engine() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert engine() is None


class Broken(io.RawIOBase):
    """A stream that takes nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError("it is full")


def ask_twice(machine: Machine) -> None:
    thread = machine.thread().start()
    with pytest.raises(GuestFaultError) as first:
        thread.join(20)
    with pytest.raises(GuestFaultError) as second:
        thread.join(20)
    assert str(first.value) == str(second.value)
    assert first.value.report is second.value.report
    thread.join(20)


def uses() -> dict[str, Callable[[Machine], object]]:
    """Uses of a machine that end with an exception; what is raised refers to the frames it came through."""
    return {
        "a call that takes too long": lambda m: m.call(m.load_code(SPIN), timeout=0.01),
        "a call that faults": lambda m: m.call(m.load_code(CODE["undefined"])),
        "a thread that faults": lambda m: m.thread().start().join(20),
        "a thread that faults, asked twice": ask_twice,
        "a stream that refuses": lambda m: m.call(m.load_code(CODE["print"]), restype=None),
        "a symbol that is not there": lambda m: m.call("nothing"),
    }


@pytest.mark.parametrize("name", uses())
def test_what_was_raised_does_not_keep_a_dropped_machine(name: str) -> None:
    def use() -> weakref.ref[Machine]:
        machine = require_machine(lambda: open_machine(code=CODE["undefined"], isa=ISA, console=Broken()))
        with pytest.raises((RiftError, TimeoutError)):
            uses()[name](machine)
        return weakref.ref(machine)

    gone = use()
    deadline = time.monotonic() + 10  # the watchdog's thread may still be about to return from what it has ended
    gc.collect()
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert gone() is None


def drop_machines(count: int) -> None:
    """Make machines with a spinning thread, refer to them no more, wait until they are gone."""
    engines = weakref.WeakSet[object]()
    for _ in range(count):
        machine = open_spinning()
        engines.add(machine.engine)
        machine.thread().start()
    del machine
    left, since = count + 1, time.monotonic()
    while engines and time.monotonic() < since + 60:  # without one less: all of them are long in coming on a busy CPU
        if len(engines) < left:
            left, since = len(engines), time.monotonic()
        gc.collect()
        time.sleep(0.01)
    assert not engines


def test_dropped_machines_leave_nothing_behind() -> None:
    drop_machines(50)  # reaper and watchdog stay, and the C library keeps some stacks of ended threads
    with no_leaks():
        drop_machines(50)


def test_kick_against_close() -> None:
    for _ in range(50):
        machine = open_spinning()
        thread = machine.thread().start()
        stop = threading.Event()

        def kick(thread: object = thread, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                thread.kick()  # type: ignore[attr-defined]

        kickers = [threading.Thread(target=kick) for _ in range(3)]
        for kicker in kickers:
            kicker.start()
        time.sleep(0.001)
        machine.close()
        stop.set()
        for kicker in kickers:
            kicker.join()
        assert thread.join(10).reason == "killed"


def inherited_descriptors() -> list[str]:
    """What this process has open of a VM or its memory."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.islink(link)]
    return [target for target in targets if "kvm" in target or "memfd:rift" in target]


def test_forks_at_random_moments_inherit_nothing() -> None:
    """Other threads make, run and close machines meanwhile: a fork does not catch one half made."""
    open_spinning().close()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with open_machine(code=SPIN, isa=ISA) as machine:
                machine.thread().start()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    statuses = set()
    for _ in range(60):
        time.sleep(0.002)
        child = os.fork()
        if child == 0:
            os._exit(min(len(inherited_descriptors()), 100))
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses == {0}


def test_a_forked_child_is_told_and_the_parent_is_not_disturbed() -> None:
    machine = open_spinning()
    physical = machine.map(0x10_0000, 0x1000)
    view = machine.memory[physical : physical + 8]
    view[0] = 42
    thread = machine.thread().start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            problems = view[0] != 0
            for use in (
                lambda: machine.memory,
                lambda: machine.call(0x40_0000),
                lambda: machine.map(0, 0x1000),
                machine.kill,
                machine.run,
                machine.pause().__enter__,
                thread.start,
                thread.join,
                thread.kick,
                thread.kill,
                lambda: thread.registers[NAMES.pc],
            ):
                try:
                    use()
                    problems = True
                except ForkedMachineError:
                    pass
            machine.close()
            inherited = inherited_descriptors()
            # The child can have machines of its own.
            with open_machine(code=ADD, isa=ISA) as own:
                problems = problems or own.call(0x40_0000, 1, 2) != 3
            code = 2 if problems else 3 if inherited else 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert view[0] == 42
    assert thread.state == "running"
    thread.kill()
    assert thread.join(10).reason == "killed"
    machine.close()


EXIT_WHILE_RUNNING = """
from machine_code import CODE, ISA
from rift_core import open_machine
machine = open_machine(code=CODE["spin"], isa=ISA)
thread = machine.thread().start()
import threading

def call():
    try:
        machine.call(0x400000)
    except Exception:
        pass

threading.Thread(target=call, daemon=True).start()
print("leaving")
"""


def test_the_interpreter_exits_while_guests_run(tmp_path: Path) -> None:
    open_spinning().close()
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", EXIT_WHILE_RUNNING],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "leaving\n"
    assert run.stderr == ""
    assert time.monotonic() - began < 30


def test_machines_in_parallel_do_not_know_each_other() -> None:
    machines = [open_spinning() for _ in range(8)]
    threads = [machine.thread().start() for machine in machines]
    machines[0].close()
    assert [t.state for t in threads[1:]] == ["running"] * 7
    for machine in machines:
        machine.close()
