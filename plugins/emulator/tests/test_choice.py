"""The emulator is what remains when no hypervisor answers, and says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import rift_emulator
import rift_x86_64
from rift_core.assembly import AUTO_BACKENDS
from rift_core.backend import ProbeResult
from rift_core.catalog import Catalog
from rift_core.machine import open_machine
from rift_core.plugin import PluginInfo, Section
from rift_core.testing.guests import guests_for
from rift_core.testing.tools import require_backend

CODE = guests_for("x86_64").add_function()


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    require_backend("emulator")
    monkeypatch.delenv("RIFT_BACKENDS", raising=False)


def catalog(*, available: bool) -> Catalog:
    """The emulator, and a KVM that works or does not."""

    class KvmSection(Section):
        pass

    probe = ProbeResult(available, "there is no /dev/kvm", "load the module", isas=("x86_64",))
    info = PluginInfo("backend", "kvm", "stand-in", KvmSection, lambda section: probe)
    return Catalog.of([SimpleNamespace(rift_plugin=lambda: info), rift_emulator, rift_x86_64])


def test_order() -> None:
    assert AUTO_BACKENDS == ("kvm", "hvf", "emulator")


def test_taken_when_nothing_else_answers() -> None:
    with open_machine(code=CODE, isa="x86_64", catalog=catalog(available=False)) as machine:
        assert machine.backend == "emulator"
        assert machine.notices == [
            "runs on the software CPU of backend emulator (kvm: there is no /dev/kvm (load the module))"
        ]


def test_silent_when_it_was_asked_for() -> None:
    with open_machine(code=CODE, isa="x86_64", backend="emulator") as machine:
        assert machine.notices == []


def test_silent_when_the_environment_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIFT_BACKENDS", "emulator")
    with open_machine(code=CODE, isa="x86_64") as machine:
        assert machine.backend == "emulator"
        assert machine.notices == []


def test_a_sandbox_is_told_that_it_is_none() -> None:
    with open_machine(code=CODE, isa="x86_64", backend="emulator", threads=[{"privilege": "user"}]) as machine:
        assert machine.notices == ["backend emulator is no security boundary: run hostile code on a hypervisor"]


def test_doctor_says_so() -> None:
    checks = {check.name: check for check in rift_emulator._probe(rift_emulator.EmulatorConfig()).checks}
    assert checks["isolation"].status == "warn"
    assert "no security boundary" in checks["isolation"].detail
