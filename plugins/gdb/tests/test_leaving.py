"""Clients, threads and Ctrl-C that come or go at a bad moment: nothing is lost, and nothing left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import Stop
from rift_core.errors import GuestExitError, HypervisorError
from rift_core.testing.tools import require_backend, require_capability, session
from rift_gdb.breakpoints import NOTHING
from rift_gdb.stops import StopEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def counting(debugged: Debugged, who: int = 0) -> bool:
    """Whether the thread in ``bump`` comes on."""
    place = debugged.at("counts") + 8 * who
    before = debugged.machine.read_virtual(place, 8)
    wait_for(lambda: debugged.machine.read_virtual(place, 8) != before)
    return True


def test_a_thread_that_ended_with_debug_registers_set_starts_again_without(debug: Debug) -> None:
    """Its vCPU is parked by then: they must have been cleared before."""
    debugged = debug("main")
    client = debugged.begin()
    assert client.ask(f"Z1,{debugged.at('twice'):x},1") == b"OK"
    client.stop("vCont;c")
    thread = debugged.machine.threads[0]
    thread.kill()
    assert thread.join(SECONDS) == Stop(0, "killed")
    assert client.ask("D") == b"OK"
    assert thread.start(4).join(SECONDS).status == 12


@pytest.fixture
def debug_registers(kind: tuple[str, str]) -> None:
    """There are some for breakpoints, and they work."""
    backend, isa = kind
    require_capability(backend, isa, require_backend(backend), "debug_hw_breakpoint")


@pytest.mark.usefixtures("debug_registers")
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "stopped"])
def test_debug_registers_that_were_only_tried_out_are_not_left_set(debug: Debug, resumed: bool) -> None:
    """How many fit is found out on a stopped thread, which is not set up for them if the client goes then."""
    debugged = debug("spin", "spin_too")
    client = debugged.begin()
    bump = debugged.at("bump")
    if resumed:
        client.send("vCont;c")
        assert counting(debugged, 1)
        client.interrupt()
        client.stop()
    assert debugged.server.target._fits((bump,), ())
    assert debugged.server.target._fits((bump, debugged.at("twice")), ())
    client.close()
    wait_for(lambda: not debugged.server.connected)
    assert counting(debugged)
    assert counting(debugged, 1)
    assert [thread.state for thread in debugged.machine.threads] == ["running", "running"]


@pytest.mark.usefixtures("debug_registers")
def test_debug_registers_whose_setting_failed_are_taken_back(debug: Debug, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backend has done before it failed is not known."""
    debugged = debug("spin")
    client = debugged.begin()
    assert client.ask(f"Z1,{debugged.at('bump'):x},1") == b"OK"
    vcpu = debugged.machine.threads[0].context.vcpu
    assert vcpu is not None
    set_debug = type(vcpu).set_debug

    def half(self: Any, **wanted: Any) -> None:
        set_debug(self, **wanted)
        if wanted.get("breakpoints"):
            raise HypervisorError("set_debug", 0, "failed half-way")

    monkeypatch.setattr(type(vcpu), "set_debug", half)
    assert client.stop("vCont;c")["signal"] == 2, "it cannot be set up"
    monkeypatch.undo()
    assert client.ask("D") == b"OK"
    wait_for(lambda: not debugged.server.connected)
    assert counting(debugged)
    assert debugged.machine.threads[0].state == "running"


def test_a_breakpoint_that_is_told_of_when_the_client_has_just_gone(debug: Debug) -> None:
    """The guest goes on: it is not its fault."""
    debugged = debug("spin")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('bump'):x},1") == b"OK"
    events = debugged.server.target._events
    classify, on_its_way, gone = events.classify, threading.Event(), threading.Event()

    def late(*words: Any) -> Any:
        on_its_way.set()
        assert gone.wait(SECONDS)
        return classify(*words)

    events.classify = late  # type: ignore[method-assign]
    client.send("vCont;c")
    assert on_its_way.wait(SECONDS)
    client.close()
    wait_for(lambda: not debugged.server.connected)
    gone.set()
    assert counting(debugged)


def test_a_stop_of_a_thread_that_is_killed_at_once_does_not_keep_the_others(debug: Debug) -> None:
    debugged = debug("stores", "spin_too")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('store'):x},1") == b"OK"
    target = debugged.server.target
    collect = target.collect

    def late() -> Any:
        if any(thread.stop is not None for thread in target.threads):
            debugged.machine.threads[0].kill()
            debugged.machine.threads[0].join(SECONDS)
        return collect()

    target.collect = late  # type: ignore[method-assign]
    client.send("vCont;c")
    assert debugged.join() == Stop(0, "killed")
    assert counting(debugged, 1)
    client.interrupt()
    assert client.stop()["thread"] == 2


def test_killing_forgets_the_breakpoints(debug: Debug) -> None:
    """The next client has none of the last one's."""
    debugged = debug("main")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('twice'):x},1") == b"OK"
    assert client.ask("k") == b"X09"
    assert debugged.join() == Stop(0, "killed")
    wait_for(lambda: not debugged.server.connected)
    debugged.server.target.hold()
    again = debugged.begin(4)
    assert again.ask("vCont;c") == b"W0c"


def test_ctrl_c_between_two_calls_stops_the_next_one(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    client.send("vCont;c")
    assert counting(debugged)
    debugged.machine.kill()
    assert client.receive() == b"X09"
    wait_for(lambda: not debugged.server.connected)
    # Now calls alone: a client that comes during one is there between it and the next.
    with ThreadPoolExecutor() as pool:
        debugged.server.target.hold()
        call = pool.submit(debugged.machine.call, "twice", 4)
        again = debugged.connect()
        again.stop("?")
        again.send("vCont;c")
        assert call.result(SECONDS) == 8
        again.interrupt()
        assert again.silent(0.3)
        call = pool.submit(debugged.machine.call, "twice", 5)
        assert again.stop()["signal"] == 2
        again.send("vCont;c")
        assert call.result(SECONDS) == 10
        assert debugged.machine.call("twice", 6) == 12, "nothing is stopped any more"


def test_a_call_killed_while_it_is_stopped_does_not_keep_the_next_one(debug: Debug) -> None:
    debugged = debug("main")
    debugged.server.target.hold()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(debugged.machine.call, "spin")
        client = debugged.connect()
        client.stop("?")
        debugged.machine.kill()
        assert isinstance(call.exception(SECONDS), GuestExitError)
        client.send("vCont;c")
        call = pool.submit(debugged.machine.call, "twice", 4)
        assert call.result(SECONDS) == 8


def test_ctrl_c_at_the_end_of_the_step_off_a_breakpoint(debug: Debug) -> None:
    """Nobody hears of that step: it does not stand for the answer."""
    debugged = debug("spin")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('bump'):x},1") == b"OK"
    client.stop("vCont;c")
    target = debugged.server.target
    collect = target.collect

    def with_ctrl_c() -> Any:
        if any(thread.stop is not None and thread.stop.reason == "over" for thread in target.threads):
            target.interrupt()
        return collect()

    target.collect = with_ctrl_c  # type: ignore[method-assign]
    stop = client.stop("vCont;c")
    assert stop["signal"] == 2
    target.collect = collect  # type: ignore[method-assign]
    assert client.stop("vCont;c")["signal"] == 5


@pytest.mark.parametrize("before", ["at-once", "taken-back", "resumed", "compared"])
def test_a_step_whose_exception_comes_when_the_client_has_gone(debug: Debug, before: str) -> None:
    """It was on its way through the guest's vectors, with the trap flag in its frame."""
    debugged = debug("spin", privilege="user")
    if debugged.isa != "x86_64":
        session().skip("the trap flag is x86-64's")
    client = debugged.begin()
    if before == "compared":  # by steps, where the CPU does not watch user mode
        assert client.ask(f"Z2,{debugged.at('watched'):x},8") == b"OK"
        client.send("vCont;c")
        assert counting(debugged)
        client.interrupt()
        client.stop()
    target = debugged.server.target
    (thread,) = target.threads
    disarm = thread.disarm

    def late() -> None:
        thread.trapped()
        if before == "taken-back":
            disarm()
        elif before == "resumed":
            thread.arm(NOTHING)
        disarm()
        vcpu = thread.context.vcpu
        assert vcpu is not None
        if target.debug.place(vcpu).privilege == "user":  # else one is on its way by itself
            target.debug.step_by_exception(vcpu, True)

    thread.disarm = late  # type: ignore[method-assign]
    assert client.ask("D") == b"OK"
    wait_for(lambda: not debugged.server.connected)
    thread.disarm = disarm  # type: ignore[method-assign]
    assert counting(debugged)
    with debugged.machine.pause(SECONDS):
        assert not debugged.machine.threads[0].registers["rflags"] & 0x100


@pytest.mark.parametrize("before", ["at-once", "taken-back", "resumed", "stepped"])
def test_a_breakpoint_whose_exception_comes_when_the_client_has_gone(debug: Debug, before: str) -> None:
    """It was on its way through the guest's vectors when the instruction went."""
    debugged = debug("spin", privilege="user")
    target, place, machine = debugged.server.target, debugged.at("bump"), debugged.machine
    if target.means.instruction["user"] != "vector":
        session().skip("breakpoint instructions in user mode are exits of their own here")
    client = debugged.begin()
    assert client.ask(f"Z0,{place:x},1") == b"OK"
    client.stop("vCont;c")
    (thread,) = target.threads
    arranged, classify, disarm = target._arranged, target._events.classify, thread.disarm
    assert place in arranged.patched
    own = machine.read_virtual(place, len(target.debug.breakpoint))
    came = threading.Event()

    def late() -> None:
        thread.arm(arranged)
        if before == "taken-back":
            disarm()
        elif before == "resumed":
            thread.arm(NOTHING)
        elif before == "stepped":
            thread.trapped()
        disarm()
        if before == "stepped" and thread.context.vcpu is not None:
            target.debug.step_by_exception(thread.context.vcpu, True)
        machine.write_virtual(place, target.debug.breakpoint)

    def arrives(*words: Any) -> Any:
        machine.write_virtual(place, own)
        came.set()
        return classify(*words)

    thread.disarm = late  # type: ignore[method-assign]
    target._events.classify = arrives  # type: ignore[method-assign]
    assert client.ask("D") == b"OK"
    assert came.wait(SECONDS)
    thread.disarm = disarm  # type: ignore[method-assign]
    assert counting(debugged)
    assert machine.threads[0].state == "running"


def test_a_stop_that_the_server_has_taken_closes_no_gate(debug: Debug) -> None:
    """The thread looks once more at the moment at which the guest is let go."""
    debugged = debug("spin")
    client = debugged.begin()
    target = debugged.server.target
    (thread,) = target.threads
    assert client.ask("D") == b"OK"
    assert counting(debugged)
    stop = thread.stop = StopEvent("breakpoint")
    assert target._take(thread) is stop
    assert not target._keep(thread, stop)
    assert counting(debugged)
