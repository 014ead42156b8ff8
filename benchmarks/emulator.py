"""The emulator backend beside the bare engine, through the engine's own C interface, in one process and one run."""

from __future__ import annotations

import ctypes
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.pairs import Result, compare
from benchmarks.twin import Counter, engine_library, function_address
from rift_core import ExitHandler, ExitKind, NativeHandler, Resume
from rift_core.host_memory import buffer_address
from rift_core.testing.bare_machine import SIZE
from rift_core.testing.x86_64_machine import (
    CODE,
    CR0,
    CR4,
    DATA,
    DEVICE,
    DEVICE_GPA,
    EFER,
    NO_EXECUTE,
    PLAYGROUND,
    PML4,
    PRESENT,
    STACK,
    WRITABLE,
    Machine,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ITERATIONS = 3_000_000
EXITS = 20_000
PORT = 0x5A0
HALT = CODE + 0x800
PORT_CODE = CODE + 0x900

REGISTERS = b"\xff\xc9\x75\xfc"  # again: dec ecx; jnz again
MEMORY = b"\x48\xff\x07\xff\xc9\x75\xf9"  # again: inc qword [rdi]; dec ecx; jnz again


@contextmanager
def both(*handlers: ExitHandler) -> Iterator[tuple[Machine, int]]:
    """A machine of Rift's, and the handle of a bare engine over the same memory."""
    import rift_emulator
    from rift_emulator.engine import library_path

    machine = Machine(rift_emulator, handlers)
    machine.put(HALT, b"\xf4")
    machine.put(PORT_CODE, b"\xee\xeb\xfd")  # again: out dx, al; jmp again
    machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE | NO_EXECUTE)
    twin = engine_library().twin_engine_open(
        str(library_path()).encode(), 0, buffer_address(machine.memory.view), SIZE, CR0, PML4, CR4, EFER
    )
    if not twin:
        raise OSError("the twin's engine cannot be made")
    try:
        yield machine, twin
    finally:
        engine_library().twin_engine_close(twin)
        machine.close()


def _loop(name: str, what: str, body: bytes, pairs: int) -> Result:
    code = b"\xb9" + ITERATIONS.to_bytes(4, "little") + b"\x48\xbf" + PLAYGROUND.to_bytes(8, "little") + body + b"\xf4"
    with both() as (machine, twin):

        def ours() -> float:
            machine.start(code)
            begin = time.perf_counter()
            exit = machine.vcpu.run()
            spent = time.perf_counter() - begin
            if exit.kind is not ExitKind.HALT:
                raise AssertionError(f"the guest did not halt: {exit}")
            return spent / ITERATIONS

        def bare() -> float:
            machine.put(CODE, code)
            return float(engine_library().twin_engine_run(twin, CODE, STACK)) / 1e9 / ITERATIONS

        return compare(name, what, ours, bare, pairs=pairs, promise="<= 1.5")


def registers(pairs: int) -> Result:
    """A loop of two instructions in ring 0."""
    return _loop("emulator_loop", "emulated loop, registers", REGISTERS, pairs)


def memory(pairs: int) -> Result:
    """A loop that reads and writes memory through the page tables."""
    return _loop("emulator_memory", "emulated loop, memory", MEMORY, pairs)


def _exits(name: str, what: str, kind: ExitKind, where: range, code: bytes, pairs: int) -> Result:
    counter = Counter()
    native = NativeHandler(function_address("twin_count_exit"), ctypes.addressof(counter), counter)
    handler = ExitHandler("count", frozenset({kind}), where, lambda vcpu, exit: Resume(), native)
    with both(handler) as (machine, twin):

        def ours() -> float:
            machine.start(code, rdx=PORT, rdi=DEVICE)
            counter.count, counter.limit = 0, EXITS
            begin = time.perf_counter()
            machine.vcpu.run()
            spent = time.perf_counter() - begin
            if counter.count != EXITS:
                raise AssertionError(f"{counter.count} exits, not {EXITS}")
            return spent / EXITS

        def bare() -> float:
            spent = engine_library().twin_engine_halts(twin, HALT, EXITS)
            if not spent:
                raise AssertionError("the bare engine failed")
            return float(spent) / 1e9 / EXITS

        return compare(name, what, ours, bare, pairs=pairs, promise="<= 1.3")


def port(pairs: int) -> Result:
    """OUT in a loop, counted by a C handler; the twin stops at a HLT and starts again."""
    code = b"\xee\xeb\xfd"  # again: out dx, al; jmp again
    return _exits("emulator_port", "emulated OUT, native handler", ExitKind.PORT_IO, range(PORT, PORT + 1), code, pairs)


def mmio(pairs: int) -> Result:
    """A store to a device in a loop, counted by a C handler; the same twin."""
    code = b"\x89\x07\xeb\xfc"  # again: mov [rdi], eax; jmp again
    where = range(DEVICE_GPA, DEVICE_GPA + 8)
    return _exits("emulator_mmio", "emulated MMIO store, native handler", ExitKind.MMIO, where, code, pairs)


def python_exit(pairs: int) -> Result:
    """OUT in a loop, each exit coming to Python; the twin's hook stops the engine at each OUT."""
    with both() as (machine, twin):
        count = EXITS // 10

        def ours() -> float:
            machine.start(b"\xee\xeb\xfd", rdx=PORT)
            run = machine.vcpu.run
            begin = time.perf_counter()
            for _ in range(count):
                run()
            return (time.perf_counter() - begin) / count

        def bare() -> float:
            spent = engine_library().twin_engine_ports(twin, PORT_CODE, count)
            if not spent:
                raise AssertionError("the bare engine failed")
            return float(spent) / 1e9 / count

        return compare("emulator_python", "emulated OUT, to Python and back", ours, bare, pairs=pairs)
