"""AArch64 payloads in the layout of the C library that Rift takes after: no runtime of Rift's, a linker script that
puts code, constants and data at fixed places with 256 MiB of .bss, vectors of their own under the name
``interrupt_table``, and PSCI's SYSTEM_OFF for an end. Those for x86-64 are in test_own_linker_script.py."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from places import places, require_place

from rift_core import load_config, open_machine
from rift_core.testing.tools import require_payload_compiler

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
ENTRY(start)
SECTIONS {
    . = 0x200000;
    .text : ALIGN(0x4000) { *(.text*) }
    . = 0x400000;
    .rodata : ALIGN(0x4000) { *(.rodata*) }
    . = 0x600000;
    .data : ALIGN(0x4000) { *(.data*) *(.got*) }
    .bss : ALIGN(0x4000) { *(.bss*) *(COMMON) . += 0x10000000; }
    /DISCARD/ : { *(.note*) *(.dynamic*) *(.gnu*) *(.dynstr*) *(.dynsym*) *(.interp*) *(.eh_frame*) *(.hash*) }
}
"""

VECTORS = """
    .text
    .globl interrupt_table
    .balign 0x800
interrupt_table:
    .rept 16
    b handler
    .balign 0x80
    .endr
/* Counts, and steps over the instruction. Runs on the stack of the code that faulted. */
handler:
    stp x0, x1, [sp, #-16]!
    adrp x0, exceptions
    add x0, x0, :lo12:exceptions
    ldr x1, [x0]
    add x1, x1, #1
    str x1, [x0]
    mrs x0, elr_el1
    add x0, x0, #4
    msr elr_el1, x0
    ldp x0, x1, [sp], #16
    eret
"""

SOURCE = """
unsigned long used_memory, exceptions, last[16];
static const double halves[4] = {0.5, 1.5, 2.5, 3.5};
char memory[1 << 20];
double sum;

static unsigned long vector_sum(const unsigned *words, int count) {
    unsigned long total = 0;
    for (int i = 0; i < count; ++i)
        total += words[i] * 3u;
    return total;
}

void test(void) {
    static unsigned words[64];
    for (int i = 0; i < 64; ++i)
        words[i] = (unsigned)i;
    for (int i = 0; i < 4; ++i)
        sum += halves[i] * 2; /* the first floating-point instruction used to trap */
    for (unsigned long at = 0; at < sizeof memory; at += 4096)
        memory[at] = (char)at;
    ((volatile char *)used_memory)[0x10] = 1; /* a data abort for the payload's own vectors */
    __asm__ volatile(".inst 0");              /* and an undefined instruction */
    last[0] = vector_sum(words, 64);
    used_memory = 0xDEADBEEF;
    /* SYSTEM_OFF is a number of 32 bits: what stands above it in X0 means nothing. */
    register unsigned long function __asm__("x0") = 0x1234567884000008;
    for (;;)
        __asm__ volatile("hvc #0" : "+r"(function)::"x1", "x2", "x3", "memory");
}
"""


@pytest.fixture(params=["gcc", "clang"])
def compiler(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command of an AArch64 compiler."""
    return require_payload_compiler("aarch64", request.param).command


@pytest.fixture(params=[backend for backend, _ in places("aarch64")])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that runs AArch64 code here."""
    require_place(request.param, "aarch64")
    return str(request.param)


@pytest.mark.parametrize("flags", [("-fPIE", "-pie"), ("-fno-pie", "-no-pie")], ids=["pie", "static"])
def test_payload_runs_to_its_power_off(
    backend: str, compiler: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "payload.ld").write_text(SCRIPT)
    (tmp_path / "payload.c").write_text(SOURCE)
    (tmp_path / "vectors.S").write_text(VECTORS)
    command = [*compiler, "-O2", "-ffreestanding", "-nostdlib", "-nostartfiles", "-fvisibility=hidden", *flags]
    command += ["-Wl,-T,payload.ld", "payload.c", "vectors.S", "-o", "payload"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    config = load_config(
        {
            "binary": {"path": str(tmp_path / "payload")},
            "backend": {"name": backend},
            "threads": [{"name": "main", "entry": "test", "vectors": "interrupt_table"}],
            "limits": {"wall_time": 60},
        }
    )
    with open_machine(config) as machine:
        stop = machine.thread("main").start().join(timeout=60)
        assert (stop.status, stop.reason) == (0, "power-off")

        def number(name: str) -> int:
            return int.from_bytes(machine.symbol(name).view()[:8], "little")

        assert number("used_memory") == 0xDEADBEEF
        assert number("exceptions") == 2
        assert number("last") == 3 * 63 * 64 // 2
        assert machine.symbol("sum").view().cast("d")[0] == 16.0
        assert machine.symbol("memory").address >= 0x60_0000
        assert machine.engine.plan.ram.size > 256 << 20
