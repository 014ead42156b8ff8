"""Discovery: each plugin is loaded by itself, and a broken one is only a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import catalog as module
from rift_core.commands.doctor import backend_checks
from rift_core.commands.plugins import describe
from rift_core.errors import PluginConflictError, PluginLoadError, PluginNotFoundError
from rift_core.plugin import PluginInfo, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.catalog import Catalog


class Settings(Section):
    speed: int = 1


class Entry:
    """An entry point of some distribution."""

    def __init__(self, name: str, load: Callable[[], Any], distribution: str = "someone") -> None:
        self.name = name
        self.value = f"{name}_module"
        self.load = load
        self.dist = SimpleNamespace(name=distribution, version="1.2")


def declares(*infos: Any) -> Callable[[], Any]:
    return lambda: SimpleNamespace(rift_plugin=lambda: infos)


def fails(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


def info(name: str = "mine", kind: Any = "backend", config: Any = Settings) -> PluginInfo:
    return PluginInfo(kind, name, "A plugin", config)


@pytest.fixture
def discover(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Catalog]:
    """The catalog of an environment with these entry points."""
    for name in ("RIFT_NO_PLUGINS", "RIFT_DISABLE_PLUGINS", "RIFT_RAISE_PLUGIN_ERRORS"):
        monkeypatch.delenv(name, raising=False)

    def found(*entries: Entry) -> Catalog:
        monkeypatch.setattr(module, "entry_points", lambda group: list(entries))
        return module._discover()

    return found


BROKEN = {
    "does not import": (fails(ImportError("no such library")), "ImportError: no such library"),
    "raises anything": (fails(ZeroDivisionError("oops")), "ZeroDivisionError: oops"),
    "exits": (fails(SystemExit(3)), "SystemExit: 3"),
    "declares nothing": (SimpleNamespace, "it has no rift_plugin()"),
    "declares something else": (declares("backend"), "returned str, not PluginInfo"),
    "is of no kind": (declares(info(kind="engine")), "'engine' is no kind of plugin"),
    "has no name": (declares(info("")), "is not possible"),
    "has a name with a dot": (declares(info("a.b")), "is not possible"),
    "is called auto": (declares(info("auto")), "is not possible"),
    "is a binding without a slash": (declares(info(kind="binding")), "is called backend/isa"),
    "has a slash and is no binding": (declares(info("a/b")), "is called backend/isa"),
    "has settings of its own making": (declares(info(config=dict)), "not a subclass of rift_core.Section"),
    "fails when asked": (lambda: SimpleNamespace(rift_plugin=fails(RuntimeError("later"))), "RuntimeError: later"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_a_row_and_the_others_stay(discover: Callable[..., Catalog], what: str) -> None:
    load, reason = BROKEN[what]
    catalog = discover(Entry("bad", load, "badly"), Entry("good", declares(info("good"))))
    assert [entry.info.name for entry in catalog] == ["good"]
    (broken,) = catalog.broken
    assert isinstance(broken.error, PluginLoadError)
    assert reason in str(broken.error)
    assert "plugin bad of badly 1.2 cannot be loaded from bad_module" in str(broken.error)
    row = next(row for row in describe(catalog) if row["name"] == "bad")
    assert (row["distribution"], row["version"]) == ("badly", "1.2")
    assert reason in row["status"]


def test_the_error_can_be_had_whole(discover: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIFT_RAISE_PLUGIN_ERRORS", "1")
    with pytest.raises(ZeroDivisionError, match="oops"):
        discover(Entry("bad", fails(ZeroDivisionError("oops"))))


def test_plugins_can_be_left_out(discover: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (Entry("one", declares(info("one"))), Entry("two", declares(info("two"))))
    monkeypatch.setenv("RIFT_DISABLE_PLUGINS", "two, three")
    catalog = discover(*entries)
    assert [entry.info.name for entry in catalog] == ["one"]
    with pytest.raises(PluginNotFoundError, match="RIFT_DISABLE_PLUGINS leaves out two"):
        catalog.get("backend", "two")
    monkeypatch.setenv("RIFT_NO_PLUGINS", "1")
    assert list(discover(*entries)) == []


def test_two_of_a_name_are_a_conflict_only_when_chosen(discover: Callable[..., Catalog]) -> None:
    catalog = discover(
        Entry("one", declares(info("same")), "first"),
        Entry("two", declares(info("same")), "second"),
        Entry("three", declares(info("other"))),
    )
    assert catalog.get("backend", "other").distribution == "someone"
    assert [entry.info.name for entry in catalog.of_kind("backend")] == ["other"]
    with pytest.raises(PluginConflictError, match=r"'same' is provided by first 1\.2 and second 1\.2"):
        catalog.get("backend", "same")
    assert sum("conflict" in row["status"] for row in describe(catalog)) == 2


def test_what_is_not_installed_is_told_with_what_is(discover: Callable[..., Catalog]) -> None:
    catalog = discover(Entry("one", declares(info("kvm"), info("hvf"))), Entry("bad", fails(ImportError("gone"))))
    with pytest.raises(PluginNotFoundError) as caught:
        catalog.get("backend", "kwm")
    message = str(caught.value)
    assert "no backend named 'kwm' (installed: hvf, kvm); did you mean 'kvm'?" in message
    assert "ImportError: gone" in message


def test_a_probe_that_raises_makes_its_backend_unavailable(discover: Callable[..., Catalog]) -> None:
    def probe(section: Section) -> Any:
        raise OSError("no luck")

    wrong = PluginInfo("backend", "wrong", "A plugin", Settings, probe)
    catalog = discover(Entry("wrong", declares(wrong)), Entry("good", declares(info("good"))))
    (row,) = [row for row in describe(catalog) if row["name"] == "wrong"]
    assert row["status"] == "unavailable: its probe failed: OSError: no luck"
    checks, usable = backend_checks(catalog)
    assert not usable
    assert any("no luck" in check.detail and "someone" in check.remedy for check in checks)


def test_several_infos_of_one_module_share_it(discover: Callable[..., Catalog]) -> None:
    catalog = discover(Entry("both", declares(info("kvm"), info("kvm/x86_64", "binding"))))
    assert catalog.get("backend", "kvm").module is catalog.get("binding", "kvm/x86_64").module
