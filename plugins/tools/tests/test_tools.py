"""The commands, on the emulator; the comparison also against KVM, where it works."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

import rift_tools.profile
from rift_core.cli import group
from rift_core.config import load_config
from rift_core.errors import ConfigError, UnsupportedError
from rift_core.machine import open_machine
from rift_core.testing.tools import require_backend, require_tool
from rift_tools.commands.compare import lines
from rift_tools.comparison import compare
from rift_tools.instructions import Decoder, Instruction
from rift_tools.lanes import UndefinedFlags
from rift_tools.tracer import Step, Tracer

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.backend import ProbeResult

SOURCE = """
#include <rift_guest.h>
volatile int value = 3;
__attribute__((noinline)) int twice(int number) { return 2 * number + value; }
int main(void) {
    int sum = 0;
    for (int round = 0; round < 10; ++round)
        sum += twice(round);
    rift_printf("%d\\n", sum);
    return sum;
}
"""


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A configuration whose guest prints 120."""
    require_backend("emulator")
    require_tool("gcc")
    (tmp_path / "guest.c").write_text(SOURCE)
    path = tmp_path / "rift.toml"
    path.write_text('[binary]\npath = "guest.c"\n[[threads]]\nname = "main"\n[[exit_handlers]]\nname = "console"\n')
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    result = CliRunner().invoke(group, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


# -- trace -------------------------------------------------------------------------------------------


def traced(code: bytes, **options: Any) -> list[Step]:
    """The steps of bare code on the emulator."""
    steps: list[Step] = []
    with open_machine(code=code, isa="x86_64", backend="emulator") as machine:
        machine.extend("steps").follow(Tracer(machine.engine, steps.append, **options))
        try:
            machine.run()
        except Exception as error:
            steps.append(Step(0, "", 0, "", f"{type(error).__name__}"))
    return steps


def test_trace_tells_registers_and_memory() -> None:
    require_backend("emulator")
    # mov eax, 5; push rax; pop rbx; ret
    steps = traced(b"\xb8\x05\x00\x00\x00\x50\x5b\xc3")
    assert [step.instruction for step in steps[:4]] == ["mov eax, 5", "push rax", "pop rbx", "ret"]
    assert [(c.name, c.before, c.after) for c in steps[0].registers] == [("rax", 0, 5)]
    assert [(c.before, c.after) for c in steps[1].memory] == [(0, 5)]
    assert {c.name for c in steps[2].registers} == {"rbx", "rsp"}


def test_trace_tells_the_exception_and_why() -> None:
    require_backend("emulator")
    steps = traced(b"\x48\xc7\x04\x25\x00\x00\x00\x66\x01\x00\x00\x00")  # mov qword [0x66000000], 1
    assert steps[0].exception.startswith("#PF page fault: a write in supervisor mode found no page mapped")
    assert "error code 0x2" in steps[0].exception
    assert "address 0x66000000" in steps[0].exception
    assert steps[-1].instruction == "GuestFaultError"


def test_trace_shows_page_walks_and_ends_at_its_limit() -> None:
    require_backend("emulator")
    steps = traced(b"\x50\xeb\xfd", limit=6, walks=True)  # again: push rax; jmp again
    assert len(steps) == 6
    assert all("mapped to guest-physical" in walk for step in steps for walk in step.walks)
    assert len(steps[0].walks) == 2  # the code's, and the stack's


def test_trace_command(payload: Path) -> None:
    status, out, err = run("trace", str(payload), "--backend", "emulator", "--limit", "50")
    assert status == 0
    assert "<main>" in out
    assert "--limit takes more" in err
    assert len([line for line in out.splitlines() if line[:6].strip().isdigit()]) == 50


def test_trace_as_json(payload: Path) -> None:
    _, out, _ = run("trace", str(payload), "--backend", "emulator", "--limit", "5", "--json")
    steps = [json.loads(line) for line in out.splitlines()]
    assert [step["number"] for step in steps] == [1, 2, 3, 4, 5]
    assert steps[0]["where"].endswith("<main>")


# -- profile -----------------------------------------------------------------------------------------


def counts(payload: Path) -> dict[str, int]:
    """Executed instructions by symbol on the emulator."""
    with open_machine(payload, backend="emulator") as machine:
        profile = machine.extend("profile")
        machine.run()
        return dict(profile.by_symbol())


def test_profile_counts_every_instruction_once(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting blocks gives the same as executing one instruction at a time."""
    fast = counts(payload)
    monkeypatch.setattr(rift_tools.profile.Profile, "forced_steps", True)
    slow = counts(payload)
    assert fast == slow
    assert fast["twice"] % 10 == 0


def test_profile_option(payload: Path) -> None:
    status, _, err = run("run", str(payload), "--backend", "emulator", "--profile")
    assert status == 120
    assert "instructions executed" in err
    assert "twice" in err


# -- compare -----------------------------------------------------------------------------------------


def configurations(payload: Path, *backends: str) -> list[Any]:
    return [load_config(payload, overrides={"backend.name": name}) for name in backends]


@pytest.mark.parametrize("instructions", [False, True])
def test_a_guest_is_the_same_as_itself(payload: Path, instructions: bool) -> None:
    report = compare(*configurations(payload, "emulator", "emulator"), instructions=instructions)
    assert report.difference is None
    assert report.observations > (200 if instructions else 5)


@pytest.mark.parametrize("instructions", [False, True])
def test_kvm_and_emulator_do_the_same(payload: Path, instructions: bool) -> None:
    probe: ProbeResult = require_backend("kvm")
    if "x86_64" not in probe.isas or (instructions and "debug_single_step" not in probe.capabilities):
        pytest.skip("this KVM cannot be stepped, or runs no x86-64 guests")
    report = compare(*configurations(payload, "kvm", "emulator"), instructions=instructions)
    assert report.difference is None, report


def test_the_first_difference_is_told(payload: Path, tmp_path: Path) -> None:
    """Two guests that differ in a constant."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "guest.c").write_text(SOURCE.replace("value = 3", "value = 4"))
    (other / "rift.toml").write_text(payload.read_text())
    first, second = configurations(payload, "emulator")[0], configurations(other / "rift.toml", "emulator")[0]
    report = compare(first, second, instructions=True)
    assert report.difference is not None
    assert "twice" in report.difference.place
    words = dict(enumerate(words for _, words in report.difference.sides))
    assert "=0x3" in words[0]
    assert "=0x4" in words[1]


def test_compare_command(payload: Path) -> None:
    status, out, _ = run("compare", str(payload), "--backends", "emulator,emulator")
    assert status == 0
    assert "all the same, and the same end" in out
    status, out, _ = run("compare", str(payload), "--backends", "emulator,emulator", "--limit", "1", "--json")
    assert json.loads(out)["limited"] is True


WAITING = """
#include <rift_guest.h>
uint32_t go; /* that the host sets */
int add(int a, int b) { return a + b; }
int worker(int number) {
    int sum = 0;
    for (int round = 0; round < 3; ++round) {
        sum = add(sum, number);
        rift_printf("%d\\n", sum);
    }
    return sum;
}
int waits(void) {
    while (!rift_atomic_load(&go))
        rift_relax();
    return 1;
}
"""


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A configuration of three threads, one of which waits for a host that does nothing."""
    require_backend("emulator")
    require_tool("gcc")
    (tmp_path / "guest.c").write_text(WAITING)
    path = tmp_path / "rift.toml"
    threads = [("one", "worker", [1]), ("two", "worker", [2]), ("waiting", "waits", [])]
    tables = [f'[[threads]]\nname = "{n}"\nentry = "{e}"\narguments = {a}' for n, e, a in threads]
    console = '[[exit_handlers]]\nname = "console"'
    path.write_text("\n".join(['[binary]\npath = "guest.c"', *tables, console, ""]))
    return path


def test_a_guest_that_never_ends_is_given_up(several: Path) -> None:
    """And it is said where it is."""
    status, out, _ = run("compare", str(several), "--backends", "emulator,emulator", "--timeout", "2")
    assert status == 124
    first, *places, last = out.splitlines()
    assert "all the same; not at an end after 2 s" in first
    assert len(places) == 2
    assert all("emulator: thread waiting is at 0x" in place and "<waits" in place for place in places)
    assert "waits for its own host program" in last
    status, out, _ = run("compare", str(several), "--backends", "emulator,emulator", "--timeout", "1", "--json")
    assert status == 124
    assert [name for name, _ in json.loads(out)["running"]] == ["emulator", "emulator"]


def test_instructions_of_several_threads_are_not_compared(several: Path) -> None:
    arguments = ("compare", str(several), "--backends", "emulator,emulator", "--instructions")
    with pytest.raises(click.UsageError, match=r"3 threads.*--thread \(one, two, waiting\)"):
        run(*arguments)
    first, second = configurations(several, "emulator", "emulator")
    with pytest.raises(UnsupportedError, match="interleave differently"):
        compare(first, second, instructions=True)
    status, out, _ = run(*arguments, "--thread", "two")
    assert status == 0
    assert "all the same, and the same end" in out
    with pytest.raises(ConfigError, match=r"no thread 'three' .*one, two, waiting"):
        run(*arguments, "--thread", "three")


def test_a_difference_of_several_threads_may_be_their_interleaving(several: Path, tmp_path: Path) -> None:
    """Which is said beside it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "guest.c").write_text(WAITING.replace("a + b", "a + 2 * b"))
    (other / "rift.toml").write_text(several.read_text())
    first, second = configurations(several, "emulator")[0], configurations(other / "rift.toml", "emulator")[0]
    report = compare(first, second)
    assert report.difference is not None
    words = "\n".join(lines(report, report.backends, 60, threads=len(first.threads)))
    assert "3 threads" in words
    assert "--thread NAME" in words
    assert "interleave" not in "\n".join(lines(report, report.backends, 60, threads=1))


def test_undefined_flags_are_forgiven_until_they_are_defined() -> None:
    flags = UndefinedFlags()
    shift = Instruction(0, 3, "shl esi, 0x10", b"", (), 0xC5, 0x810)
    flags.executed(shift)
    assert flags.masked((("rflags", 0x12),)) == flags.masked((("rflags", 0x2),))
    assert flags.masked((("rflags", 0x1),)) != flags.masked((("rflags", 0x0),))
    flags.executed(replace(shift, flags_written=0x8D5, flags_undefined=0))
    assert flags.masked((("rflags", 0x12),)) != flags.masked((("rflags", 0x2),))


def test_decoder_knows_what_is_written() -> None:
    class Reader:
        def read_virtual(self, address: int, size: int) -> bytes:
            return (b"\x48\x89\x44\x8b\x10" + bytes(16))[:size]  # mov [rbx + rcx*4 + 16], rax

    class Isa:
        name = "x86_64"
        capstone = ("CS_ARCH_X86", "CS_MODE_64")

    decoded = Decoder(Isa(), Reader()).at(0x1000, {"rbx": 0x100, "rcx": 2})  # type: ignore[arg-type]
    assert decoded.writes == ((0x118, 8),)
