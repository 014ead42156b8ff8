"""An exit served by a native handler, and a call into the guest."""

from __future__ import annotations

import ctypes
import time

from benchmarks.pairs import Result, compare
from benchmarks.twin import STATE, Counter, TwinOf, function_address, library
from rift_core import ExitHandler, ExitKind, Machine, NativeHandler, Resume, open_machine
from rift_core.isa import EntryState

FLOOD = bytes.fromhex("893c2500010070ebf7")  # mov [0x70000100], edi; jmp back
ADD = bytes.fromhex("488d0437c3")  # lea rax, [rdi+rsi]; ret
DOORBELL = 0x7000_0100
EXITS = 1000
CALLS = 200


def prepared(machine: Machine) -> dict[str, int]:
    """Run the machine's thread a moment, so that its vCPU exists; its state, for the twin."""
    thread = machine.thread()
    thread.start()
    thread.kill()
    thread.join(10)
    return thread.registers.read(STATE)


def native_exit(pairs: int) -> Result:
    """The guest stores to the doorbell in a loop; a C handler counts."""
    counter = Counter()
    native = NativeHandler(function_address("twin_count_exit"), ctypes.addressof(counter), counter)
    machine = open_machine(code=FLOOD, isa="x86_64", backend="kvm")
    handler = ExitHandler(
        "count", frozenset({ExitKind.MMIO}), range(DOORBELL, DOORBELL + 8), lambda vcpu, exit: Resume(), native
    )
    machine.vm.install(handler)
    with machine:
        counter.limit = 1
        thread = machine.thread()
        thread.start().join(10)
        state = thread.registers.read((*STATE, "rip", "rsp"))
        twin = TwinOf(machine, state)
        library().twin_set(twin.handle, thread.entry, state["rsp"], 0, 0)
        context = machine.engine.contexts[0]
        vcpu = context.acquire_vcpu()

        def ours() -> float:
            counter.count, counter.limit = 0, EXITS
            begin = time.perf_counter()
            vcpu.run()
            return (time.perf_counter() - begin) / EXITS

        def bare() -> float:
            return float(library().twin_exits(twin.handle, EXITS)) / 1e9 / EXITS

        result = compare(
            "native_exit", "exit served by a native handler", ours, bare, pairs=pairs, promise="interval from <= 1.03"
        )
        context.park()
        twin.close()
    return result


def call(pairs: int) -> Result:
    """``Machine.call`` of a leaf function with two integers."""
    with open_machine(code=ADD, isa="x86_64", backend="kvm") as machine:
        entry = machine.thread().entry
        call_it = machine.call
        if call_it(entry, 2, 3, restype=ctypes.c_int64) != 5:
            raise AssertionError("the guest cannot add")
        (context,) = [c for c in machine.engine.contexts if c.name.startswith("call")]
        state = context.acquire_vcpu().read_registers(STATE)
        twin = TwinOf(machine, state)
        engine = machine.engine
        fresh = EntryState(entry, context.stack_top, engine.space.root, "supervisor")
        stack = engine.isa.call_registers(engine.system, context.areas, fresh)["rsp"]

        def ours() -> float:
            begin = time.perf_counter()
            for _ in range(CALLS):
                call_it(entry, 2, 3, restype=ctypes.c_int64)
            return (time.perf_counter() - begin) / CALLS

        def bare() -> float:
            spent = library().twin_calls(twin.handle, CALLS, entry, stack, 2, 3)
            if not spent:
                raise AssertionError("the twin cannot add")
            return float(spent) / 1e9 / CALLS

        result = compare("call", "machine.call of a loaded function", ours, bare, pairs=pairs, promise="<= 1.3")
        twin.close()
    return result
