"""Real LLDBs in batch mode: the distribution's, and the newest from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from debuggers import SOURCE
from terminal import Terminal

from rift_core.build import build
from rift_core.testing.tools import require_payload_compiler, require_tool, skip_here
from rift_gdb.address import parse_address
from rift_gdb.clients import launch_configurations, target_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 90.0


class Lldb:
    """Runs an LLDB with commands against a machine."""

    def __init__(self, program: str) -> None:
        self.program = program

    def line(self, debugged: Debugged, commands: str, crashed: str = "") -> list[str]:
        """The command line: it is told the payload and where to connect."""
        connect = target_of("lldb", debugged.server.address)
        patient = "settings set plugin.process.gdb-remote.packet-timeout 60"
        lines = ["settings set auto-confirm true", patient, connect, *commands.splitlines()]
        words = [word for line in lines for word in ("-o", line)]
        words += [word for line in crashed.splitlines() for word in ("-k", line)]
        return [self.program, "-X", "-b", str(debugged.machine.binary.path), *words]

    def run(self, debugged: Debugged, commands: str, crashed: str = "") -> str:
        """What it prints. ``crashed``: commands after a fault, which ends a batch."""
        answer = subprocess.run(
            self.line(debugged, commands, crashed),
            capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return answer.stdout + answer.stderr


@pytest.fixture
def session(lldb: str) -> Lldb:
    return Lldb(lldb)


@pytest.fixture(params=["supervisor", "user"])
def privilege(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


def test_break_look_and_go_on(debug: Debug, session: Lldb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(
        debugged,
        """breakpoint set -n twice
continue
bt
frame variable value
p counter
register read pc
finish
p corner
breakpoint delete -f
continue
""",
    )
    assert "stop reason = breakpoint 1.1" in text
    assert "frame #0:" in text
    assert "frame #1:" in text
    assert "`work" in text
    assert "(int) value = 0" in text
    assert re.search(r"\(volatile int\).* 7\b", text)
    assert "(x = 3, y = 4)" in text
    assert "stop reason = step out" in text
    assert "exited with status = 6" in text
    assert debugged.join().status == 6


def test_from_a_function_that_the_entry_calls(debug: Debug, session: Lldb, privilege: str) -> None:
    """Without the compiler's tables, LLDB on AArch64 forgets the frame of the thread's entry here."""
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "breakpoint set -n work\ncontinue\nbt\nbreakpoint delete -f\nfinish\ncontinue\n")
    assert re.search(r"frame #1: .*`main\b", text)
    assert "stop reason = step out" in text
    assert "exited with status = 6" in text


def test_steps(debug: Debug, session: Lldb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "breakpoint set -n work\ncontinue\nsi\nnext\nnext\nstep\nprocess kill\n")
    assert "stop reason = instruction step into" in text
    assert "stop reason = step over" in text or text.count("stop reason = breakpoint") > 1
    assert "error:" not in text
    assert debugged.machine.threads[0].wait_ended(20)


def test_registers_and_variables_written(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    debugged.start()
    first, flags = ("rdi", "rflags") if debugged.isa == "x86_64" else ("x0", "pstate")
    text = session.run(
        debugged,
        f"""breakpoint set -n twice
continue
register write {first} 20
register read {first}
register read {flags}
register read --all
expression counter = 100
p counter
breakpoint delete -f
continue
""",
    )
    assert f"{first} = 0x0000000000000014" in text
    assert re.search(rf"({flags}|eflags|cpsr) = 0x", text)
    (counter,) = re.findall(r"^ *(?:rip|pc) = (.*)$", text, re.MULTILINE)
    assert counter.count("`twice") == 1
    assert ("cr0 = 0x" if debugged.isa == "x86_64" else "SCTLR_EL1 = 0x") in text
    assert re.search(r"\(volatile int\).* 100\b", text)
    assert "exited with status = 46" in text  # twice 20, 1 and 2


def test_a_condition(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    debugged.start(6)
    text = session.run(debugged, "breakpoint set -n twice -c 'value == 4'\ncontinue\nframe variable value\ncontinue\n")
    assert "(int) value = 4" in text
    assert "exited with status = 30" in text


def test_a_hardware_breakpoint(debug: Debug, session: Lldb, privilege: str) -> None:
    debugged = debug("main", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "breakpoint set -H -n twice\ncontinue\ncontinue\nbreakpoint delete -f\ncontinue\n")
    assert text.count("stop reason = breakpoint 1.1") == 2
    assert "exited with status = 6" in text


def test_a_watchpoint(debug: Debug, session: Lldb, privilege: str) -> None:
    debugged = debug("stores", privilege=privilege)
    debugged.start()
    text = session.run(
        debugged,
        "watchpoint set variable watched\ncontinue\ncontinue\nwatchpoint delete -f\ncontinue\n",
    )
    assert "old value: 0" in text
    assert "new value: 1" in text
    assert "new value: 2" in text
    assert "exited with status = 9" in text


def test_a_watchpoint_on_all_accesses(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    debugged.start(1)
    works = debugged.server.target.means.watch["supervisor"]
    text = session.run(
        debugged, "watchpoint set variable -w read_write counter\ncontinue\nwatchpoint delete -f\nprocess kill\n"
    )
    if works:
        assert "stop reason = watchpoint 1" in text
        assert "`twice" in text
    else:
        assert "error: " in text


def test_threads(debug: Debug, session: Lldb) -> None:
    debugged = debug("spin", "spin_too")
    debugged.start()
    text = session.run(
        debugged,
        """thread list
breakpoint set -n bump
continue
bt all
thread select 2
breakpoint delete -f
si
process kill
""",
    )
    assert "name = 'spin'" in text
    assert "name = 'spin_too'" in text
    assert text.count("frame #0:") >= 2


def test_memory_and_its_map(debug: Debug, session: Lldb) -> None:
    debugged = debug("fill")
    debugged.start()
    pages = debugged.at("pages")
    text = session.run(
        debugged,
        f"""breakpoint set -n twice
continue
memory read --size 1 --format x --count 4 {pages + 0xFFE:#x}
memory write {pages + 0xFFF:#x} 0x11 0x22
memory read --size 1 --format x --count 4 {pages + 0xFFE:#x}
memory region {debugged.at("twice"):#x}
memory read 0x50000000
process kill
""",
    )
    assert "0xff 0xff 0x00 0x00" in text
    assert "0xff 0x11 0x22 0x00" in text
    assert "r-x" in text
    assert "error:" in text


def test_a_fault_in_words(debug: Debug, session: Lldb, privilege: str) -> None:
    debugged = debug("crash", privilege=privilege)
    debugged.start()
    text = session.run(debugged, "continue\n", crashed="bt\nprocess kill\n")
    assert re.search(r"stop reason = .*not mapped", text)
    assert re.search(r"frame #0: .*`poke\(", text)
    assert re.search(r"frame #1: .*`crash\b", text)


def test_a_back_trace_leads_from_a_handler_to_what_it_has_interrupted(debug: Debug, session: Lldb) -> None:
    debugged = debug("handled")
    debugged.start()
    text = session.run(debugged, "breakpoint set -n skip_fault\ncontinue\nthread backtrace\nprocess kill\n")
    names = re.findall(r"frame #\d+: 0x[0-9a-f]+ \S+`(\w+)", text[text.index("(lldb) thread backtrace") :])
    assert names[:4] in (
        ["skip_fault", "rift_exception_dispatch", common, "handled"] for common in ("common", "common_0")
    )


def test_an_exit_in_words(debug: Debug, session: Lldb) -> None:
    debugged = debug("unanswered")
    debugged.start()
    text = session.run(debugged, "continue\n", crashed="p counter\nprocess kill\n")
    assert "stop reason = nobody answers" in text
    assert re.search(r"\(volatile int\).* 2\b", text)
    assert debugged.join().reason == "killed"


def test_a_triple_fault_in_words(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    if debugged.isa != "x86_64":
        skip_here("only x86-64 has a triple fault")  # by design
    debugged.start()
    text = session.run(
        debugged,
        "register write idtr_limit 0\nregister write rsp 0x10\ncontinue\n",
        crashed="register read idtr_limit\nprocess kill\n",
    )
    assert "stop reason = the guest shut its CPU down (on x86-64: a triple fault" in text
    kept = "idtr_limit = 0x00000000" in text
    assert kept or ("registers are lost" in text and "idtr_limit = 0x0000ffff" in text), "the machine is still there"


def test_guest_physical_memory(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    debugged.start()
    constant = debugged.at("constant")
    where = debugged.machine.translate(constant).physical
    assert where is not None
    assert where != constant
    text = session.run(
        debugged,
        f"""process plugin packet monitor phys on
memory read --size 4 --format d --count 1 {where:#x}
memory write --size 4 {where:#x} {4321:#x}
process plugin packet monitor phys off
memory read --size 4 --format d --count 1 {constant:#x}
process kill
""",
    )
    assert re.search(rf"^0x0*{where:x}: 1234$", text, re.MULTILINE)
    assert re.search(rf"^0x0*{constant:x}: 4321$", text, re.MULTILINE), "the page is read-only to the guest"


def test_monitor(debug: Debug, session: Lldb) -> None:
    debugged = debug("main")
    debugged.start()
    text = session.run(debugged, "process plugin packet monitor threads\nprocess kill\n")
    assert re.search(r"^  1  main +vCPU 0 ", text, re.MULTILINE), "as text, rather than as the digits of the packet"


def test_monitor_by_its_name(debug: Debug, session: Lldb) -> None:
    """As `rift debug --lldb` starts it."""
    from rift_gdb.clients import command_line

    debugged = debug("main")
    debugged.start()
    line = command_line("lldb", session.program, debugged.server.address, debugged.machine.binary.path)
    answer = subprocess.run(
        [*line, "-X", "-b", "-o", "monitor pt main", "-o", "process kill"],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert f"{debugged.at('main'):#x}: mapped to" in answer.stdout


def test_an_interrupt(debug: Debug, session: Lldb) -> None:
    """Ctrl-C in LLDB's terminal."""
    debugged = debug("spin")
    debugged.start()
    address = debugged.server.address
    terminal = Terminal([session.program, "-X", str(debugged.machine.binary.path)])
    try:
        terminal.until("(lldb)")
        terminal.type(f"gdb-remote {address}\n")
        terminal.until("stop reason")
        terminal.type("continue\n")
        terminal.until("resuming")
        counts = debugged.machine.symbol("counts").view().cast("q")
        deadline = time.monotonic() + SECONDS
        while counts[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert counts[0] > 0
        terminal.until("stop reason = signal", typing="\x03")
        stopped = counts[0]
        time.sleep(0.1)
        assert counts[0] == stopped
        terminal.type("process kill\n")
        terminal.until("exited")
    finally:
        terminal.close()
    assert debugged.join().reason == "killed"


def test_killing_and_detaching(debug: Debug, session: Lldb) -> None:
    debugged = debug("spin")
    debugged.start()
    session.run(debugged, "process detach\n")
    counts = debugged.machine.symbol("counts").view().cast("q")
    before, deadline = counts[0], time.monotonic() + 10
    while counts[0] == before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert counts[0] > before
    session.run(debugged, "process kill\n")
    assert debugged.join().reason == "killed"


def test_detaching_from_a_guest_that_stays_stopped(debug: Debug, session: Lldb) -> None:
    debugged = debug("stores", on_disconnect="continue")
    debugged.start()
    text = session.run(debugged, "breakpoint set -n store\ncontinue\nprocess detach --keep-stopped true\n")
    assert "stop reason = breakpoint 1.1" in text
    assert "error:" not in text
    text = session.run(debugged, "frame variable value\ncontinue\n")
    assert "(long) value = 1" in text
    assert "exited with status = 9" in text, "the breakpoint has gone with its debugger"


def test_a_unix_socket(debug: Debug, session: Lldb, tmp_path: Path) -> None:
    debugged = debug("main", listen=f"unix:{tmp_path / 'a socket'}")
    debugged.start()
    text = session.run(debugged, "breakpoint set -n twice\ncontinue\nprocess kill\n")
    assert "stop reason = breakpoint 1.1" in text


def test_codelldb_finds_a_file_with_spaces(lldb: str, built: Callable[..., Path], tmp_path: Path) -> None:
    payload = tmp_path / "a folder" / "it's.elf"
    payload.parent.mkdir()
    shutil.copy(built("x86_64"), payload)
    entry = launch_configurations(parse_address("9999"), payload, "x86_64")[0]
    lines = [word for line in (*entry["targetCreateCommands"], "target list") for word in ("-o", line)]
    answer = subprocess.run([lldb, "-X", "-b", *lines], capture_output=True, text=True, timeout=SECONDS)
    assert f"target #0: {payload}" in answer.stdout


def test_a_payload_that_was_moved(debug: Debug, session: Lldb) -> None:
    debugged = debug("main", pie=True)
    debugged.start()
    text = session.run(debugged, "breakpoint set -n twice\ncontinue\nbt\np counter\nprocess kill\n")
    assert "stop reason = breakpoint 1.1" in text
    assert re.search(r"frame #0: .*`twice\(value=0\) at payload\.c:", text)
    assert re.search(r"frame #1: .*`work\b.* at payload\.c:", text)
    assert "`main" in text
    assert re.search(r"\(volatile int\).* 7\b", text)


def test_a_macho_payload(debug: Debug, session: Lldb, privilege: str) -> None:
    """Names without the compiler's tables, which are not in the file itself."""
    debugged = debug("main", privilege=privilege, format="macho")
    debugged.start()
    text = session.run(debugged, "breakpoint set -n twice\ncontinue\nbt\nfinish\nbreakpoint delete -f\ncontinue\n")
    assert "stop reason = breakpoint 1.1" in text
    names = re.findall(r"frame #\d+: 0x[0-9a-f]+ \S+`(\w+)", text[text.index("(lldb) bt") :])
    assert names[:3] == ["twice", "work", "main"]
    assert "stop reason = step out" in text
    assert "exited with status = 6" in text
    assert debugged.join().status == 6


@pytest.mark.parametrize("base", [None, 0x3_4000_0000])
def test_a_macho_payload_with_its_dsym(debug: Debug, session: Lldb, base: int | None) -> None:
    require_tool("dsymutil", package="llvm")
    moved = {} if base is None else {"loader": {"name": "macho", "base": base}}
    debugged = debug("main", pie=base is not None, format="macho", sections=moved)
    debugged.start()
    path = debugged.machine.binary.path
    assert path is not None
    text = session.run(
        debugged,
        f"""target symbols add {path}.dSYM/Contents/Resources/DWARF/{path.name}
breakpoint set -n twice
continue
bt
frame variable value
p counter
breakpoint delete -f
expression twice(4)
continue
""",
    )
    assert base is None or f" {debugged.at('main'):#018x} " in text
    assert "stop reason = breakpoint 1.1" in text
    assert re.search(r"frame #0: .*`twice\(value=0\) at payload\.c:", text)
    assert re.search(r"frame #1: .*`work\b.* at payload\.c:", text)
    assert re.search(r"frame #2: .*`main\b.* at payload\.c:", text)
    assert "(int) value = 0" in text
    assert re.search(r"\(volatile int\).* 7\b", text)
    assert re.search(r"\(int\) \$\d+ = 8\b", text)
    assert "exited with status = 6" in text


def test_a_macho_payload_is_found_without_its_name(debug: Debug, session: Lldb) -> None:
    debugged = debug("main", format="macho")
    debugged.start()
    lines = ["settings set auto-confirm true", target_of("lldb", debugged.server.address), "breakpoint set -n twice"]
    words = [word for line in (*lines, "continue", "process kill") for word in ("-o", line)]
    answer = subprocess.run(
        [session.program, "-X", "-b", *words],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert "stop reason = breakpoint 1.1" in answer.stdout
    assert "`twice" in answer.stdout


@pytest.mark.parametrize("isa", ["x86_64", "aarch64"])
def test_lines_of_a_relocatable_payload(lldb: str, isa: str, tmp_path: Path) -> None:
    """What the linker has dropped of the runtime does not stand in the way of what is there."""
    require_payload_compiler(isa)
    payload = build(SOURCE, tmp_path / "payload.elf", isa, optimize="0", pie=True).path
    answer = subprocess.run(
        [lldb, "-X", "-b", str(payload), "-o", "breakpoint set -n twice", "-o", "breakpoint set -n work"],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert re.search(r"`twice \+ \d+ at payload\.c:", answer.stdout), answer.stdout
    assert re.search(r"`work \+ \d+ at payload\.c:", answer.stdout), answer.stdout
