"""Let user-mode code try to get out, and show what became of each attempt."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rift_core import GuestError, GuestFaultError, open_machine

if TYPE_CHECKING:
    from rift_core import Machine

HERE = Path(__file__).parent
GETPID, WRITE = 39, 1  # system call numbers of Linux; here 1 is Rift's console
KERNEL_HALF = 0xFFFF_8000_0000_0000
NON_CANONICAL = 0x1234_0000_0000_0000


def attempts(machine: Machine) -> list[tuple[str, str, tuple[int, ...]]]:
    """What is tried: words, function, arguments. AArch64 has no ports, and the payload no functions for them."""
    tables = machine.engine.plan.tables.virtual
    doorbell = machine.doorbell
    own_code = machine.symbol("harmless").address
    tries: list[tuple[str, str, tuple[int, ...]]] = [
        ("a harmless function", "harmless", (6, 7)),
        ("print through the host", "print_something", ()),
        ("Linux system call: getpid", "call_host", (GETPID, 0)),
        ("system call with number 2^63", "call_host", (1 << 63, 0)),
        ("console write of kernel memory", "console_write_at", (KERNEL_HALF,)),
        ("disable interrupts", "disable_interrupts", ()),
        ("stop the CPU", "halt_the_cpu", ()),
        ("choose other page tables", "change_page_tables", ()),
        ("read the root of the page tables", "read_page_table_root", ()),
        ("read a system register", "read_system_register", ()),
        ("choose other vectors", "load_vectors", ()),
        ("write to a port", "write_port", ()),
        ("read from a port", "read_port", ()),
        ("read the null page", "read_at", (0,)),
        ("write its own code", "write_at", (own_code,)),
        ("read the kernel half", "read_at", (KERNEL_HALF,)),
        ("read a non-canonical address", "read_at", (NON_CANONICAL,)),
        ("write the doorbell", "write_at", (doorbell,)),
        ("read the page tables", "read_at", (tables,)),
        ("write the page tables", "write_at", (tables,)),
        ("jump into the page tables", "jump_to", (tables,)),
        ("divide by zero", "divide", (1, 0)),
        ("undefined instruction", "undefined_instruction", ()),
        ("overflow the stack", "overflow_the_stack", (0,)),
        ("never end", "spin", ()),
    ]
    return [row for row in tries if machine.binary.symbols.find(row[1]) is not None]


def outcome(machine: Machine, function: str, arguments: tuple[Any, ...]) -> tuple[str, bool]:
    """One attempt: what became of it, and whether it came back with a result."""
    try:
        result = machine.call(function, *arguments, restype=ctypes.c_int64, timeout=1.0)
    except GuestFaultError as error:
        fault = error.report.fault
        return "fault: " + ", ".join(text for text in (fault.name, fault.words) if text), False
    except GuestError as error:
        return f"ended: {str(error).splitlines()[0]}", False
    except TimeoutError:
        return "killed: its second was over", False
    if -4096 < result < 0:
        return f"refused: {result} ({os.strerror(-result)})", True
    return f"returned {result}", True


def main() -> int:
    table = Table(title="attempts from user mode")
    table.add_column("attempt")
    table.add_column("outcome")
    with open_machine(HERE / "rift.toml", console=sys.stdout) as machine:
        machine.thread("main").start().join()
        for words, function, arguments in attempts(machine):
            text, returned = outcome(machine, function, arguments)
            table.add_row(words, text, style="" if returned else "yellow")
        still_there = machine.call("harmless", 6, 7)
    Console().print(table)
    print(f"the host is process {os.getpid()}, unharmed; the machine still answers: 6 * 7 = {still_there}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
