"""Breakpoints and watchpoints: by which means they are carried out, and that they stop what they should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.errors import AddressError
from rift_core.memory import Permission
from rift_gdb.breakpoints import Breakpoints, Watch
from rift_gdb.errors import PacketError
from rift_gdb.means import Means

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    from rift_core.backend import Watchpoint

    Debug = Callable[..., Debugged]

PVM = frozenset(
    {"breakpoint_failure", "breakpoint_vector_user", "debug_hw_breakpoint", "debug_single_step", "step_vector_user"}
)
"""What kvm_pvm's probe finds."""

FULL = frozenset(
    name + user
    for name in ("debug_single_step", "debug_sw_breakpoint", "debug_hw_breakpoint", "debug_watchpoint")
    for user in ("", "_user")
)

CODE, USER_CODE, DATA, HOLE, ROM = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


class FakeView:
    """Five pages: supervisor code, user code, writable data, nothing, and memory that the host gave read-only."""

    physical = False
    _permissions = {  # noqa: RUF012 - a constant of the tests
        CODE: Permission.READ | Permission.EXECUTE,
        USER_CODE: Permission.READ | Permission.EXECUTE | Permission.USER,
        DATA: Permission.READ | Permission.WRITE | Permission.EXECUTE,
        ROM: Permission.READ | Permission.EXECUTE,
    }

    def walk(self, address: int) -> Any:
        permissions = self._permissions.get(address & ~0xFFF)
        mapped = permissions is not None
        return SimpleNamespace(
            physical=address if mapped else None, permissions=permissions or Permission.NONE, reason="made up"
        )

    def pieces(self, address: int, size: int) -> list[Any]:
        if self.walk(address).physical is None:
            raise AddressError("not mapped")
        host = memoryview(bytes(size)) if address & ~0xFFF == ROM else memoryview(bytearray(size))
        return [SimpleNamespace(physical=address, host=host)]


VIEW: Any = FakeView()


def table(capabilities: frozenset[str], slots: int = 4, levels: tuple[str, ...] = ("supervisor",)) -> Breakpoints:
    def fits(breakpoints: tuple[int, ...], watchpoints: tuple[Watchpoint, ...]) -> bool:
        return len(breakpoints) + len(watchpoints) <= slots

    return Breakpoints(Means.of(capabilities), fits, lambda: levels)  # type: ignore[arg-type,return-value]


def test_code_that_cannot_change_is_patched_and_other_code_takes_a_register() -> None:
    points = table(FULL)
    for address in (CODE, DATA, HOLE, ROM):
        points.add(address, VIEW)
    arranged = points.arrange()
    assert set(arranged.patched) == {CODE}
    assert set(arranged.hardware) == {DATA, HOLE, ROM}


def test_without_registers_left_writable_code_is_patched() -> None:
    points = table(FULL, slots=1)
    points.add(DATA, VIEW)
    points.add(DATA + 8, VIEW)
    arranged = points.arrange()
    assert len(arranged.hardware) == 1
    assert set(arranged.patched) | set(arranged.hardware) == {DATA, DATA + 8}
    points.add(CODE, VIEW, hardware=True)
    arranged = points.arrange()
    assert arranged.hardware == (CODE,)
    assert set(arranged.patched) == {DATA, DATA + 8}, "what can be patched gives its register up"


def test_a_register_that_nothing_else_can_do_without_is_not_taken_away() -> None:
    points = table(FULL, slots=1)
    points.add(HOLE, VIEW)
    with pytest.raises(PacketError, match="in use"):
        points.add(CODE, VIEW, hardware=True)
    with pytest.raises(PacketError, match="in use"):
        points.watch(Watch(DATA, 8, "write"), VIEW)
    assert points.arrange().hardware == (HOLE,)


def test_hardware_breakpoints_are_refused_when_the_registers_are_full() -> None:
    points = table(FULL, slots=2)
    points.add(CODE, VIEW, hardware=True)
    points.add(CODE + 8, VIEW, hardware=True)
    with pytest.raises(PacketError, match="in use"):
        points.add(CODE + 16, VIEW, hardware=True)
    points.remove(CODE, hardware=True)
    points.add(CODE + 16, VIEW, hardware=True)


def test_user_code_where_registers_work_for_the_supervisor_only() -> None:
    points = table(PVM, levels=("user",))
    points.add(USER_CODE, VIEW, hardware=True)
    assert set(points.arrange().patched) == {USER_CODE}, "asked for as hardware, carried out by what works"
    with pytest.raises(PacketError, match="not mapped"):
        points.add(HOLE, VIEW)


def test_code_that_both_levels_may_run() -> None:
    """A debug register would stop only one of them."""
    points = table(PVM, levels=("supervisor", "user"))
    points.add(USER_CODE, VIEW)
    points.add(CODE, VIEW, hardware=True)
    arranged = points.arrange()
    assert set(arranged.patched) == {USER_CODE}
    assert arranged.hardware == (CODE,)


def test_nothing_works() -> None:
    points = table(frozenset({"debug_single_step"}))
    with pytest.raises(PacketError, match="no breakpoints in supervisor mode"):
        points.add(CODE, VIEW)
    assert not points


def test_a_watchpoint_without_registers_is_for_writes_only() -> None:
    points = table(PVM)
    points.watch(Watch(DATA, 8, "write"), VIEW)
    assert points.arrange().compared == (Watch(DATA, 8, "write"),)
    with pytest.raises(PacketError, match="reads"):
        points.watch(Watch(DATA, 8, "access"), VIEW)
    for size in (0, 1 << 20):
        with pytest.raises(PacketError):
            points.watch(Watch(DATA, size, "write"), VIEW)


@pytest.mark.parametrize("address", range(0x1000, 0x1008))
@pytest.mark.parametrize("size", range(1, 20))
def test_pieces_of_a_watchpoint(address: int, size: int) -> None:
    """Powers of two, aligned, side by side, and together what was asked for."""
    at = address
    for piece in Watch(address, size, "write").pieces():
        assert piece.size in (1, 2, 4, 8)
        assert piece.address % piece.size == 0
        assert piece.address == at
        at += piece.size
    assert at == address + size


def test_what_the_probe_has_measured() -> None:
    pvm = Means.of(PVM)
    assert pvm.instruction == {"supervisor": "failure", "user": "vector"}
    assert pvm.step == {"supervisor": "exit", "user": "vector"}
    assert pvm.hardware == {"supervisor": True, "user": False}
    assert pvm.watch == {"supervisor": False, "user": False}
    assert "by stepping" in "\n".join(pvm.describe())
    full = Means.of(FULL)
    assert full.instruction == {"supervisor": "exit", "user": "exit"}
    assert Means.of(frozenset()).step == {"supervisor": "", "user": ""}


# -- with guests ---------------------------------------------------------------------------------


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


@pytest.mark.parametrize("packet", ["Z0", "Z1"])
def test_a_breakpoint_stops_before_its_instruction(debug: Debug, privilege: str, packet: str) -> None:
    debugged = debug("main", privilege=privilege)
    client = debugged.begin()
    twice = debugged.at("twice")
    assert client.ask(f"{packet},{twice:x},1") == b"OK"
    for argument in range(3):
        stop = client.stop("vCont;c")
        assert debugged.pc(stop) == twice
        assert ("swbreak" if packet == "Z0" else "hwbreak") in stop
        assert client.register(debugged.numbers["arg1"]) & 0xFFFF_FFFF == argument
    assert client.ask("vCont;c") == b"W06"
    assert debugged.join().status == 6


def test_memory_shows_the_program_and_not_the_breakpoint(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    twice = debugged.at("twice")
    before = client.read(twice, 16)
    assert client.ask(f"Z0,{twice:x},1") == b"OK"
    assert client.read(twice, 16) == before
    client.stop("vCont;c")
    assert client.read(twice, 16) == before
    assert debugged.machine.read_virtual(twice, 16) == before
    client.stop("vCont;s:1")
    assert client.ask(f"z0,{twice:x},1") == b"OK"
    assert client.ask(f"z0,{twice:x},1") == b"OK", "twice is harmless"
    assert client.ask("vCont;c") == b"W06"


def test_stepping_from_one_breakpoint_onto_the_next(debug: Debug, privilege: str) -> None:
    """Each of the first instructions of a function has one: a step is a step, and going on stops at each."""
    debugged = debug("main", privilege=privilege)
    client = debugged.begin()
    twice = debugged.at("twice")
    assert client.ask(f"Z0,{twice:x},1") == b"OK"
    client.stop("vCont;c")
    places = [twice, *(debugged.pc(client.stop("vCont;s:1")) for _ in range(3))]
    assert len(set(places)) == 4
    for place in places:
        assert client.ask(f"Z0,{place:x},1") == b"OK"
    assert [debugged.pc(client.stop("vCont;c")) for _ in range(4)] == places, "the second call"
    assert debugged.pc(client.stop("vCont;c")) == twice, "the third call"
    assert [debugged.pc(client.stop("vCont;s:1")) for _ in range(3)] == places[1:]


def test_more_breakpoints_than_registers(debug: Debug, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    client = debugged.begin()
    names = ("twice", "work", "bump", "poke", "store", "crash", "trap", "spin")
    for name in names:
        assert client.ask(f"Z0,{debugged.at(name):x},1") == b"OK"
    assert debugged.pc(client.stop("vCont;c")) == debugged.at("work")
    assert debugged.pc(client.stop("vCont;c")) == debugged.at("twice")


PLACE = 0x5100_0000


def map_code(debugged: Debugged, privilege: str) -> None:
    debugged.machine.map(PLACE, 0x1000, "rwxu" if privilege == "user" else "rwx")


def test_a_breakpoint_in_code_that_the_guest_writes(debug: Debug, privilege: str) -> None:
    """The guest writes its function over the breakpoint, twice: its code is not damaged, and where there are debug
    registers both calls stop."""
    debugged = debug("rewrite", privilege=privilege)
    map_code(debugged, privilege)
    client = debugged.begin(PLACE)
    assert client.ask(f"Z0,{PLACE:x},1") == b"OK"
    if debugged.server.target.means.hardware[privilege]:
        for _ in range(2):
            assert debugged.pc(client.stop("vCont;c")) == PLACE
    assert client.ask("vCont;c") == b"W15"
    assert debugged.join().status == 21


def test_what_the_guest_has_overwritten_is_not_brought_back(debug: Debug) -> None:
    """A patched place is overwritten between two stops: that is the program then."""
    debugged = debug("rewrite", privilege="user")
    map_code(debugged, "user")
    client = debugged.begin(PLACE)
    one = debugged.at("one")
    target = debugged.server.target
    target._patches.insert(PLACE, target.view(None))
    assert debugged.machine.read_virtual(PLACE, 4)[: len(target.debug.breakpoint)] == target.debug.breakpoint
    code = debugged.machine.read_virtual(one, 4)
    debugged.machine.engine.write_code(PLACE, code)
    target._patches.remove()
    assert debugged.machine.read_virtual(PLACE, 4) == code
    assert client.ask("vCont;c") == b"W15"


def test_a_breakpoint_in_pages_that_come_later(debug: Debug, privilege: str) -> None:
    """Nothing is mapped there yet: a debug register does not mind."""
    debugged = debug("rewrite", privilege=privilege)
    client = debugged.begin(PLACE)
    answer = client.ask(f"Z0,{PLACE:x},1")
    if not debugged.server.target.means.hardware[privilege]:
        assert answer.startswith(b"E")
        assert b"not mapped" in answer
        return
    assert answer == b"OK"
    map_code(debugged, privilege)
    assert debugged.pc(client.stop("vCont;c")) == PLACE
    debugged.machine.kill()


def test_a_page_that_is_mapped_anew(debug: Debug) -> None:
    """Between two stops the page of a patched breakpoint becomes another one: the breakpoint is in the new one too."""
    debugged = debug("main", privilege="user")
    client = debugged.begin()
    machine = debugged.machine
    twice = debugged.at("twice")
    page = twice & ~(machine.engine.page - 1)
    assert client.ask(f"Z0,{twice:x},1") == b"OK"
    assert debugged.pc(client.stop("vCont;c")) == twice
    before = machine.translate(page)
    content = machine.read_virtual(page, machine.engine.page)
    machine.unmap(page, machine.engine.page)
    machine.map(page, machine.engine.page, before.permissions)
    assert machine.translate(page).physical != before.physical
    machine.engine.write_code(page, content)
    for _ in range(2):
        assert debugged.pc(client.stop("vCont;c")) == twice
    assert client.ask("vCont;c") == b"W06"


def test_a_watchpoint_on_writes(debug: Debug, privilege: str) -> None:
    debugged = debug("stores", privilege=privilege)
    client = debugged.begin()
    watched = debugged.at("watched")
    assert client.ask(f"Z2,{watched:x},8") == b"OK"
    for value in (1, 2, 3):
        stop = client.stop("vCont;c")
        assert int(stop["watch"], 16) == watched
        if not debugged.machine.isa.debug.watch_is_late:
            client.ask(f"z2,{watched:x},8")
            client.stop("vCont;s:1")
            client.ask(f"Z2,{watched:x},8")
        assert client.read(watched, 8) == value.to_bytes(8, "little")
    assert client.ask(f"z2,{watched:x},8") == b"OK"
    assert client.ask("vCont;c") == b"W09"


def test_a_watchpoint_on_reads_or_a_reason(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    counter = debugged.at("counter")
    answer = client.ask(f"Z4,{counter:x},4")
    if debugged.server.target.means.watch["supervisor"]:
        assert answer == b"OK"
        stop = client.stop("vCont;c")
        assert int(stop["awatch"], 16) == counter
    else:
        assert answer.startswith(b"E")
        assert b"reads" in answer


def test_watchpoints_are_counted_for_lldb(debug: Debug) -> None:
    client = debug("main").begin()
    answer = client.ask("qWatchpointSupportInfo").decode()
    assert answer.startswith("num:")
    assert int(answer[4:].rstrip(";")) > 0


def test_a_watchpoint_and_a_breakpoint_at_a_time(debug: Debug) -> None:
    debugged = debug("stores")
    client = debugged.begin()
    watched, store = debugged.at("watched"), debugged.at("store")
    assert client.ask(f"Z2,{watched:x},8") == b"OK"
    assert client.ask(f"Z0,{store:x},1") == b"OK"
    assert debugged.pc(client.stop("vCont;c")) == store
    assert int(client.stop("vCont;c")["watch"], 16) == watched


def test_the_programs_own_breakpoint(debug: Debug, privilege: str) -> None:
    """Not ours: it is told as a trap, and going on goes on behind it."""
    debugged = debug("own_breakpoint", privilege=privilege)
    client = debugged.begin()
    stop = client.stop("vCont;c")
    assert stop["signal"] == 5
    assert "swbreak" not in stop
    assert client.read(debugged.at("counter"), 4) == (1).to_bytes(4, "little")
    if debugged.isa == "aarch64":  # debuggers step over BRK themselves
        pc = debugged.pc(stop) + 4
        assert client.ask(f"P{debugged.numbers['pc']:x}={pc.to_bytes(8, 'little').hex()}") == b"OK"
    assert client.ask("vCont;c") == b"W06"


def test_malformed_points(debug: Debug) -> None:
    client = debug("main").begin()
    for packet in ("Z0", "Z0,", "Z0,zz,1", "Z0,10", "Z2,10,0", "Z2,ffffffffffffffff,8"):
        assert client.ask(packet).startswith(b"E"), packet
    assert client.ask("Z9,10,1") == b""
