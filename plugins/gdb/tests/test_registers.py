"""Registers: the target description, g and G, p and P, what a backend does not have."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import pytest
from debuggers import gdb_for

from rift_core.backend import CpuFeatures
from rift_core.catalog import Catalog
from rift_gdb.description import target_description
from rift_gdb.registers import Image, Layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Debugged

    from rift_core.isa import Isa

    Debug = Callable[..., Debugged]

DEMANDED = {
    "org.gnu.gdb.i386.core": (
        "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags cs ss ds es fs gs st0 st1 st2 st3 "
        "st4 st5 st6 st7 fctrl fstat ftag fiseg fioff foseg fooff fop"
    ),
    "org.gnu.gdb.i386.sse": " ".join(f"xmm{n}" for n in range(16)) + " mxcsr",
    "org.gnu.gdb.i386.avx": " ".join(f"ymm{n}h" for n in range(16)),
    "org.gnu.gdb.i386.segments": "fs_base gs_base",
    "org.gnu.gdb.aarch64.core": " ".join(f"x{n}" for n in range(31)) + " sp pc cpsr",
    "org.gnu.gdb.aarch64.fpu": " ".join(f"v{n}" for n in range(32)) + " fpsr fpcr",
    "org.gnu.gdb.aarch64.tls": "tpidr",
}
"""What GDB refuses a description without, part by part (GDB manual, "Standard Target Features")."""


def isa_named(name: str) -> Isa:
    entry = Catalog.installed().get("isa", name)
    isa: Isa = entry.module.rift_isa(entry.info.config(), CpuFeatures())
    return isa


def everything(isa: Isa) -> list[str]:
    return [register.name for register in isa.registers]


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_each_part_has_what_gdb_demands(name: str) -> None:
    isa = isa_named(name)
    layout = Layout(isa, everything(isa))
    for feature, rows in layout.features.items():
        names = {row.view.name for row in rows}
        if feature in DEMANDED:
            assert names == set(DEMANDED[feature].split()), feature
        else:
            assert feature.startswith("org.rift.")
    assert [row.number for row in layout.rows] == list(range(len(layout.rows)))
    assert layout.size == sum(row.size for row in layout.rows)


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_optional_parts_go_when_nothing_of_them_is_there(name: str) -> None:
    isa = isa_named(name)
    core = [register.name for register in isa.registers if register.debug and "core" in register.debug.feature]
    layout = Layout(isa, core[:5])
    assert len(layout.features) == 1
    assert set(layout.available) == set(core[:5])


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_description_is_what_the_layout_says(name: str) -> None:
    isa = isa_named(name)
    layout = Layout(isa, everything(isa))
    root = ElementTree.fromstring(target_description(isa, layout).decode().replace('SYSTEM "gdb-target.dtd"', ""))
    assert root.findtext("osabi") == "none"
    registers = root.findall(".//reg")
    assert [int(r.get("regnum", "")) for r in registers] == list(range(len(layout.rows)))
    assert [(r.get("name"), int(r.get("bitsize", ""))) for r in registers] == [
        (row.view.name, row.view.bits) for row in layout.rows
    ]
    known = {"int8", "int16", "int32", "int64", "uint128", "code_ptr", "data_ptr", "i387_ext"}
    for feature in root.findall("feature"):
        made = {element.get("id") for element in feature if element.tag in ("vector", "union", "flags")}
        for register in feature.findall("reg"):
            assert register.get("type") in known | made
        for flags in feature.findall("flags"):
            for field in flags.findall("field"):
                assert int(field.get("end", "")) < 8 * int(flags.get("size", ""))


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_gdb_takes_the_description(name: str, gdb: str, tmp_path: Path) -> None:
    isa = isa_named(name)
    path = tmp_path / "target.xml"
    path.write_bytes(target_description(isa, Layout(isa, everything(isa))))
    commands = ["-ex", f"set tdesc filename {path}", "-ex", "show architecture", "-ex", "maint print registers"]
    program = gdb_for(name, gdb)
    answer = subprocess.run([program, "-nx", "-q", "-batch", *commands], capture_output=True, text=True, timeout=60)
    assert "rejected" not in answer.stdout + answer.stderr
    assert "warning" not in answer.stderr
    assert ("i386:x86-64" if name == "x86_64" else "aarch64") in answer.stdout
    for row in Layout(isa, everything(isa)).rows:
        assert f"{row.view.name} " in answer.stdout


def test_all_registers_are_those_of_the_single_ones(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    layout = debugged.server.target.layout
    digits = client.ask("g").decode()
    assert len(digits) == 2 * layout.size
    for row in layout.rows:
        part = digits[2 * row.place : 2 * (row.place + row.size)]
        single = client.ask(f"p{row.number:x}").decode()
        if row.register.name in layout.available:
            if row.view.name not in ("tsc", "CNTVCT_EL0"):
                assert single == part, row.view.name
        else:
            assert single.startswith("E"), row.view.name
            assert part == "xx" * row.size
    assert client.ask(f"p{len(layout.rows):x}").startswith(b"E")


def test_a_register_is_written_and_read_back(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    value = 0x1122_3344_5566_7788
    number = debugged.numbers["arg2"]
    assert client.ask(f"P{number:x}={value.to_bytes(8, 'little').hex()}") == b"OK"
    assert client.register(number) == value
    name = debugged.server.target.layout.rows[number].register.name
    with debugged.machine.pause(10):
        assert debugged.machine.threads[0].registers[name] == value
    for wrong in (f"P{number:x}=1122", f"P{number:x}", "P999=00", f"P{number:x}=zz"):
        assert client.ask(wrong).startswith(b"E"), wrong
    assert client.register(number) == value


def test_flags_keep_what_the_view_does_not_show(debug: Debug) -> None:
    """eflags and cpsr are 32 bits of what may be wider: the rest stays."""
    debugged = debug("main")
    client = debugged.begin()
    row = debugged.server.target.layout.of_role("flags")
    before = client.register(row.number)
    changed = before ^ (1 if debugged.isa == "x86_64" else 1 << 30)  # CF, Z
    assert client.ask(f"P{row.number:x}={changed.to_bytes(row.size, 'little').hex()}") == b"OK"
    assert client.register(row.number) == changed


def test_writing_all_changes_what_differs(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    layout = debugged.server.target.layout
    digits = client.ask("g").decode()
    row = layout.rows[debugged.numbers["arg3"]]
    changed = digits[: 2 * row.place] + "efbeadde00000000" + digits[2 * (row.place + row.size) :]
    assert client.ask("G" + changed) == b"OK"
    assert client.register(row.number) == 0xDEAD_BEEF
    assert client.ask("G" + changed[:-2]).startswith(b"E")
    assert client.ask("G" + digits) == b"OK"


def test_registers_put_aside_come_back(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    number = debugged.numbers["arg1"]
    before = client.register(number)
    key = client.ask("QSaveRegisterState;thread:1;")
    assert client.ask(f"P{number:x}={bytes(range(8)).hex()};thread:1;") == b"OK"
    assert client.register(number) != before
    assert client.ask(b"QRestoreRegisterState:" + key + b";thread:1;") == b"OK"
    assert client.register(number) == before
    assert client.ask(b"QRestoreRegisterState:" + key + b";thread:1;").startswith(b"E")


def test_clocks_go_on_after_a_call_from_the_debugger(debug: Debug) -> None:
    """GDB writes all registers back that differ from what it was shown before the call."""
    from rift_gdb.registers import Layout

    debugged = debug("main")
    client = debugged.begin()
    layout = Layout(debugged.machine.isa, [register.name for register in debugged.machine.isa.registers])
    clocks = [row.number for row in layout.rows if row.view.moves]
    assert clocks
    answers = {number: client.ask(f"p{number:x}") for number in clocks}
    shown = {number: answer for number, answer in answers.items() if not answer.startswith(b"E")}
    for _ in range(3):
        client.stop("vCont;s")
    for number, before in shown.items():
        assert client.ask(b"P%x=%b" % (number, before)) == b"OK"
        after = client.register(number)
        assert after >= int.from_bytes(bytes.fromhex(before.decode()), "little"), "it was put back"


def test_a_changed_program_counter_is_where_it_goes_on(debug: Debug) -> None:
    debugged = debug("spin")
    client = debugged.begin()
    place = debugged.at("spin_too")
    assert client.ask(f"P{debugged.numbers['pc']:x}={place.to_bytes(8, 'little').hex()}") == b"OK"
    assert client.ask(f"Z0,{debugged.at('bump'):x},1") == b"OK"
    client.stop("vCont;c")
    assert client.register(debugged.numbers["arg1"]) == 1


def test_registers_are_answered_without_waking_python(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    number = debugged.numbers["sp"]
    first = client.register(number)
    connection = debugged.server._session.connection
    before = connection.served
    for _ in range(10):
        assert client.register(number) == first
    assert connection.served == before + 10
    stop = client.stop("vCont;s:1")
    assert client.register(debugged.numbers["pc"]) == debugged.pc(stop), "what was known before the step is forgotten"


def test_an_image_shows_what_is_unknown() -> None:
    isa = isa_named("x86_64")
    layout = Layout(isa, ["rax", "rip", "rflags", "cs.selector"])
    image = Image(layout, 1, {"rax": 5, "rip": 0x1234, "rflags": 0x1_0000_0002, "cs.selector": 8})
    digits = image.all().decode()
    assert digits.startswith("0500000000000000" + "xx" * 8)
    flags = layout.of_role("flags")
    assert image.part(flags) == bytes([2, 0, 0, 0])
    assert flags.merge(0x1_0000_0002, bytes([3, 0, 0, 0])) == 0x1_0000_0003
    selector: Any = layout.find("cs")
    with pytest.raises(ValueError, match="16 bits"):
        selector.merge(8, bytes([0, 0, 1, 0]))
