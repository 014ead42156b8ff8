"""Guest threads: start, join, kick, kill, registers, limits, pause."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from machine_code import CODE, NAMES

from rift_core import (
    Exit,
    ExitKind,
    GuestFaultError,
    LimitError,
    Machine,
    StateError,
    Stop,
    UnhandledExitError,
)
from rift_core.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import VCpu

    MakeMachine = Callable[..., Machine]

SOON = 1.0  # seconds: ten times the promised 100 ms


def test_a_thread_runs_to_its_halt(run_code: MakeMachine) -> None:
    thread = run_code("halt").thread("main").start()
    assert thread.join(timeout=10) == Stop(0, "halt")
    assert thread.state == "ended"


def test_arguments_and_the_entry_functions_result(run_code: MakeMachine) -> None:
    assert run_code("add").thread().start(40, 2).join(10) == Stop(42, "return")


def test_the_exit_doorbell_ends_the_thread_with_its_status(run_code: MakeMachine) -> None:
    assert run_code("exit").thread().start(7).join(10) == Stop(7, "exit")


def test_join_times_out_while_the_guest_goes_on_and_kill_ends_it(run_code: MakeMachine) -> None:
    thread = run_code("spin").thread().start()
    with pytest.raises(TimeoutError, match="still runs"):
        thread.join(timeout=0.05)
    thread.kill()
    began = time.monotonic()
    assert thread.join(timeout=10) == Stop(0, "killed")
    assert time.monotonic() - began < SOON


def test_a_kill_right_after_start_counts(run_code: MakeMachine) -> None:
    machine = run_code("spin")
    for _ in range(20):
        thread = machine.thread().start()
        thread.kill()
        assert thread.join(timeout=10) == Stop(0, "killed")


def test_a_kicked_guest_goes_on(run_code: MakeMachine) -> None:
    machine = run_code("count")
    counter = machine.map(0x10_0000, 0x1000)
    thread = machine.thread().start(0x10_0000)
    word = machine.memory[counter : counter + 8].cast("Q")
    deadline = time.monotonic() + 10
    for _ in range(10):
        before = word[0]
        thread.kick()
        while word[0] == before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert word[0] > before
    thread.kill()
    assert thread.join(10).reason == "killed"


def test_starting_twice_is_refused_until_it_has_ended(run_code: MakeMachine) -> None:
    machine = run_code("spin")
    thread = machine.thread().start()
    with pytest.raises(StateError, match="runs already"):
        thread.start()
    thread.kill()
    thread.join(10)
    thread.start().kill()
    assert thread.join(10).reason == "killed"


def test_joining_before_the_start_is_refused(run_code: MakeMachine) -> None:
    with pytest.raises(StateError, match="not started"):
        run_code("halt").thread().join()


def test_registers_are_read_after_the_end_and_refused_during_the_run(run_code: MakeMachine) -> None:
    machine = run_code("spin")
    thread = machine.thread()
    entry = thread.entry
    thread.start(0x1234)
    time.sleep(0.05)
    with pytest.raises(StateError, match="in the guest"):
        thread.registers[NAMES.pc]
    with machine.pause(timeout=10):
        assert thread.registers[NAMES.pc] == entry
        thread.registers[NAMES.spare] = 0x77
    thread.kill()
    thread.join(10)
    assert thread.registers[NAMES.first] == 0x1234
    assert thread.registers[NAMES.spare] == 0x77
    assert NAMES.tables in set(thread.registers)


def test_registers_set_before_the_start_are_on_top_of_the_entry_state(run_code: MakeMachine) -> None:
    thread = run_code("add").thread()
    with pytest.raises(StateError, match="not run yet"):
        thread.registers[NAMES.first]
    with pytest.raises(StateError, match="no register"):
        thread.registers["nonsense"] = 1
    thread.registers[NAMES.second] = 30
    assert thread.registers[NAMES.second] == 30
    assert thread.start(12).join(10) == Stop(42, "return")


def counting(run_code: MakeMachine) -> tuple[Machine, memoryview]:
    """Two threads that have begun to count, each in a word of its own."""
    machine = run_code(
        "count",
        threads=[{"name": name, "entry": 0x40_0000, "arguments": [0x10_0000 + 8 * i]} for i, name in enumerate("ab")],
    )
    counters = machine.map(0x10_0000, 0x1000)
    words = machine.memory[counters : counters + 16].cast("Q")
    for thread in machine.threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not all(words) and time.monotonic() < deadline:
        time.sleep(0.01)
    return machine, words


def test_pausing_holds_all_threads_until_the_end_of_the_block(run_code: MakeMachine) -> None:
    machine, words = counting(run_code)
    deadline = time.monotonic() + 10
    for _ in range(5):
        with machine.pause(timeout=10):
            before = list(words)
            time.sleep(0.02)
            assert list(words) == before
        while list(words) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert list(words) != before
    machine.kill()
    assert [t.join(10).reason for t in machine.threads] == ["killed", "killed"]


@pytest.mark.parametrize(("kind", "reason"), [(ExitKind.POWER_OFF, "power-off"), (ExitKind.RESET, "reset")])
def test_a_guest_that_switches_the_machine_off_ends_all_its_threads(
    run_code: MakeMachine, monkeypatch: pytest.MonkeyPatch, kind: ExitKind, reason: str
) -> None:
    machine = run_code("spin", threads=[{"name": "a"}, {"name": "b"}])
    create = machine.engine.vm.create_vcpu

    class SwitchingOff:
        """A vCPU whose guest asks for it: real ones do on AArch64 only."""

        def __init__(self, vcpu: VCpu) -> None:
            self._vcpu = vcpu

        def __getattr__(self, name: str) -> Any:
            return getattr(self._vcpu, name)

        def run(self, reply: int | None = None) -> Exit:
            return Exit(kind)

    other = machine.thread("b").start()
    with pytest.raises(TimeoutError):
        other.join(timeout=0.05)
    monkeypatch.setattr(type(machine.engine.vm), "create_vcpu", lambda vm, index: SwitchingOff(create(index)))
    assert machine.thread("a").start().join(10) == Stop(0, reason)
    assert other.join(10) == Stop(0, reason)
    monkeypatch.undo()
    assert other.start().state == "running"  # the machine can be used again
    other.kill()


def test_an_unhandled_exception_is_a_report(run_code: MakeMachine) -> None:
    thread = run_code("null").thread().start()
    with pytest.raises(GuestFaultError) as caught:
        thread.join(10)
    report = caught.value.report
    assert report.fault.vector in NAMES.aborts
    assert report.fault.address == 0
    assert report.fault.pc == thread.entry
    text = str(caught.value)
    assert NAMES.abort in text
    assert "not mapped" in text
    assert "0x400000" in text


def test_a_stack_overflow_is_a_report_not_a_triple_fault(run_code: MakeMachine) -> None:
    with pytest.raises(GuestFaultError, match="stack"):
        run_code("recurse", threads=[{"name": "main", "stack": "4KiB"}]).thread().start().join(60)


def test_an_exit_that_nobody_answers_tells_where(run_code: MakeMachine) -> None:
    with pytest.raises(UnhandledExitError, match=r"MMIO write of 0x5 .* 0x70000100") as caught:
        run_code("doorbell").thread().start(5).join(10)
    assert caught.value.exit == Exit(
        ExitKind.MMIO, 0x7000_0100, 4, 5, True, caught.value.exit.raw_reason, caught.value.exit.info
    )
    assert caught.value.registers[NAMES.first] == 5


def test_the_wall_time_limit_ends_a_spinning_guest(run_code: MakeMachine) -> None:
    thread = run_code("spin", limits={"wall_time": 0.2}).thread().start()
    with pytest.raises(LimitError, match="wall_time") as caught:
        thread.join(10)
    assert caught.value.limit == "limits.wall_time"


def test_the_exit_rate_limit_ends_a_flood(run_code: MakeMachine) -> None:
    from rift_core import ExitHandler, Resume

    machine = run_code("flood", limits={"exits_per_second": 100})
    handler = ExitHandler(
        "sink", frozenset({ExitKind.MMIO}), range(0x7000_0100, 0x7000_0108), lambda vcpu, exit: Resume()
    )
    machine.engine.dispatcher = type(machine.dispatcher)([handler])
    with pytest.raises(LimitError, match="exits a second"):
        machine.thread().start().join(20)


def test_two_threads_and_the_host_share_memory(run_code: MakeMachine) -> None:
    machine, words = counting(run_code)
    deadline = time.monotonic() + 10
    while words[0] < 1 << 40 and time.monotonic() < deadline:
        words[0] = 1 << 40  # which the guest may be in the middle of replacing
        time.sleep(0.05)
    assert words[0] >= 1 << 40
    assert words[1] > 0
    machine.kill()


def test_handlers_raise_into_join(run_code: MakeMachine) -> None:
    from rift_core import ExitHandler

    def fail(vcpu: object, exit: Exit) -> None:
        raise KeyError("mine")

    machine = run_code("doorbell")
    handler = ExitHandler("bad", frozenset({ExitKind.MMIO}), range(0x7000_0100, 0x7000_0108), fail)
    machine.engine.dispatcher = type(machine.dispatcher)([handler])
    with pytest.raises(KeyError, match="mine"):
        machine.thread().start().join(10)


def test_kicks_at_random_moments_are_never_lost(run_code: MakeMachine) -> None:
    machine = run_code("spin")
    thread = machine.thread().start()
    done = threading.Event()
    served = 0

    def kicker() -> None:
        while not done.is_set():
            thread.kick()

    helper = threading.Thread(target=kicker)
    helper.start()
    try:
        for _ in range(200):
            served += machine.engine.contexts[0].post(lambda: 1).result(timeout=10)
    finally:
        done.set()
        helper.join()
    assert served == 200
    thread.kill()
    assert thread.join(10).reason == "killed"


def test_a_gate_lets_some_through(run_code: MakeMachine) -> None:
    machine = run_code("count", threads=[{"name": "a"}, {"name": "b"}])
    counters = {name: machine.map(address, 0x1000) for name, address in (("a", 0x6000_0000), ("b", 0x6001_0000))}
    for name, address in (("a", 0x6000_0000), ("b", 0x6001_0000)):
        machine.thread(name).start(address)

    def count(name: str) -> int:
        return int.from_bytes(machine.memory[counters[name] : counters[name] + 8], "little")

    def moves(name: str, seconds: float = 0.3) -> bool:
        before = count(name)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if count(name) != before:
                return True
            time.sleep(0.005)
        return False

    gate = Gate(machine.engine)
    gate.close(through=[machine.thread("b").context])
    assert gate.wait(10)
    assert machine.thread("a").context.held
    assert not moves("a", 0.05)
    assert moves("b")
    gate.close()  # for b as well
    assert gate.wait(10)
    assert not moves("b", 0.05)
    with machine.pause(10):
        gate.open()
        assert not moves("a", 0.05), "the pause still holds"
    assert moves("a")
    assert moves("b")
    machine.kill()


def test_time_at_a_gate_does_not_count_for_limits(run_code: MakeMachine) -> None:
    machine = run_code("spin", limits={"wall_time": 0.3})
    thread = machine.thread().start()
    with machine.pause(10):
        time.sleep(0.5)
        assert thread.state == "running"
    started = time.monotonic()
    with pytest.raises(LimitError):
        thread.join(10)
    assert time.monotonic() - started < 5


def test_a_run_ends_with_the_fault_of_any_thread(run_code: MakeMachine) -> None:
    """Though the first one goes on for ever."""
    with run_code("spin", threads=[{"name": "first"}, {"name": "second"}]) as machine:
        machine.thread("second").entry = machine.load_code(CODE["undefined"])
        began = time.monotonic()
        with pytest.raises(GuestFaultError, match="thread second"):
            machine.run(timeout=20)
        assert time.monotonic() - began < 5
        assert [thread.state for thread in machine.threads] == ["ended", "ended"]


def test_a_run_that_takes_too_long_ends_after_its_time_however_many_threads_it_has(
    run_code: MakeMachine,
) -> None:
    with run_code("spin", threads=[{"name": f"t{number}"} for number in range(4)]) as machine:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"t0, t1, t2, t3 still run after 0\.3 s"):
            machine.run(timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 0.3 + SOON + 1
        assert [thread.outcome for thread in machine.threads] == [Stop(0, "killed")] * 4
