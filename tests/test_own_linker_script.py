"""A payload that was made for another host library: its own linker script, vectors and memory, ended by HLT.

As ELF it is linked by a script; as Mach-O, whose linker on Linux takes no addresses of segments, filling makes each
segment end where the next one is to start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machine_code import ISA
from places import places, require_place

from rift_core import GuestFaultError, Machine, open_machine
from rift_core.testing.tools import require_tool, session, skip_here

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).parent / "payloads" / "own_linker_script"
BUFFER = 256 << 20
USED = 0xDEADBEEF


FILLING = """
    .section __TEXT,__filling
    .space 0x1ff000
    .section __DATA_CONST,__filling
    .space 0x1ff000
"""


@pytest.fixture(scope="module", params=["elf", "macho"])
def payload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as its authors would, without anything of Rift."""
    folder = tmp_path_factory.mktemp("payload")
    return build_elf(folder) if request.param == "elf" else build_macho(folder)


def tool(name: str, package: str) -> str:
    """A compiler or linker, which a host of another ISA need not have."""
    if ISA != "x86_64" and shutil.which(name) is None:
        skip_here(f"{name} is not here to make payloads for x86-64")
    return require_tool(name, package=package)


def build_elf(folder: Path) -> Path:
    gcc = tool("gcc" if ISA == "x86_64" else "x86_64-linux-gnu-gcc", "gcc")
    output = folder / "payload"
    command = [
        gcc, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic",
        "-mno-red-zone", "-mgeneral-regs-only", "-mcmodel=large", "-fno-stack-protector", "-fcf-protection=none",
        "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,max-page-size=0x1000",
        f"-Wl,-T,{SOURCE / 'payload.ld'}", "-o", str(output), str(SOURCE / "payload.c"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
    return output


def build_macho(folder: Path) -> Path:
    clang = tool("clang", "clang")
    linkers = {name for path in os.get_exec_path() for name in map(str, Path(path).glob("ld64.lld*"))}
    versions = {int(name.rpartition("-")[2]): name for name in linkers if name.rpartition("-")[2].isdigit()}
    linker = tool(versions[max(versions)] if versions else "ld64.lld", "lld (its ld64.lld)")
    if versions and max(versions) < 15:
        session().skip("this linker cannot place __TEXT", "install the package lld-19")
    (folder / "filling.s").write_text(FILLING)
    target = "--target=x86_64-apple-macos11"
    commands = [
        [clang, target, "-c", "filling.s"],
        [
            clang, target, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-ffreestanding", "-mno-red-zone",
            "-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
            "-c", str(SOURCE / "payload.c"),
        ],
        [
            linker, "-arch", "x86_64", "-platform_version", "macos", "11.0", "11.0", "-execute", "-e", "_test",
            "-pagezero_size", "0x200000", "-rename_section", "__TEXT", "__const", "__DATA_CONST", "__const",
            "-segprot", "__DATA_CONST", "r", "r", "-o", "payload", "payload.o", "filling.o",
        ],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(command, check=True, timeout=60, cwd=folder)
    return folder / "payload"


@pytest.fixture(params=[backend for backend, _ in places("x86_64")])
def open_payload(request: pytest.FixtureRequest, payload: Path) -> Callable[..., Machine]:
    """A machine for it on each backend that runs x86-64 code here; further keys of its thread may be given."""
    require_place(request.param, "x86_64")

    def opened(**keys: Any) -> Machine:
        thread = {"name": "main", "entry": "test", "vectors": "interrupt_table", **keys}
        return open_machine({"binary": {"path": str(payload)}, "backend": {"name": request.param}, "threads": [thread]})

    return opened


def test_it_runs_unmodified_and_its_results_are_read_by_symbol(open_payload: Callable[..., Machine]) -> None:
    with open_payload() as machine:
        where = {name: machine.symbol(name).address for name in ("test", "greeting", "interrupt_table")}
        assert where["test"] & ~0xF_FFFF == 0x20_0000
        assert where["greeting"] & ~0xF_FFFF == 0x40_0000
        assert where["interrupt_table"] & ~0xF_FFFF == 0x60_0000
        stop = machine.thread("main").start().join(timeout=30)
        assert (stop.status, stop.reason) == (0, "halt")
        assert int.from_bytes(machine.symbol("used_memory").view(), "little") == USED
        assert int.from_bytes(machine.symbol("undefined_instructions").view(), "little") == 1
        assert int.from_bytes(machine.symbol("page_faults").view(), "little") == 1
        assert int.from_bytes(machine.symbol("last_fault_address").view(), "little") == 0x7000_0000_0000
        assert bytes(machine.symbol("greeting").view()).startswith(b"constants are where")
        buffer = machine.symbol("buffer").view()
        assert len(buffer) == BUFFER
        assert buffer[BUFFER - 1] == 0xA5
        assert buffer[BUFFER // 2] == BUFFER // 2 >> 20 & 0xFF


def test_the_table_is_found_by_itself(open_payload: Callable[..., Machine]) -> None:
    """``vectors = "auto"``: the symbol's name is one of those that the ISA looks for."""
    with open_payload(vectors="auto") as machine:
        machine.thread("main").start().join(timeout=30)
        assert int.from_bytes(machine.symbol("used_memory").view(), "little") == USED


def test_built_in_vectors_report_what_the_payload_would_have_handled(open_payload: Callable[..., Machine]) -> None:
    with (
        open_payload(vectors="built-in") as machine,
        pytest.raises(GuestFaultError, match=r"#UD invalid opcode at 0x200[0-9a-f]+ <test"),
    ):
        machine.thread("main").start().join(timeout=30)
