"""The guest's faults: stopped where they happen, told in words, and then ended, repaired or tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core import GuestFaultError, UnhandledExitError
from rift_core.testing.tools import skip_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


def outcome(debugged: Debugged) -> BaseException | object:
    thread = debugged.machine.threads[0]
    assert thread.wait_ended(SECONDS)
    return thread.outcome


def test_it_stops_at_the_instruction_with_its_registers(debug: Debug, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    client = debugged.begin()
    stop = client.stop("vCont;c")
    poke = debugged.machine.symbol("poke")
    assert stop["signal"] == 11
    assert poke.address <= debugged.pc(stop) < poke.address + poke.size
    assert client.register(debugged.numbers["arg1"]) == 0xDEAD_0000
    assert "not mapped" in client.console
    assert "0xdead0000" in client.console
    assert client.console.startswith("rift: thread crash: ")
    assert debugged.machine.threads[0].state == "running", "nothing is torn down while the debugger looks"
    assert client.read(debugged.at("counter"), 4) == (1).to_bytes(4, "little")


def test_going_on_with_the_signal_ends_the_thread(debug: Debug, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    client = debugged.begin()
    client.stop("vCont;c")
    assert client.ask("vCont;C0b:1") == b"X0b"
    error = outcome(debugged)
    assert isinstance(error, GuestFaultError)
    assert "0xdead0000" in str(error)
    assert "poke" in str(error)


def test_without_the_signal_it_is_tried_again(debug: Debug, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    client = debugged.begin()
    first = client.stop("vCont;c")
    again = client.stop("vCont;c")
    assert debugged.pc(again) == debugged.pc(first)
    assert again["signal"] == 11


def test_a_repaired_cause_lets_it_go_on(debug: Debug, privilege: str) -> None:
    """The register that held the wrong address gets a right one."""
    debugged = debug("crash", privilege=privilege)
    client = debugged.begin()
    client.stop("vCont;c")
    debugged.machine.map(0xDEAD_0000, 0x1000, "rwu" if privilege == "user" else "rw")
    assert client.ask("vCont;c") == b"W03"
    assert client.console.count("rift:") == 1
    assert debugged.machine.read_virtual(0xDEAD_0000, 4) == (5).to_bytes(4, "little")


def test_steps_come_upon_a_fault_too(debug: Debug, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    client = debugged.begin()
    for _ in range(60):
        stop = client.stop("vCont;s:1")
        if stop["signal"] == 11:
            break
    assert stop["signal"] == 11
    assert client.ask("vCont;C0b:1") == b"X0b"
    assert isinstance(outcome(debugged), GuestFaultError)


def test_a_step_goes_over_an_exception_that_the_guest_handles(debug: Debug) -> None:
    """The payload's own handler runs, hundreds of instructions, and the step ends where it has sent the thread."""
    debugged = debug("handled")
    client = debugged.begin()
    fault = debugged.at("the_fault")
    assert client.ask(f"Z0,{fault:x},1") == b"OK"
    assert debugged.pc(client.stop("vCont;c")) == fault
    # kvm_pvm takes the instruction behind an IRETQ along.
    beyond = 1 if debugged.machine.backend == "kvm" and debugged.isa == "x86_64" else 0
    after = debugged.at("after_the_fault")
    assert after <= debugged.pc(client.stop("vCont;s:1")) <= after + beyond
    assert client.read(debugged.at("counter"), 4) == (100).to_bytes(4, "little")
    assert client.ask("vCont;c") == b"W65"


def test_breakpoints_in_handlers_stop_all_the_same(debug: Debug) -> None:
    debugged = debug("handled")
    client = debugged.begin()
    handler = debugged.at("skip_fault")
    assert client.ask(f"Z0,{debugged.at('the_fault'):x},1") == b"OK"
    assert client.ask(f"Z0,{handler:x},1") == b"OK"
    client.stop("vCont;c")
    stop = client.stop("vCont;c")
    assert debugged.pc(stop) == handler
    assert client.ask("vCont;c") == b"W65"


def test_a_breakpoint_comes_before_the_fault_of_fetching(debug: Debug, privilege: str) -> None:
    """GDB lets functions that it calls return to the stack, and has a breakpoint there."""
    debugged = debug("main", privilege=privilege)
    client = debugged.begin()
    place = (client.register(debugged.numbers["sp"]) - 64) & ~15
    assert client.ask(f"Z0,{place:x},1") == b"OK"
    assert client.ask(f"P{debugged.numbers['pc']:x}={place.to_bytes(8, 'little').hex()}") == b"OK"
    stop = client.stop("vCont;c")
    assert (stop["signal"], debugged.pc(stop), client.console) == (5, place, "")
    assert "swbreak" in stop
    stop = client.stop("vCont;c")
    assert (stop["signal"], debugged.pc(stop)) == (11, place)
    assert "instruction fetch" in client.console


def test_a_trap_of_the_compiler(debug: Debug, privilege: str) -> None:
    debugged = debug("trap", privilege=privilege)
    client = debugged.begin()
    stop = client.stop("vCont;c")
    trap = debugged.machine.symbol("trap")
    assert stop["signal"] in (4, 5)  # UD2 is SIGILL, BRK SIGTRAP
    assert trap.address <= debugged.pc(stop) <= trap.address + trap.size


def test_an_exit_that_nobody_answers(debug: Debug) -> None:
    debugged = debug("unanswered")
    client = debugged.begin()
    stop = client.stop("vCont;c")
    assert stop["signal"] == 6
    assert "nobody answers" in client.console
    assert client.read(debugged.at("counter"), 4) == (2).to_bytes(4, "little")
    # Going on leaves the store aside.
    assert client.ask("vCont;c") == b"W04"


def test_an_exit_that_nobody_answers_ends_the_thread_with_its_signal(debug: Debug) -> None:
    debugged = debug("unanswered")
    client = debugged.begin()
    client.stop("vCont;c")
    assert client.ask("vCont;C06:1") == b"X06"
    assert isinstance(outcome(debugged), UnhandledExitError)


def test_a_cpu_that_shuts_down(debug: Debug) -> None:
    """No vectors, no stack: on x86-64 a triple fault. AArch64 has nothing like it: it faults for ever."""
    debugged = debug("main")
    if debugged.isa != "x86_64":
        skip_here("only x86-64 has a triple fault")  # by design
    client = debugged.begin()
    for name in ("idtr_limit",):
        row = debugged.server.target.layout.find(name)
        assert row is not None
        assert client.ask(f"P{row.number:x}={bytes(row.size).hex()}") == b"OK"
    sp = debugged.numbers["sp"]
    assert client.ask(f"P{sp:x}={(0x10).to_bytes(8, 'little').hex()}") == b"OK"
    stop = client.stop("vCont;c")
    assert stop["signal"] == 6
    assert "triple fault" in client.console
    assert client.ask("vCont;C06:1") == b"X06"


def test_lldb_is_told_in_the_stop_reply(debug: Debug) -> None:
    debugged = debug("crash")
    debugged.start()
    client = debugged.connect()
    assert client.ask("QThreadSuffixSupported") == b"OK"
    assert client.ask("QListThreadsInStopReply") == b"OK"
    first = client.stop("?")
    assert first["threads"] == "1"
    assert int(first["thread-pcs"], 16) == debugged.at("crash")
    stop = client.stop("vCont;c")
    assert stop["reason"] == "exception"
    assert "not mapped" in bytes.fromhex(stop["description"]).decode()
    import json

    (info,) = json.loads(client.ask("jThreadsInfo"))
    assert info["tid"] == 1
    assert info["name"] == "crash"
    assert info["signal"] == 11
    assert "not mapped" in info["description"]
    assert client.stop("qThreadStopInfo1")["signal"] == 11


def test_without_a_client_a_fault_ends_the_thread_as_ever(debug: Debug) -> None:
    debugged = debug("crash", wait=False)
    debugged.start()
    assert isinstance(outcome(debugged), GuestFaultError)


def test_a_fault_can_wait_for_a_debugger(debug: Debug) -> None:
    debugged = debug("crash", wait=False, hold_faults=True)
    thread = debugged.start()
    assert not thread.wait_ended(0.3)
    client = debugged.connect()
    stop = client.stop("?")
    assert stop["signal"] == 11
    assert client.register(debugged.numbers["arg1"]) == 0xDEAD_0000
    assert client.ask("vCont;C0b:1") == b"X0b"
    assert isinstance(outcome(debugged), GuestFaultError)


def test_faults_of_two_threads_are_told_one_after_another(debug: Debug) -> None:
    debugged = debug("crash", "trap")
    client = debugged.begin()
    first = client.stop("vCont;c")
    second = client.stop("vCont;c")
    for _ in range(20):
        if second["thread"] != first["thread"]:
            break
        second = client.stop("vCont;c")
    assert {first["thread"], second["thread"]} == {1, 2}
