"""``monitor``: commands for people, and those of other plugins."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rift_core.exits import ExitKind
from rift_core.plugin import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    from rift_core.engine import Engine

    Debug = Callable[..., Debugged]


def test_help_lists_all_commands(debug: Debug) -> None:
    client = debug("main").begin()
    text = client.monitor("help")
    for name in ("help", "threads", "pt ADDRESS", "map", "exits", "regs system", "dirty", "reset", "phys", "means"):
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name
    assert client.monitor("") == text


def test_what_is_no_command(debug: Debug) -> None:
    client = debug("main").begin()
    assert client.monitor("nonsense") == "there is no command 'nonsense'; try: monitor help\n"
    assert client.monitor("pt") == "pt: give an address\n"
    assert "no address, symbol or $register" in client.monitor("pt nowhere_at_all")
    assert "on or off" in client.monitor("exits maybe")
    assert "on or off" in client.monitor("phys perhaps")
    assert "system" in client.monitor("regs all")
    assert client.ask("qRcmd,zz").startswith(b"E")


def test_a_long_answer_comes_in_pieces_of_whole_characters(debug: Debug) -> None:
    client = debug("main").begin()
    for padding in ("", "a", "ab"):
        command = (
            padding + "\N{EURO SIGN}" * 10_915
        )  # three bytes each: with what the answer adds, too many for one packet
        assert client.monitor(command) == f"there is no command {command!r}; try: monitor help\n"


def test_threads_and_where_they_stand(debug: Debug) -> None:
    debugged = debug("spin", "spin_too", privilege="user")
    client = debugged.begin()
    first, second = client.monitor("threads").splitlines()
    assert re.fullmatch(r" +1  spin +vCPU 0  user +\S+ <spin>  \d+ exits", first), first
    assert re.fullmatch(r" +2  spin_too +vCPU 1  user +\S+ <spin_too>  \d+ exits", second), second


def test_the_walk_of_an_address(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    text = client.monitor("pt main")
    assert text.count("entry at guest-physical") >= 3
    physical = debugged.machine.translate(debugged.at("main")).physical
    assert f"{physical:#x}" in text
    assert text == client.monitor(f"pt {debugged.at('main'):#x}")
    assert f"{debugged.at('main'):#x}" in client.monitor("pt $pc")
    assert "not mapped" in client.monitor("pt 0x50000000")


def test_the_map(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    lines = client.monitor("map").splitlines()
    main = debugged.at("main")
    for line in lines:
        found = re.match(r"(0x[0-9a-f]+)-(0x[0-9a-f]+)  (\S+) ", line)
        assert found is not None, line
        if int(found[1], 16) <= main < int(found[2], 16):
            assert "x" in found[3]
            assert "w" not in found[3]
            break
    else:
        raise AssertionError("the code is not mapped")
    assert any("main/stack" in line for line in lines)


def test_system_registers_by_bits(debug: Debug) -> None:
    debugged = debug("main")
    text = debugged.begin().monitor("regs system")
    control = r"cr0 +0x\S+  \[.*\bPG\b.*\]" if debugged.isa == "x86_64" else r"SCTLR_EL1 +0x\S+  \[.*\bM\b.*\]"
    assert re.search(control, text), text


def test_exits_are_counted_while_somebody_wants_it(debug: Debug) -> None:
    debugged = debug("unanswered")
    client = debugged.begin()
    assert client.monitor("exits").splitlines()[0].startswith("unanswered ")
    client.monitor("exits on")
    client.stop("vCont;c")
    assert re.search(r"^MMIO +1$", client.monitor("exits"), re.MULTILINE)
    client.monitor("exits off")
    assert client.ask("vCont;c") == b"W04"
    assert debugged.server.counter.counts[ExitKind.MMIO] == 1, "not counted any more"


def test_pages_that_were_written_to(debug: Debug) -> None:
    debugged = debug("stores")
    client = debugged.begin()
    if not debugged.machine.isa.keeps_dirty:
        assert client.monitor("dirty") == "this CPU does not note which pages are written to\n"
        return
    client.monitor("dirty")
    watched = debugged.at("watched")

    def covers(text: str) -> bool:
        return any(int(first, 16) <= watched < int(end, 16) for first, end in re.findall(r"(0x\w+)-(0x\w+)", text))

    assert not covers(client.monitor("dirty"))
    assert client.ask(f"Z1,{debugged.at('store'):x},{len(debugged.machine.isa.debug.breakpoint)}") == b"OK"
    client.stop("vCont;c")  # before the first store
    assert not covers(client.monitor("dirty"))
    client.stop("vCont;c")  # before the second
    assert covers(client.monitor("dirty"))
    assert not covers(client.monitor("dirty")), "it was asked a moment ago"


def test_reset_begins_again(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin(4)
    place = f"{debugged.at('twice'):x},{len(debugged.machine.isa.debug.breakpoint)}"
    assert client.ask(f"Z0,{place}") == b"OK"
    client.stop("vCont;c")
    client.write(debugged.at("counter"), (99).to_bytes(4, "little"))
    text = client.monitor("reset")
    assert "at their entry: main" in text
    assert client.read(debugged.at("counter"), 4) == (7).to_bytes(4, "little")
    assert client.register(debugged.numbers["pc"]) == debugged.at("main")
    breakpoint = client.stop("vCont;c")
    assert debugged.pc(breakpoint) == debugged.at("twice"), "the breakpoint is in the new image too"
    assert client.ask(f"z0,{place}") == b"OK"
    assert client.ask("vCont;c").startswith(b"W")


def test_an_image_that_is_mapped_from_its_file_cannot_be_reset(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    engine = debugged.machine.engine
    first, *others = engine.plan.regions
    shown = replace(first, segment=engine.plan.binary.segments[0])  # as large files are
    engine.plan = replace(engine.plan, regions=(shown, *others))
    assert "map_file" in client.monitor("reset")
    assert client.ask("vCont;c") == b"W06"


def test_commands_of_other_plugins(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    plugin = ModuleType("lamps")

    def lamp(engine: Engine, words: list[str]) -> str:
        if words == ["break"]:
            raise ValueError("it is broken")
        return f"{engine.isa.name} lamp {' '.join(words)}\n"

    @hookimpl(optionalhook=True)
    def rift_gdb_monitor_commands() -> Any:
        yield "lamp NAME", "Switch a lamp.", lamp
        yield "threads", "Not what it is.", lamp

    plugin.rift_gdb_monitor_commands = rift_gdb_monitor_commands  # type: ignore[attr-defined]
    engine = debugged.machine.engine
    engine.hooks = engine.hooks.extended(plugin)
    assert re.search(r"^lamp NAME +Switch a lamp\.$", client.monitor("help"), re.MULTILINE)
    assert client.monitor("lamp green now") == f"{debugged.isa} lamp green now\n"
    assert client.monitor("lamp break") == "it is broken\n"
    assert "vCPU 0" in client.monitor("threads"), "a name that is taken keeps its owner"


def test_a_plugin_that_fails_is_no_end_of_the_session(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    plugin = ModuleType("lamps")

    def lamp(engine: Engine, words: list[str]) -> str:
        raise KeyError("no such lamp")

    @hookimpl(optionalhook=True)
    def rift_gdb_monitor_commands() -> Any:
        return [("lamp", "Switch a lamp.", lamp)]

    plugin.rift_gdb_monitor_commands = rift_gdb_monitor_commands  # type: ignore[attr-defined]
    engine = debugged.machine.engine
    engine.hooks = engine.hooks.extended(plugin)
    assert "no such lamp" in client.monitor("lamp")
    assert client.monitor("threads")


def test_long_answers_come_in_pieces(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    plugin = ModuleType("lamps")
    text = "".join(f"lamp {number}\n" for number in range(40_000))

    @hookimpl(optionalhook=True)
    def rift_gdb_monitor_commands() -> Any:
        return [("lamps", "All lamps.", lambda engine, words: text)]

    plugin.rift_gdb_monitor_commands = rift_gdb_monitor_commands  # type: ignore[attr-defined]
    engine = debugged.machine.engine
    engine.hooks = engine.hooks.extended(plugin)
    assert client.monitor("lamps") == text
