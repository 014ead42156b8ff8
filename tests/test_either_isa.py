"""Either ISA on any host, as far as no hypervisor is needed: checking, inspecting, and what is refused before anything
is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import load_config, open_machine
from rift_core.assembly import assemble, check, choose_backend, host_isa
from rift_core.backend import CpuFeatures, Limits, ProbeResult
from rift_core.build import build
from rift_core.build_target import BuildError
from rift_core.catalog import Catalog
from rift_core.cli import status_of
from rift_core.errors import ConfigError, MappingError, PluginUnavailableError
from rift_core.testing import fakes, faults
from rift_core.testing.tools import require_payload_compiler

if TYPE_CHECKING:
    from pathlib import Path

ISAS = ["x86_64", "aarch64"]
SOURCE = """
#include <rift_guest.h>
static char room[1 << 20];
int main(void) { rift_printf("%s %d\\n", rift_privilege_name(), room[5]); return 0; }
"""


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | BuildError]:
    """The payload of each ISA, or why there is none."""
    folder = tmp_path_factory.mktemp("payloads")
    (folder / "guest.c").write_text(SOURCE)
    found: dict[str, Path | BuildError] = {}
    for name in ISAS:
        try:
            found[name] = build(folder / "guest.c", folder / name, name).path
        except BuildError as error:
            if error.output:
                raise
            found[name] = error
    return found


@pytest.fixture
def payload(payloads: dict[str, Path | BuildError], isa: str) -> Path:
    require_payload_compiler(isa)
    found = payloads[isa]
    assert not isinstance(found, BuildError), found
    return found


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    status = status_of(list(arguments))
    output, errors = capfd.readouterr()
    assert status == 0, errors
    return output


def test_inspect(payload: Path, isa: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = run(capfd, "inspect", str(payload))
    assert isa in text
    assert "0x200000" in text
    assert "main" in run(capfd, "inspect", str(payload), "--symbols", "200")


@pytest.mark.parametrize("backends", ["", "kvm"], ids=["what-is-here", "kvm-only"])
def test_check(
    payload: Path, isa: str, backends: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backends:
        monkeypatch.setenv("RIFT_BACKENDS", backends)
    plan = json.loads(run(capfd, "check", str(payload), "--json"))
    assert plan["binary"]["isa"] == isa
    assert {"text", "doorbell", "tables", "main/stack"} <= {mapping["name"] for mapping in plan["mappings"]}
    if backends and isa != host_isa():
        assert not plan["backend"]["available"]
        assert f"not {isa}" in plan["backend"]["reason"] or f"can run {isa}" in plan["backend"]["reason"]


@pytest.mark.parametrize("granule", ["4KiB", "16KiB"])
def test_check_with_either_granule(
    payloads: dict[str, Path | BuildError],
    granule: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_payload_compiler("aarch64")
    payload = payloads["aarch64"]
    assert not isinstance(payload, BuildError), payload
    if host_isa() == "aarch64":
        monkeypatch.setenv("RIFT_BACKENDS", "hvf")  # assumed limits, whatever this CPU has
    else:
        monkeypatch.setenv("RIFT_BACKENDS", "kvm")
    plan = json.loads(
        run(capfd, "check", str(payload), "--json", "--isa", "aarch64", "--set", f"isa.granule={granule}")
    )
    page = {"4KiB": 0x1000, "16KiB": 0x4000}[granule]
    assert all(m["virtual"] % page == m["physical"] % page == m["size"] % page == 0 for m in plan["mappings"])
    assert plan["tables"]["size"] % page == 0


# -- refused before anything is made --------------------------------------------------------------------------------


def test_a_payload_of_another_isa(payloads: dict[str, Path | BuildError]) -> None:
    other = next(name for name in ISAS if name != host_isa())
    require_payload_compiler(other)
    found = payloads[other]
    assert not isinstance(found, BuildError), found
    with pytest.raises(ConfigError, match=f"isa.name is '{host_isa()}', but .* is {other} code"):
        open_machine(load_config({"binary": {"path": str(found)}, "isa": {"name": host_isa()}}))


def test_a_backend_that_does_not_run_the_isa(payload: Path, isa: str) -> None:
    catalog = Catalog.installed()
    config = load_config({"binary": {"path": str(payload)}, "backend": {"name": "fake"}})
    if isa == "x86_64":
        assert choose_backend(config, catalog, isa).probe.available
        return
    with pytest.raises(PluginUnavailableError, match=r"fake: .*aarch64"):
        open_machine(config)


def test_nothing_was_made(payload: Path, isa: str) -> None:
    """The same refusals leave every call of the backend untouched."""
    config = load_config({"binary": {"path": str(payload)}, "backend": {"name": "fake"}, "memory": {"size": "64KiB"}})
    with faults.FaultInjecting(fakes, "create_vm") as fault:
        with pytest.raises((MappingError, PluginUnavailableError)):
            open_machine(config)
        assert not fault.fired


class Here:
    """A catalog whose automatic backend is the fake one with another probe."""

    @staticmethod
    def assemble(payload: Path, probe: ProbeResult, **isa: Any) -> Any:
        catalog = Catalog.installed()
        config = load_config({"binary": {"path": str(payload)}, "isa": {"name": "aarch64", **isa}})
        entry = catalog.get("backend", "kvm")
        from rift_core.assembly import ChosenBackend

        return assemble(config, catalog, backend=ChosenBackend(entry, entry.info.config(), probe, "made up"))


@pytest.fixture
def aarch64_payload(payloads: dict[str, Path | BuildError]) -> Path:
    require_payload_compiler("aarch64")
    found = payloads["aarch64"]
    assert not isinstance(found, BuildError), found
    return found


def probe(
    *, page_sizes: tuple[int, ...] = (0x1000, 0x20_0000), gpa_bits: int = 36, page_size: int = 0x1000
) -> ProbeResult:
    limits = Limits(page_size=page_size, gpa_bits=gpa_bits, max_slots=32)
    return ProbeResult(False, "made up", limits=limits, features=CpuFeatures(page_sizes=page_sizes))


def test_a_granule_that_the_cpu_has_not(aarch64_payload: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"isa\.granule is 16KiB, but the CPU of this backend has only the granule 4 KiB"
    ):
        Here.assemble(aarch64_payload, probe(), granule="16KiB")
    made = Here.assemble(aarch64_payload, probe(page_sizes=(0x4000, 0x200_0000)))
    assert made.isa.page_sizes == (0x4000, 0x200_0000)


def test_an_address_beyond_the_size_of_guest_physical_addresses(aarch64_payload: Path) -> None:
    with pytest.raises(
        MappingError, match=r"guest-physical addresses up to 0x[0-9a-f]+; this hypervisor ends at 0x1000000"
    ):
        Here.assemble(aarch64_payload, probe(gpa_bits=24))


def test_a_host_with_larger_pages(aarch64_payload: Path) -> None:
    made = Here.assemble(aarch64_payload, probe(page_size=0x4000))
    assert made.isa.page_sizes[0] == 0x1000
    assert all(m.physical % 0x4000 == m.size % 0x4000 == 0 for m in made.plan.mappings)


def test_check_works_for_an_isa_that_nothing_here_runs(
    payload: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIFT_BACKENDS", "hvf")
    made = check(load_config({"binary": {"path": str(payload)}}), Catalog.installed())
    assert made.isa.name == isa
    assert made.plan.areas
