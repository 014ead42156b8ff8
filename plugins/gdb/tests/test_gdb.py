"""Real GDBs in batch mode: the distribution's, and the newest from PyPI."""

from __future__ import annotations

import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from debuggers import gdb_for

from rift_core.testing.tools import skip_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 60.0
PATIENT = "set remotetimeout 30\n"  # on a busy machine GDB would give up after two seconds


class Gdb:
    """Runs a GDB with commands against a machine."""

    def __init__(self, program: str) -> None:
        self.program = program

    def run(self, debugged: Debugged, commands: str, *, file: bool = True) -> str:
        """What it prints. ``file``: it is told the payload; else it has to find symbols by itself."""
        program = gdb_for(debugged.isa, self.program)
        head = f"{PATIENT}set pagination off\nset confirm off\nset width 0\ntarget remote {debugged.server.address}\n"
        lines = [word for line in (head + commands).splitlines() for word in ("-ex", line)]
        files = [str(debugged.machine.binary.path)] if file else []
        answer = subprocess.run(
            [program, "-nx", "-q", "-batch", *files, *lines],
            capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return answer.stdout + answer.stderr


@pytest.fixture
def session(gdb: str) -> Gdb:
    return Gdb(gdb)


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


def test_it_finds_symbols_by_itself(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    text = session.run(debugged, "info symbol $pc\nbacktrace\nkill\n", file=False)
    assert "main in section .text" in text
    assert "payload.c" in text


def test_break_look_and_go_on(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(
        debugged,
        """break twice
continue
backtrace
print value
info registers pc
print counter
continue
print value
finish
print corner
delete
continue
""",
    )
    assert "Breakpoint 1, twice (value=value@entry=0)" in text or "Breakpoint 1, twice (value=0)" in text
    assert "#1 " in text
    assert "work (" in text
    assert "main (" in text
    assert "<twice>" in text
    assert "= {x = 3, y = 4}" in text
    assert "Value returned is $" in text
    assert "exited with code 06" in text
    assert debugged.join().status == 6


def test_steps_and_next(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "break work\ncontinue\nstepi\nnext\nnext\nstep\ninfo symbol $pc\nnext\nkill\n")
    assert "Breakpoint 1, work" in text
    assert "in section .text" in text
    assert "Cannot" not in text
    assert debugged.machine.threads[0].wait_ended(20)


def test_a_condition_and_a_variable_written(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start(6)
    text = session.run(
        debugged,
        """break twice if value == 4
continue
print value
set var counter = 1000
print counter
print $arg = counter + 1
delete
continue
""",
    )
    assert "$1 = 4" in text
    assert "$2 = 1000" in text
    assert "exited with code 036" in text  # 30
    assert debugged.machine.read_virtual(debugged.at("counter"), 4) == (1000 + 8 + 10).to_bytes(4, "little")


def test_a_hardware_breakpoint(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "hbreak twice\ncontinue\ncontinue\ndelete\ncontinue\n")
    assert text.count("Breakpoint 1, twice") == 2
    assert "exited with code 06" in text


def test_a_watchpoint(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("stores", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "watch watched\ncontinue\ncontinue\ncontinue\ndelete\ncontinue\n")
    assert "Hardware watchpoint 1: watched" in text
    for before, after in ((0, 1), (1, 2), (2, 3)):
        assert f"Old value = {before}\nNew value = {after}" in text
    assert "exited with code 011" in text


def test_a_watchpoint_on_all_accesses(debug: Debug, session: Gdb) -> None:
    """Or GDB says that there is none: by stepping only stores are noticed."""
    debugged = debug("main")
    debugged.start(1)
    works = debugged.server.target.means.watch["supervisor"]
    text = session.run(debugged, "awatch counter\ncontinue\ninfo symbol $pc\ndelete\ncontinue\n")
    assert "Hardware access (read/write) watchpoint 1: counter" in text
    if works:
        assert "Value = 7" in text
        assert "twice" in text
        assert "exited with code 00" in text or "exited normally" in text
    else:
        assert "Could not insert hardware watchpoint 1" in text


def test_functions_are_called(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "break work\ncontinue\nprint twice(21) + counter\nprint one()\ncontinue\n")
    assert "$1 = 91" in text  # 42, and the counter that it has added 42 to
    assert "$2 = 1" in text
    assert "rift:" not in text, "a return to a place that cannot be executed is the breakpoint there, and no fault"
    assert "exited with code 06" in text
    assert debugged.join().status == 6


def test_guest_physical_memory(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    where = debugged.machine.translate(debugged.at("constant")).physical
    assert where is not None
    assert where != debugged.at("constant")
    text = session.run(
        debugged,
        f"monitor phys on\nx/dw {where:#x}\nset {{int}} {where:#x} = 4321\nmonitor phys off\nx/dw &constant\nkill\n",
    )
    assert re.search(rf"{where:#x}[^\n]*:\t1234\n", text)
    assert re.search(r"<constant>:\t4321\n", text), "the page is read-only to the guest"


def test_system_registers_by_name(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    if debugged.isa == "x86_64":
        text = session.run(debugged, "print $cr0\nprint $efer\nprint/x $cr3\np/x $rax = 5\nprint $rax\nkill\n")
        assert "[ PE MP" in text
        assert "LMA" in text
        assert "= 5" in text
    else:
        text = session.run(debugged, "print $SCTLR_EL1\nprint/x $TTBR0_EL1\nprint $cpsr\nkill\n")
        assert " M " in text
    assert "void" not in text


def test_lanes_of_vector_registers_by_gdbs_names(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    x86 = debugged.isa == "x86_64"
    text = session.run(
        debugged,
        "set $xmm1.v2_int64[1] = 0x4000000000000000\nprint $xmm1.v2_double[1]\nprint/x $xmm1.uint128\nkill\n"
        if x86
        else "set $v1.d.u[1] = 0x4000000000000000\nprint $v1.d.f[1]\nprint/x $v1.q.u[0]\nkill\n",
    )
    assert "$1 = 2\n" in text
    assert "$2 = 0x40000000000000000000000000000000\n" in text


def test_threads(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("spin", "spin_too", privilege=privilege)
    debugged.start()
    text = session.run(
        debugged,
        """info threads
break bump
continue
info threads
thread apply all backtrace
set scheduler-locking on
thread 2
delete
stepi
stepi
info threads
kill
""",
    )
    assert '"spin"' in text
    assert '"spin_too"' in text
    assert f"{privilege} mode" in text
    assert "hit Breakpoint 1, bump" in text
    assert "Switching to thread 2" in text


def test_memory_across_a_page_border_and_none(debug: Debug, session: Gdb) -> None:
    debugged = debug("fill")
    debugged.start()
    text = session.run(
        debugged,
        """break twice
continue
x/4xb &pages[0xffe]
set var pages[0xfff] = 0x11
set var pages[0x1000] = 0x22
x/2xb &pages[0xfff]
find text, +20, 'n', 'e', 'e', 'd'
x/4xb 0x50000000
""",
    )
    assert "0xff\t0xff\t0x00\t0x00" in text
    assert "0x11\t0x22" in text
    assert "1 pattern found" in text
    assert "Cannot access memory at address 0x50000000" in text


def test_compare_sections(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    text = session.run(debugged, "compare-sections .text\nkill\n")
    assert "matched" in text
    assert "MIS-MATCHED" not in text


def test_a_fault_in_words(debug: Debug, session: Gdb, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "continue\nbacktrace\nprint where\ncontinue\n")
    assert "rift: thread crash: " in text
    assert "not mapped" in text
    assert "received signal SIGSEGV" in text
    assert re.search(r"in poke \(|poke \(where=", text)
    assert "= (volatile int *) 0xdead0000" in text
    assert "#1 " in text
    assert "Program terminated with signal SIGSEGV" in text
    assert debugged.machine.threads[0].wait_ended(20)


def test_a_back_trace_leads_from_a_handler_to_what_it_has_interrupted(debug: Debug, session: Gdb) -> None:
    debugged = debug("handled")
    debugged.start()
    text = session.run(
        debugged, "break skip_fault\ncontinue\nbacktrace\nfinish\nbacktrace\nfinish\nbacktrace\ncontinue\n"
    )
    interrupted = r"#{} +(0x[0-9a-f]+ in )?handled \(\)"
    frames = r"#0 +skip_fault .*\n#1 .*rift_exception_dispatch .*\n#2 .* in common(_0)? \(\) .*\n"
    assert re.search(frames + interrupted.format(3), text), text
    assert re.search(r"#0 +(0x[0-9a-f]+ in )?rift_exception_dispatch .*\n#1 .*\n" + interrupted.format(2), text), text
    assert re.search(r"#0 .* common(_0)? \(\) .*\n" + interrupted.format(1), text), text
    assert "exited with code 0145" in text


def test_an_exit_in_words(debug: Debug, session: Gdb) -> None:
    debugged = debug("unanswered")
    debugged.start()
    text = session.run(debugged, "continue\nprint counter\ncontinue\n")
    assert "rift: thread unanswered: " in text
    assert "nobody answers" in text
    assert "received signal SIGABRT" in text
    assert "$1 = 2" in text
    assert debugged.machine.threads[0].wait_ended(20)


def test_a_triple_fault_in_words(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    if debugged.isa != "x86_64":
        skip_here("only x86-64 has a triple fault")  # by design
    debugged.start()
    text = session.run(debugged, "set var $idtr_limit = 0\nset var $rsp = 0x10\ncontinue\nprint $idtr_limit\nkill\n")
    assert "rift: thread main: " in text
    assert "triple fault" in text
    assert "received signal SIGABRT" in text
    assert "$1 = 0" in text or ("its registers are lost" in text and "$1 = 65535" in text), "the machine is still there"


def test_monitor(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    debugged.start()
    text = session.run(debugged, "monitor help\nmonitor threads\nmonitor pt main\nmonitor nonsense\nkill\n")
    assert "Walk the page tables" in text
    assert "vCPU 0" in text
    assert "mapped to guest-physical" in text
    assert "try: monitor help" in text


def test_an_error_in_words(debug: Debug, session: Gdb) -> None:
    """Since version 16 the text of an error is shown."""
    version = subprocess.run([session.program, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    debugged = debug("main")
    debugged.start()
    text = session.run(debugged, "print $r15\nset var $cs = 0x12345678\nset var $x30 = 5\nx/x 0x50000000\nkill\n")
    assert "0x50000000" in text
    if int(version.rsplit(" ", 1)[1].split(".")[0]) >= 16 and debugged.isa == "x86_64":
        assert "cs has 16 bits, which 0x12345678 does not fit" in text


def test_ctrl_c(debug: Debug, session: Gdb, tmp_path: Path) -> None:
    """The signal that a terminal sends: GDB passes it on, and the guest stops."""
    import os
    import signal

    debugged = debug("spin")
    debugged.start()
    script = tmp_path / "interrupt.gdb"
    script.write_text(
        f"{PATIENT}set pagination off\nset confirm off\ntarget remote {debugged.server.address}\n"
        "continue\ninfo symbol $pc\nkill\n"
    )
    program = gdb_for(debugged.isa, session.program)
    process = subprocess.Popen(
        [program, "-nx", "-q", "-batch", str(debugged.machine.binary.path), "-x", str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    counts = debugged.machine.symbol("counts").view().cast("q")
    deadline = time.monotonic() + SECONDS
    while counts[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert counts[0] > 0
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert "received signal SIGINT" in output
    assert "in section .text" in output


def test_quitting_detaches(debug: Debug, session: Gdb) -> None:
    debugged = debug("spin")
    debugged.start()
    text = session.run(debugged, "break bump\ncontinue\ndetach\n")
    assert "detached" in text
    counts = debugged.machine.symbol("counts").view().cast("q")
    before, deadline = counts[0], time.monotonic() + 10
    while counts[0] == before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert counts[0] > before


def test_a_second_gdb_is_told_why(debug: Debug, session: Gdb) -> None:
    debugged = debug("main")
    client = debugged.begin()
    text = session.run(debugged, "")
    assert "another debugger, from 127.0.0.1, is connected already" in text
    assert client.ask("qAttached") == b"1"


def test_a_unix_socket(debug: Debug, session: Gdb, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    debugged = debug("main", listen=f"unix:{path}")
    debugged.start()
    program = gdb_for(debugged.isa, session.program)
    answer = subprocess.run(
        [program, "-nx", "-q", "-batch", "-ex", f"target remote {path}", "-ex", "info threads", "-ex", "kill"],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert '"main"' in answer.stdout


def test_a_payload_that_was_moved(debug: Debug, session: Gdb) -> None:
    """A static PIE stands elsewhere than its file says."""
    debugged = debug("main", pie=True)
    assert debugged.machine.binary.slide
    debugged.start()
    text = session.run(debugged, "break twice\ncontinue\nbacktrace\nprint counter\nprint constant\nkill\n")
    assert "Breakpoint 1, twice" in text
    assert "main (" in text
    assert "$1 = 7" in text
    assert "$2 = 1234" in text
