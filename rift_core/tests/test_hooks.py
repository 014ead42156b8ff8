"""Hooks of extensions, and what happens when nobody answers one."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rift_core import (
    ConfigError,
    ExitKind,
    GuestFaultError,
    Machine,
    PluginError,
    PluginInfo,
    Resume,
    Section,
    StateError,
    Stop,
    hookimpl,
    open_machine,
)
from rift_core.catalog import Catalog
from rift_core.config import configuration_schema
from rift_core.hooks import Hooks
from rift_core.testing.tools import require_machine

EVENTS: list[str] = []


class Recorder:
    """An extension that writes down what it is told, and wraps the run loop."""

    __name__ = "recorder"

    @hookimpl
    def rift_plugin(self) -> PluginInfo:
        return PluginInfo("extension", "recorder", "Records events")

    @hookimpl
    def rift_machine_opened(self, machine: Machine, config: Section) -> None:
        EVENTS.append(f"opened with {len(machine.threads)} thread")

    @hookimpl
    def rift_thread_started(self, thread: Any) -> None:
        EVENTS.append(f"started {thread.name}")

    @hookimpl(wrapper=True)
    def rift_run_vcpu(self, thread: Any, vcpu: Any, dispatcher: Any) -> Any:
        EVENTS.append("run")
        stop = yield
        return Stop(stop.status + 1, "wrapped")

    @hookimpl
    def rift_thread_stopped(self, thread: Any, outcome: object) -> None:
        rip = thread.context.vcpu.read_registers(("rip",))["rip"]
        EVENTS.append(f"stopped {outcome}, pc known: {rip != 0}")

    @hookimpl
    def rift_machine_closing(self, machine: Any) -> None:
        EVENTS.append("closing")


def test_an_extension_sees_the_whole_life_of_a_machine() -> None:
    EVENTS.clear()
    installed = Catalog.installed()
    catalog = Catalog([*installed, *Catalog.of([Recorder()])])
    extensions = [{"name": "recorder"}]
    with require_machine(
        lambda: open_machine(code=bytes.fromhex("f4"), isa="x86_64", catalog=catalog, extensions=extensions)
    ) as machine:
        assert machine.thread().start().join(10) == Stop(1, "wrapped")
    assert EVENTS == [
        "opened with 1 thread",
        "started main",
        "run",
        "stopped Stop(status=1, reason='wrapped'), pc known: True",
        "closing",
    ]


def test_a_misspelt_hook_is_an_error_at_once() -> None:
    module = SimpleNamespace(__name__="wrong", rift_create_vmm=hookimpl(lambda config: None))
    with pytest.raises(PluginError, match="rift_create_vmm"):
        Hooks([module])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda hooks: hooks.binding("a", "b"), "a/b"),
        (lambda hooks: hooks.isa(None, None), "no ISA came from rift_isa"),
        (
            lambda hooks: hooks.create_vm(None, SimpleNamespace(binding=SimpleNamespace(backend="a"))),
            "'a': no VM came from",
        ),
        (lambda hooks: hooks.configure_mmu(SimpleNamespace(name="b"), (), None, None), "'b': no page tables came from"),
        (lambda hooks: hooks.exit_handlers(ModuleType("c"), None, None), "c declares an exit handler"),
    ],
)
def test_nobody_answering_names_who_should_have(ask: Any, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        ask(Hooks([]))


class LampSettings(Section):
    brightness: int = 3


class Lamp:
    """An extension with a table of its own, and something to offer."""

    __name__ = "lamp"

    def __init__(self, name: str = "lamp") -> None:
        self.name = name
        self.runs = 0

    @hookimpl
    def rift_plugin(self) -> PluginInfo:
        return PluginInfo("extension", self.name, "A lamp", LampSettings, table="light")

    @hookimpl
    def rift_machine_opened(self, machine: Machine, config: Any) -> object:
        return f"{config.name} {config.brightness}"

    @hookimpl
    def rift_run_started(self, context: Any) -> None:
        self.runs += 1


def catalog_with(*plugins: Any) -> Catalog:
    return Catalog([*Catalog.installed(), *Catalog.of(plugins)])


def test_an_extensions_own_table() -> None:
    catalog = catalog_with(Lamp())
    with open_code({"light": {"brightness": 5}}, catalog) as machine:
        assert machine.extension("lamp") == "lamp 5"
        with pytest.raises(ConfigError, match="no extension 'radio'"):
            machine.extension("radio")
    for wrong, words in (
        ({"light": {"brightness": "much"}}, "light.brightness"),
        ({"light": {"bright": 1}}, "did you mean 'brightness'"),
        ({"light": {}, "extensions": ["lamp"]}, "configured twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_code(wrong, catalog)
    schema = configuration_schema(catalog)
    assert "brightness" in str(schema["$defs"]["Light_lamp"]["properties"])
    assert "light" in schema["properties"]


def test_two_extensions_with_one_table_are_told_apart_by_name() -> None:
    catalog = catalog_with(Lamp(), Lamp("torch"))
    with open_code({"light": {"name": "torch"}}, catalog) as machine:
        assert machine.extension("torch") == "torch 3"
    with pytest.raises(ConfigError, match="name"):
        open_code({"light": {"brightness": 1}}, catalog)


def test_a_table_of_cores_is_not_for_extensions() -> None:
    lamp = Lamp()
    lamp.rift_plugin = hookimpl(lambda: PluginInfo("extension", "lamp", "", table="memory"))  # type: ignore[method-assign]
    with pytest.raises(PluginError, match="cannot have the table 'memory'"):
        Catalog.of([lamp])


def test_an_extension_is_added_to_a_machine_in_use() -> None:
    lamp = Lamp()
    with open_code({}, catalog_with(lamp)) as machine:
        assert machine.call(machine.load_code(RETURN_7)) == 7
        with pytest.raises(ConfigError, match="brightness"):
            machine.extend("lamp", brightness="much")
        assert machine.extend("lamp", brightness=9) == "lamp 9"
        assert machine.extension("lamp") == "lamp 9"
        with pytest.raises(StateError, match="already"):
            machine.extend("lamp")
        assert machine.call(machine.load_code(RETURN_7)) == 7
    assert lamp.runs == 1


class Postman:
    __name__ = "postman"

    @hookimpl
    def rift_plugin(self) -> PluginInfo:
        return PluginInfo("extension", "postman", "Answers another plugin's hook")

    @hookimpl(optionalhook=True)
    def lamp_letters(self, colour: str) -> str:
        return f"a {colour} letter"


def test_a_hook_that_a_plugin_owns() -> None:
    with open_code({"extensions": ["lamp", "postman"]}, catalog_with(Lamp(), Postman())) as machine:
        assert machine.engine.hooks.call_optional("lamp_letters", colour="red", size=3) == ["a red letter"]
        assert machine.engine.hooks.call_optional("nobody_has_this") == []


def open_code(sections: dict[str, Any], catalog: Catalog) -> Machine:
    return require_machine(lambda: open_machine(code=bytes.fromhex("f4"), isa="x86_64", catalog=catalog, **sections))


UD2 = bytes.fromhex("0f0b")
RETURN_7 = bytes.fromhex("b807000000c3")  # mov eax, 7; ret


class Overseer:
    """An extension that sees runs, and answers what nobody else does."""

    __name__ = "overseer"

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.seen: list[Any] = []
        self.answer: Any = None

    @hookimpl
    def rift_plugin(self) -> PluginInfo:
        return PluginInfo("extension", "overseer", "Sees runs")

    @hookimpl
    def rift_run_started(self, context: Any) -> None:
        self.runs.append(f"started {context.name}, registers: {context.vcpu.read_registers(('rip',))['rip'] != 0}")

    @hookimpl
    def rift_run_ended(self, context: Any) -> None:
        self.runs.append(f"ended {context.name}")

    @hookimpl
    def rift_exit_unanswered(self, context: Any, exit: Any, fault: Any, describe: Any) -> Any:
        self.seen.append((exit.kind, fault.name if fault else None, type(describe()).__name__))
        return self.answer(context, fault) if self.answer else None


def open_with(overseer: Overseer, code: bytes) -> Machine:
    catalog = Catalog([*Catalog.installed(), *Catalog.of([overseer])])
    return require_machine(
        lambda: open_machine(code=code, isa="x86_64", catalog=catalog, extensions=[{"name": "overseer"}])
    )


def test_runs_of_threads_and_calls_are_seen() -> None:
    overseer = Overseer()
    with open_with(overseer, bytes.fromhex("f4")) as machine:
        machine.thread().start().join(10)
        assert machine.call(machine.load_code(RETURN_7)) == 7
    assert overseer.runs == [
        "started main, registers: True",
        "ended main",
        "started call-1, registers: True",
        "ended call-1",
    ]


def test_what_nobody_answers_ends_the_run_unless_an_extension_answers() -> None:
    overseer = Overseer()
    with open_with(overseer, UD2) as machine:
        with pytest.raises(GuestFaultError, match="#UD"):
            machine.thread().start().join(10)
        overseer.answer = lambda context, fault: Stop(9, "enough")
        assert machine.thread().start().join(10) == Stop(9, "enough")
    assert overseer.seen == 2 * [(ExitKind.MMIO, "#UD invalid opcode", "GuestFaultError")]


def test_an_answer_may_let_the_guest_go_on() -> None:
    overseer = Overseer()

    def go_on(context: Any, fault: Any) -> Resume:
        context.vcpu.write_registers({"rip": context.engine.system.return_address})
        return Resume()

    overseer.answer = go_on
    code = bytes.fromhex("b805000000 e699")  # mov eax, 5; out 0x99, al
    with open_with(overseer, code) as machine:
        assert machine.thread().start().join(10) == Stop(5, "return")
    assert overseer.seen == [(ExitKind.PORT_IO, None, "UnhandledExitError")]
