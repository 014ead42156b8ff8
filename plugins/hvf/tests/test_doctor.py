"""What ``rift doctor`` says on a Mac, told by a made-up sysctl and by what the stand-in answers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import rift_hvf
from rift_core.cli import group
from rift_hvf import HvfConfig, system
from rift_hvf.probe import probe

if TYPE_CHECKING:
    from conftest import StandIn

    from rift_core.backend import ProbeResult

APPLE_SILICON = {"kern.hv_support": 1, "sysctl.proc_translated": 0, "kern.hv_vmm_present": 0}
"""``sysctl.proc_translated`` exists on Apple silicon only."""

INTEL = {"kern.hv_support": 1, "kern.hv_vmm_present": 0}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rift_hvf.probe._results", {})
    monkeypatch.delenv("RIFT_HVF_FRAMEWORK", raising=False)


def on_a_mac(monkeypatch: pytest.MonkeyPatch, numbers: dict[str, int], framework: str = "") -> None:
    """This is macOS now, ``numbers`` are what its kernel says of itself, and its framework is at ``framework``."""
    monkeypatch.setattr("rift_hvf.probe.is_macos", lambda: True)
    monkeypatch.setattr("rift_hvf.system.is_macos", lambda: True)
    monkeypatch.setattr("rift_hvf.system.sysctl", numbers.get)
    if framework:
        monkeypatch.setattr(rift_hvf, "_SYSTEM_PATH", framework)


def result(**settings: object) -> ProbeResult:
    return probe(HvfConfig.model_validate({"measure": False, **settings}))


@pytest.mark.skipif(sys.platform == "darwin", reason="it is macOS")
def test_not_macos() -> None:
    found = result()
    assert not found.available
    assert found.reason == "Hypervisor.framework is a part of macOS"
    assert [(check.name, check.status) for check in found.checks] == [("platform", "fail")]
    assert "backend hvf" in doctor()
    assert "n/a" in line_of("backend hvf"), "nothing is wrong with this machine"


def doctor() -> str:
    answer = CliRunner().invoke(group, ["doctor"], env={"COLUMNS": "400"})
    return answer.output


def line_of(name: str) -> str:
    """Its line, and what stands below it on what to do."""
    lines = doctor().splitlines()
    at = next(number for number, line in enumerate(lines) if name in line)
    more = lines[at + 1] if lines[at + 1].lstrip().startswith("->") else ""
    return lines[at] + more


@pytest.mark.parametrize(
    ("numbers", "reason", "remedy"),
    [
        ({**APPLE_SILICON, "sysctl.proc_translated": 1}, "under Rosetta", "use an arm64 Python"),
        ({"kern.hv_support": 0, "kern.hv_vmm_present": 1}, "is itself a virtual machine", "on the Mac itself"),
        ({"kern.hv_support": 0, "kern.hv_vmm_present": 0}, "no hardware support", "--backend emulator"),
        ({}, "no hardware support", "--backend emulator"),
    ],
)
def test_what_the_kernel_says(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, int], reason: str, remedy: str
) -> None:
    on_a_mac(monkeypatch, numbers, "/nowhere/at/all")
    found = result()
    assert not found.available
    assert reason in found.reason
    assert remedy in found.remedy
    assert [(check.name, check.status) for check in found.checks] == [("platform", "pass"), ("hardware", "fail")]
    shown = line_of("backend hvf")
    assert reason in shown
    assert remedy in shown


def test_the_entitlement_is_missing(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    on_a_mac(monkeypatch, APPLE_SILICON if stand_in.isa == "aarch64" else INTEL, str(stand_in.path))
    monkeypatch.delenv("RIFT_HVF_FRAMEWORK")
    stand_in.control("deny")
    found = result()
    assert not found.available
    assert (
        found.reason
        == f"the entitlement com.apple.security.hypervisor is missing: {sys.executable} is not signed with it"
    )
    assert found.remedy.startswith("run `rift macos-sign`")
    assert [check.name for check in found.checks] == ["platform", "hardware", "framework", "virtual machine"]
    assert "rift macos-sign" in line_of("backend hvf")


def test_hv_unsupported_may_mean_either(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    """A macOS was seen that answers HV_UNSUPPORTED where the entitlement is missing."""
    on_a_mac(monkeypatch, INTEL, str(stand_in.path))
    monkeypatch.delenv("RIFT_HVF_FRAMEWORK")
    stand_in.control("unsupported")
    found = result()
    assert "HV_UNSUPPORTED" in found.reason
    assert "rift macos-sign" in found.remedy


def test_everything_is_well(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    on_a_mac(monkeypatch, INTEL, str(stand_in.path))
    monkeypatch.delenv("RIFT_HVF_FRAMEWORK")
    found = result()
    assert found.available
    assert found.machine == f"hvf-{stand_in.isa}"
    assert "pass" in line_of("backend hvf")


def test_a_stand_in_is_never_taken_for_a_mac(stand_in: StandIn) -> None:
    assert result(framework=str(stand_in.path)).machine == f"hvf-{stand_in.isa}-stand-in"


@pytest.mark.skipif(sys.platform == "darwin", reason="it is macOS")
def test_elsewhere_there_is_no_sysctl() -> None:
    assert system.sysctl("kern.hv_support") is None
