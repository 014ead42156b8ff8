"""A made-up ISA with a binding of its own: core and the fake backend know nothing of it."""

from __future__ import annotations

import ctypes
import io
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import GuestCrashError, GuestFaultError, LimitError, Machine, Permission, Stop, doorbell, open_machine
from rift_core.catalog import Catalog
from rift_core.testing import fakes
from rift_core.testing.isa import IsaConformance
from rift_core.testing.tools import require_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MakeMachine = Callable[..., Machine]

HERE = Path(__file__).parent
DOORBELL = doorbell.DEFAULT_ADDRESS


@pytest.fixture(scope="module")
def toy() -> Iterator[Any]:
    """The plugin, from its source folder: `test_installation` installs it for real."""
    sys.path.insert(0, str(HERE / "toy_isa" / "src"))
    try:
        import rift_toy_isa  # type: ignore[import-not-found,unused-ignore]

        yield rift_toy_isa
    finally:
        sys.path.remove(str(HERE / "toy_isa" / "src"))


class TestToy(IsaConformance):
    """The suite that every ISA passes."""

    @pytest.fixture
    def plugin(self, toy: Any) -> Any:
        return toy


# -- programs ------------------------------------------------------------------------------------------


def li(register: int, value: int) -> bytes:
    return bytes((2, register << 4)) + struct.pack("<Q", value % (1 << 64))


def two(opcode: int, target: int, source: int) -> bytes:
    return bytes((opcode, target << 4 | source))


def say(text: bytes) -> bytes:
    """Text to the doorbell's CONSOLE register."""
    return li(6, DOORBELL + doorbell.CONSOLE) + b"".join(bytes((1, 0x50, byte)) + two(5, 6, 5) for byte in text)


ADD = two(3, 0, 1) + b"\x0d"
HALT = b"\x00"
SPIN = b"\x0a\xfe"
EXIT = li(6, DOORBELL + doorbell.EXIT) + two(6, 6, 0)
LOAD = two(8, 0, 0) + b"\x0d"
STORE = two(6, 0, 1) + b"\x0d"


@pytest.fixture
def run(toy: Any) -> Iterator[MakeMachine]:
    handlers = require_module("rift_handlers", package="riftvm-handlers")
    catalog = Catalog.of([toy, fakes, handlers])
    made: list[Machine] = []

    def make(code: bytes, **options: Any) -> Machine:
        made.append(open_machine(code=code, isa="toy", backend="fake", catalog=catalog, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def test_a_program_prints_and_ends(run: MakeMachine) -> None:
    console = io.StringIO()
    machine = run(say(b"toy says hello\n") + EXIT, console=console)
    assert machine.thread("main").start(7).join(20) == Stop(7, "exit")
    assert console.getvalue() == "toy says hello\n"


def test_arguments_and_results(run: MakeMachine) -> None:
    machine = run(ADD)
    assert machine.thread("main").start(40, 2).join(20) == Stop(42, "return")
    entry = 0x40_0000
    assert machine.call(entry, 1 << 40, -1, restype=ctypes.c_int64) == (1 << 40) - 1
    assert machine.call(entry, -5, 2, restype=ctypes.c_int) == -3
    fifth = li(1, 8) + two(3, 1, 8) + two(8, 0, 1) + b"\x0d"  # r1 = sp + 8; r0 = [r1]
    at = machine.load_code(fifth)
    assert machine.call(at, 1, 2, 3, 4, 55) == 55


def test_calls_inside_the_guest(run: MakeMachine) -> None:
    machine = run(HALT)
    function = machine.load_code(ADD)
    caller = machine.load_code(li(7, function) + b"\x0c\x70" + b"\x0c\x70" + b"\x0d")  # twice: r0 += r1
    assert machine.call(caller, 10, 3) == 16


def test_a_loop_counts(run: MakeMachine) -> None:
    body = two(3, 1, 0) + two(4, 0, 2)  # r1 += r0; r0 -= 1
    loop = li(1, 0) + li(2, 1) + body + bytes((0x0B, 0x00, 256 - len(body) - 3)) + two(9, 0, 1) + b"\x0d"
    assert run(loop).thread("main").start(100).join(20) == Stop(5050, "return")


def test_halt_and_kill(run: MakeMachine) -> None:
    assert run(HALT).thread("main").start().join(20) == Stop(0, "halt")
    thread = run(SPIN).thread("main").start()
    thread.kill()
    assert thread.join(20) == Stop(0, "killed")


def test_a_limit(run: MakeMachine) -> None:
    machine = run(SPIN, limits={"wall_time": 0.1})
    with pytest.raises(LimitError, match="wall_time"):
        machine.thread("main").start().join(20)


def test_registers_by_name(run: MakeMachine) -> None:
    thread = run(HALT).thread("main")
    thread.start(11).join(20)
    assert thread.registers["r0"] == 11
    assert thread.registers["pc"] == 0x40_0001


@pytest.mark.parametrize(
    ("code", "cause"), [(b"\xff", "undefined"), (li(0, 0x10) + LOAD, "misaligned|access"), (li(0, 1) + LOAD, "mis")]
)
def test_a_fault_gives_a_report(run: MakeMachine, code: bytes, cause: str) -> None:
    with pytest.raises(GuestFaultError, match=cause) as caught:
        run(code).thread("main").start().join(20)
    assert caught.value.report.fault.pc >= 0x40_0000


def test_a_wild_pointer_is_named(run: MakeMachine) -> None:
    with pytest.raises(GuestFaultError, match=r"0x12345678: not mapped \(no entry of the list names this page\)"):
        run(LOAD).thread("main").start(0x1234_5678).join(20)


def test_a_fault_without_a_vector_shuts_the_cpu_down(run: MakeMachine) -> None:
    thread = run(b"\xff").thread("main")
    thread.registers["vector"] = 0
    with pytest.raises(GuestCrashError):
        thread.start().join(20)


def test_pages_come_and_go_while_the_machine_runs(run: MakeMachine) -> None:
    machine = run(HALT)
    load, store = machine.load_code(LOAD), machine.load_code(STORE)
    machine.map(0x5000_0000, 0x2000, "rw")
    machine.call(store, 0x5000_1000, 1234, restype=None)
    assert machine.call(load, 0x5000_1000) == 1234
    assert bytes(machine.view(0x5000_1000, 2)) == (1234).to_bytes(2, "little")
    assert machine.accessed_dirty(0x5000_0000, 0x2000) == [
        (0x5000_0000, 0x1000, False, False),
        (0x5000_1000, 0x1000, True, True),
    ]
    machine.protect(0x5000_0000, 0x2000, "r")
    assert machine.translate(0x5000_1000).permissions == Permission.READ
    with pytest.raises(GuestFaultError, match="access"):
        machine.call(store, 0x5000_1000, 1, restype=None)
    machine.unmap(0x5000_0000, 0x2000)
    with pytest.raises(GuestFaultError, match="access"):
        machine.call(load, 0x5000_1000)


def test_user_mode_reaches_the_host_by_system_calls_only(run: MakeMachine) -> None:
    console = io.StringIO()
    text = b"from user mode\n"
    threads = [{"name": "main", "privilege": "user"}]
    write = li(7, 1) + b"\x0e"  # console write: pointer in r0, length in r1
    machine = run(HALT, threads=threads, console=console)
    at = machine.load_code(text)
    code = machine.load_code(write + b"\x0d")
    assert machine.call(code, at, len(text)) == len(text)
    assert console.getvalue() == text.decode()
    assert machine.call(code, machine.engine.system.return_address, 4) == -14
    with pytest.raises(GuestFaultError, match="access"):
        machine.call(machine.load_code(STORE), DOORBELL, 1)
    with pytest.raises(GuestFaultError, match="privilege"):
        machine.thread("main").start().join(20)


def test_single_steps(run: MakeMachine) -> None:
    machine = run(two(3, 0, 1) + two(3, 0, 1) + HALT)
    assert "debug_single_step" in machine.capabilities
    thread = machine.thread("main").start(1, 2)
    assert thread.join(20) == Stop(0, "halt")
    assert thread.registers["r0"] == 5
