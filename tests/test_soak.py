"""Everything at once, at random: threads that open, use, kick, pause, close and drop machines."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time

from machine_code import CODE, ISA

from rift_core import GuestError, Machine, RiftError, aligned_buffer, open_machine
from rift_core.testing.leaks import no_leaks
from rift_core.testing.tools import require_machine

SECONDS = 4.0
SPIN, ADD = CODE["spin"], CODE["add"]
CALLED = 0x40_0000
WINDOW = 0x1000_0000


def open_any(choose: random.Random) -> Machine:
    threads = [
        {"name": f"t{n}", "privilege": choose.choice(("supervisor", "user"))} for n in range(choose.randrange(3))
    ]
    return open_machine(code=choose.choice((SPIN, ADD)), isa=ISA, threads=threads)


def step(machine: Machine, choose: random.Random, number: int) -> None:
    """One operation; any other thread may close the machine meanwhile."""
    at = WINDOW + 0x100_0000 * number
    action = choose.randrange(10)
    if action == 0:
        assert machine.call(machine.load_code(ADD), number, 1, timeout=20) == number + 1
    elif action == 1:
        machine.call(machine.load_code(SPIN), timeout=0.01)
    elif action == 2:
        machine.map(at, 0x3000, "rw")
        machine.protect(at, 0x1000, "r")
        machine.unmap(at, 0x3000)
    elif action == 3:
        with machine.share(aligned_buffer(0x2000), at=0x1_0000_0000 + at, writable=True):
            machine.memory[0x1_0000_0000 + at : 0x1_0000_0000 + at + 8][:] = bytes(8)
    elif action == 4:
        with machine.pause(5):
            machine.translate(CALLED)
    elif action == 5:
        machine.kill()
    elif machine.threads:
        thread = choose.choice(machine.threads)
        if action == 6:
            thread.start()
        elif action == 7:
            thread.kick()
        elif action == 8:
            thread.kill()
        else:
            thread.join(0.01)


def soak(seconds: float, seed: int) -> list[BaseException]:
    """Run for a while; what went wrong that is neither an error of Rift's nor a time-out."""
    problems: list[BaseException] = []
    shared: list[Machine] = []
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        choose = random.Random(seed * 100 + number)
        try:
            while time.monotonic() < end:
                if len(shared) < 3:
                    shared.append(open_any(choose))
                machine = choose.choice(list(shared) or [open_any(choose)])
                with contextlib.suppress(RiftError, TimeoutError):
                    step(machine, choose, number)
                fate = choose.randrange(40)
                if fate < 2:
                    with contextlib.suppress(ValueError):
                        shared.remove(machine)
                if fate == 0:
                    machine.close()  # fate 1: dropped
                del machine
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for machine in shared:
        machine.close()
    return problems


def test_everything_at_once() -> None:
    require_machine(lambda: open_machine(code=ADD, isa=ISA)).close()
    assert soak(0.5, 1) == []
    gc.collect()
    with no_leaks():
        assert soak(SECONDS, 2) == []


def test_a_closed_machine_ends_whoever_uses_it() -> None:
    """Four threads call one machine while a fifth closes it: each ends with an error of Rift's, or its result."""
    require_machine(lambda: open_machine(code=ADD, isa=ISA)).close()
    for _ in range(40):
        machine = open_machine(code=ADD, isa=ISA)
        unexpected: list[BaseException] = []
        started = threading.Barrier(5)

        def use(machine: Machine = machine, started: threading.Barrier = started) -> None:
            started.wait()
            try:
                while True:
                    assert machine.call(CALLED, 1, 2) == 3
            except (RiftError, GuestError):
                pass
            except BaseException as problem:
                unexpected.append(problem)  # noqa: B023 - the list of this round, joined below

        users = [threading.Thread(target=use) for _ in range(4)]
        for user in users:
            user.start()
        started.wait()
        time.sleep(random.random() * 0.01)
        machine.close()
        for user in users:
            user.join(20)
            assert not user.is_alive()
        assert unexpected == []
