"""Several guest threads: stopped together, told one after another, stepped one by one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]


def counts(debugged: Debugged) -> list[int]:
    """What both threads have counted."""
    return list(debugged.machine.symbol("counts").view().cast("q"))


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    """Both levels: on some machines they are debugged by different means."""
    level: str = request.param
    return level


def test_all_threads_are_listed_in_every_way(debug: Debug) -> None:
    debugged = debug("spin", "spin_too")
    client = debugged.begin()
    assert client.ask("qfThreadInfo") == b"m1,2"
    assert client.ask("qsThreadInfo") == b"l"
    document = client.document("threads")
    assert '<thread id="1" core="0" name="spin">vCPU 0, supervisor mode, pc=' in document
    assert '<thread id="2" core="1" name="spin_too">' in document
    assert b"spin_too (vCPU 1" in bytes.fromhex(client.ask("qThreadExtraInfo,2").decode())
    assert client.ask("T2") == b"OK"
    assert client.ask("T3").startswith(b"E")
    assert client.ask("Hg2") == b"OK"
    assert client.ask("qC") == b"QC2"
    assert client.register(debugged.numbers["pc"]) == debugged.at("spin_too")
    assert client.ask("Hg0") == b"OK"
    assert client.ask("Hg9").startswith(b"E")


def test_no_hit_of_any_thread_is_lost(debug: Debug, privilege: str) -> None:
    """Both run through the same breakpoint, and each passage is told once."""
    debugged = debug("spin", "spin_too", privilege=privilege)
    client = debugged.begin()
    bump = debugged.at("bump")
    assert client.ask(f"Z0,{bump:x},{len(debugged.machine.isa.debug.breakpoint)}") == b"OK"
    hits = {1: 0, 2: 0}
    for _ in range(40):
        stop = client.stop("vCont;c")
        assert debugged.pc(stop) == bump
        assert "swbreak" in stop
        hits[stop["thread"]] += 1
    assert min(hits.values()) > 0
    # A thread has counted all its hits but the last, or that one too if it has not come again since.
    for thread, counted in enumerate(counts(debugged), 1):
        assert hits[thread] - counted in (0, 1)


def test_one_thread_steps_while_the_other_stands(debug: Debug, privilege: str) -> None:
    debugged = debug("spin", "spin_too", privilege=privilege)
    client = debugged.begin()
    before = counts(debugged)
    places = set()
    for _ in range(12):
        stop = client.stop("vCont;s:1")
        assert stop["thread"] == 1
        assert stop["signal"] == 5
        places.add(debugged.pc(stop))
    assert len(places) > 3
    after = counts(debugged)
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_one_thread_steps_while_the_other_runs(debug: Debug) -> None:
    debugged = debug("spin", "spin_too")
    client = debugged.begin()
    before = counts(debugged)[1]
    deadline = time.monotonic() + 10
    while counts(debugged)[1] == before and time.monotonic() < deadline:
        assert client.stop("vCont;s:1;c")["thread"] == 1
    assert counts(debugged)[1] > before


def test_a_range_is_stepped_without_asking(debug: Debug, privilege: str) -> None:
    """One packet, one answer, many instructions: that the client needs them not is what range steps are for."""
    debugged = debug("spin", privilege=privilege)
    client = debugged.begin()
    bump = debugged.at("bump")
    size = debugged.machine.symbol("bump").size
    assert client.ask(f"Z0,{bump:x},1") == b"OK"
    assert debugged.pc(client.stop("vCont;c")) == bump
    assert client.ask(f"z0,{bump:x},1") == b"OK"
    exits = debugged.machine.threads[0].context.vcpu.exit_count
    stop = client.stop(f"vCont;r{bump:x},{bump + size:x}:1")
    assert not bump <= debugged.pc(stop) < bump + size
    assert debugged.machine.threads[0].context.vcpu.exit_count > exits + 3


def test_a_breakpoint_ends_a_range(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    bump = debugged.at("bump")
    stop = client.stop("vCont;s:1")
    # From wherever it is, all the code there is: only the breakpoint can stop it.
    assert client.ask(f"Z0,{bump:x},1") == b"OK"
    stop = client.stop("vCont;r0,ffffffffffffffff:1")
    assert debugged.pc(stop) == bump
    assert "swbreak" in stop


def test_ctrl_c_stops_spinning_threads_soon(debug: Debug, privilege: str) -> None:
    debugged = debug("spin", "spin_too", privilege=privilege)
    client = debugged.begin()
    took: list[float] = []
    while len([seconds for seconds in took if seconds < 0.1]) < 3:  # others may have the CPU at times
        assert len(took) < 15, took
        client.send("vCont;c")
        time.sleep(0.02)
        began = time.monotonic()
        client.interrupt()
        assert client.stop()["signal"] == 2
        took.append(time.monotonic() - began)
    standing = counts(debugged)
    time.sleep(0.05)
    assert counts(debugged) == standing


def test_threads_that_come_later_are_held_and_shown(debug: Debug) -> None:
    debugged = debug("spin", "spin_too")
    first, second = debugged.machine.threads
    first.start()
    client = debugged.connect()
    client.stop("?")
    assert client.ask("qfThreadInfo") == b"m1"
    second.start()
    before = counts(debugged)
    time.sleep(0.05)
    assert counts(debugged) == before
    assert client.ask("qfThreadInfo") == b"m1,2"
    bump = debugged.at("bump")
    assert client.ask(f"Z0,{bump:x},1") == b"OK"
    seen = {client.stop("vCont;c")["thread"] for _ in range(20)}
    assert seen == {1, 2}


def test_calls_are_threads_too(debug: Debug) -> None:
    """``machine.call`` on this thread, stopped by a client that another thread plays."""
    import threading

    debugged = debug("spin", wait=False)
    work = debugged.at("twice")
    debugged.start()
    client = debugged.connect()
    client.stop("?")
    assert client.ask(f"Z0,{work:x},1") == b"OK"
    client.send("vCont;c")
    results: list[Any] = []
    caller = threading.Thread(target=lambda: results.append(debugged.machine.call("twice", 21)))
    caller.start()
    stop = client.stop()
    assert stop["thread"] == 2
    assert 'name="call-1"' in client.document("threads")
    argument = client.register(debugged.numbers["arg1"])
    assert argument == 21
    assert client.ask(f"P{debugged.numbers['arg1']:x}={(4).to_bytes(8, 'little').hex()}") == b"OK"
    client.send("vCont;c")
    caller.join(20)
    assert results == [8]


def test_the_end_of_a_thread_among_others(debug: Debug) -> None:
    """Only one thread is let go, and it ends: nothing is running any more."""
    debugged = debug("main", "spin")
    client = debugged.begin()
    assert client.ask("vCont;c:1") == b"N"
    assert client.ask("qfThreadInfo") == b"m2"
    assert debugged.join().status == 6


@pytest.mark.parametrize("first", [1, 2])
def test_the_status_is_that_of_the_first_thread_whichever_ends_last(debug: Debug, first: int) -> None:
    debugged = debug("main", "stores")
    client = debugged.begin()
    assert client.ask(f"vCont;c:{first}") == b"N"
    assert client.ask("vCont;c") == b"W06"
    assert debugged.machine.threads[1].join(20).status == 9


def test_a_thread_that_has_faulted_is_how_the_guest_has_ended(debug: Debug) -> None:
    debugged = debug("main", "crash")
    client = debugged.begin()
    assert client.stop("vCont;c:2")["signal"] == 11
    assert client.ask("vCont;C0b:2") == b"N"
    assert client.ask("vCont;c")[:1] == b"X"
