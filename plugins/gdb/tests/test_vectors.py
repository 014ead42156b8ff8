"""Where the hypervisor leaves debug exceptions to the guest: breakpoints and steps by the guest's own vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.testing.tools import skip_here
from rift_gdb.means import Means

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from conftest import Debugged

    Debug = Callable[..., Debugged]

BY_VECTORS = frozenset({"breakpoint_vector", "breakpoint_vector_user", "step_vector", "step_vector_user"})
STEPS = frozenset({"debug_single_step", "debug_single_step_user"})


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


@pytest.fixture
def debugged(debug: Debug, monkeypatch: pytest.MonkeyPatch, privilege: str) -> Callable[..., Debugged]:
    """``debugged(entry, ..., steps=False)``: as ``debug``, with the guest's vectors and nothing else.

    ``steps``: the hypervisor steps, as some do that have no breakpoints.
    """
    means = Means.of
    kept: set[str] = set(BY_VECTORS)

    def of(capabilities: Set[str]) -> Means:
        return means(frozenset(capabilities) & kept)

    def make(*entries: str, steps: bool = False) -> Debugged:
        kept.update(STEPS if steps else ())
        made = debug(*entries, privilege=privilege)
        reached = made.server.target.means
        step = "exit" if steps else "vector"
        if reached.instruction[privilege] != "vector" or reached.step[privilege] != step:  # type: ignore[index]
            skip_here(f"{made.machine.backend} does not leave debug exceptions of {privilege} mode to the guest")
        return made

    monkeypatch.setattr(Means, "of", of)
    return make


def table(machine: Debugged) -> bytes:
    """The gates of the first thread's IDT."""
    area = next(m for m in machine.machine.engine.contexts[0].areas.values() if "descriptor" in m.name)
    return bytes(area.host[: 16 * 32])


def test_breakpoints_and_steps(debugged: Callable[..., Debugged]) -> None:
    machine = debugged("main")
    client = machine.begin(2)
    twice = machine.at("twice")
    assert client.ask(f"Z0,{twice:x},1") == b"OK"
    for _ in range(2):
        stop = client.stop("vCont;c")
        assert machine.pc(stop) == twice
        assert "swbreak" in stop
        assert client.read(twice, 1) != b"\xcc"
        places = {machine.pc(client.stop("vCont;s:1")) for _ in range(3)}
        assert len(places) == 3
        assert all(twice < place < twice + machine.machine.symbol("twice").size + 64 for place in places)
    assert client.ask("vCont;c") == b"W02"


def test_no_hit_of_any_thread_is_lost(debugged: Callable[..., Debugged]) -> None:
    machine = debugged("spin", "spin_too")
    client = machine.begin()
    bump = machine.at("bump")
    assert client.ask(f"Z0,{bump:x},1") == b"OK"
    hits = {1: 0, 2: 0}
    for _ in range(30):
        stop = client.stop("vCont;c")
        assert machine.pc(stop) == bump
        hits[stop["thread"]] += 1
    assert min(hits.values()) > 0
    counts = machine.machine.symbol("counts").view().cast("q")
    for thread in (1, 2):
        assert hits[thread] - counts[thread - 1] in (0, 1)


def test_watched_memory(debugged: Callable[..., Debugged]) -> None:
    machine = debugged("stores")
    client = machine.begin()
    watched = machine.at("watched")
    assert client.ask(f"Z2,{watched:x},8") == b"OK"
    for value in (1, 2):
        stop = client.stop("vCont;c")
        assert int(stop["watch"], 16) == watched
        assert int.from_bytes(client.read(watched, 8), "little") == value


@pytest.mark.parametrize("steps", [False, True])
def test_a_payload_with_handlers_of_its_own(debugged: Callable[..., Debugged], privilege: str, steps: bool) -> None:
    """Its handler would take the breakpoint for a fault of the program; inside of it there are breakpoints as well."""
    if privilege == "user":
        skip_here("handlers are for supervisor threads")  # by design
    machine = debugged("handled", steps=steps)
    client = machine.begin()
    places = [machine.at(name) for name in ("the_fault", "skip_fault", "mended")]
    if not steps:
        places.pop(0)  # the guest's own step goes over its handler: the trap flag is off in there
    for place in places:
        assert client.ask(f"Z0,{place:x},1") == b"OK"
    for place in places:
        assert machine.pc(client.stop("vCont;c")) == place
    assert client.ask("vCont;c") == b"W65"


def test_what_a_fault_of_the_guest_is(debugged: Callable[..., Debugged]) -> None:
    machine = debugged("crash")
    client = machine.begin()
    assert client.ask(f"Z0,{machine.at('poke'):x},1") == b"OK"
    assert machine.pc(client.stop("vCont;c")) == machine.at("poke")
    assert client.stop("vCont;c")["signal"] == 11
    assert "not mapped" in client.console


def test_the_programs_own_breakpoint(debugged: Callable[..., Debugged]) -> None:
    machine = debugged("own_breakpoint")
    client = machine.begin()
    assert client.ask(f"Z0,{machine.at('twice'):x},1") == b"OK"  # so that breakpoints are reported at all
    stop = client.stop("vCont;c")
    assert stop["signal"] == 5
    assert "swbreak" not in stop
    assert client.ask("vCont;c") == b"W06"


def test_its_handlers_come_back(debugged: Callable[..., Debugged], privilege: str) -> None:
    if privilege == "user":
        skip_here("user threads have Rift's handlers from the beginning")  # by design
    machine = debugged("spin")
    client = machine.begin()
    before = table(machine)
    bump = machine.at("bump")
    assert client.ask(f"Z0,{bump:x},1") == b"OK"
    client.stop("vCont;c")
    assert table(machine) != before
    assert client.ask("D") == b"OK"
    again = machine.connect()
    again.stop("?")
    assert table(machine) == before
    assert again.ask("vKill;1") == b"OK"
