"""Hooks of extensions, and what happens when nobody answers one."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rift_core import Machine, PluginError, PluginInfo, PluginUnavailableError, Section, Stop, hookimpl, open_machine
from rift_core.catalog import Catalog
from rift_core.hooks import Hooks

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
    try:
        machine = open_machine(
            code=bytes.fromhex("f4"), isa="x86_64", catalog=catalog, extensions=[{"name": "recorder"}]
        )
    except PluginUnavailableError as error:
        pytest.skip(f"no backend works here: {error}")
    with machine:
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
