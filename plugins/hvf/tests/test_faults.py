"""What goes wrong in the framework: each call fails once, and nothing of the machine is left afterwards."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import life
import pytest
import stand_in_build

from rift_core.backend import CpuFeatures, VmSpec
from rift_core.errors import HypervisorError
from rift_hvf import HvfConfig
from rift_hvf.errors import HV_DENIED, HV_UNSUPPORTED
from rift_hvf.framework import open_framework
from rift_hvf.probe import probe
from rift_hvf.vm import create_vm, make_binding

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StandIn

QUICK = HvfConfig(measure=False)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes start afresh."""
    monkeypatch.setattr("rift_hvf.probe._results", {})


def interesting(calls: int) -> list[int]:
    """Which of so many calls shall fail: the first ones, one in the middle, and the last."""
    return sorted({number for number in (1, 2, 3, calls // 2, calls) if 1 <= number <= calls})


def broken_life(stand_in: StandIn) -> HypervisorError | None:
    """What a life ends with in which one call fails, if the machine does not get over it."""
    try:
        assert life.whole(stand_in.path, stand_in.isa) == 2 * life.TOTAL
    except HypervisorError as error:
        return error
    return None


def test_each_call_fails_once(stand_in: StandIn) -> None:
    assert life.whole(stand_in.path, stand_in.isa) == 2 * life.TOTAL
    calls = {name: stand_in.calls(name) for name in life.functions(stand_in.path)}
    registers = open_framework(str(stand_in.path)).registers.ids
    tried = 0
    for name, count in calls.items():
        for number in interesting(count):
            stand_in.control(f"reset fail={name}:{number}")
            error = broken_life(stand_in)
            assert error is None or error.operation.startswith("hv_") or error.operation in registers, (name, number)
            assert error is None or "HV_ERROR" in str(error), (name, number, error)
            assert stand_in.violations == 0, (name, number)
            stand_in.control("reset")
            assert life.whole(stand_in.path, stand_in.isa) == 2 * life.TOTAL, (name, number)
            if not name.endswith("_destroy"):  # what was not let go is let go by the next machine
                assert stand_in.calls("hv_vm_create") == stand_in.calls("hv_vm_destroy") == 1, (name, number)
            tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    ("words", "code", "reason", "remedy"),
    [
        ("deny", HV_DENIED, "com.apple.security.hypervisor", "rift macos-sign"),
        ("unsupported", HV_UNSUPPORTED, "HV_UNSUPPORTED", "entitlement"),
        ("fail=hv_vm_create:1", 0, "HV_ERROR", ""),
    ],
)
def test_a_probe_tells_why_there_is_no_vm(stand_in: StandIn, words: str, code: int, reason: str, remedy: str) -> None:
    stand_in.control(words)
    result = probe(QUICK)
    assert not result.available
    assert reason in result.reason
    assert remedy in result.remedy
    assert [check.status for check in result.checks] == ["pass", "fail"]
    if code:
        with pytest.raises(HypervisorError) as caught:
            life.new_vm(stand_in.path, stand_in.isa)
        assert caught.value.code == code
        assert "rift " in str(caught.value), "what to do"
    stand_in.control("reset")
    assert probe(QUICK).available, "a failed probe is not remembered"


def test_another_librarys_vm_is_told_apart(stand_in: StandIn) -> None:
    create, destroy = stand_in.function("hv_vm_create"), stand_in.function("hv_vm_destroy")
    assert create(0) == 0
    try:
        result = probe(QUICK)
        assert not result.available
        assert "another library" in result.reason
        with pytest.raises(HypervisorError, match="another library"):
            life.new_vm(stand_in.path, stand_in.isa)
    finally:
        assert destroy() == 0


def test_no_file_is_a_clear_answer(tmp_path: Path) -> None:
    result = probe(HvfConfig(framework=str(tmp_path / "nothing")))
    assert not result.available
    assert str(tmp_path / "nothing") in result.reason
    assert "RIFT_HVF_FRAMEWORK" in result.remedy


def test_a_library_that_is_something_else(tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text('__attribute__((visibility("default"))) int hv_vm_destroy(void) { return 0; }\n')
    library = tmp_path / "other.so"
    subprocess.run(["gcc", *stand_in_build.FLAGS, "-o", str(library), str(source)], check=True)
    with pytest.raises(HypervisorError, match="it has no function hv_vm_map"):
        open_framework(str(library))
    assert "hv_vm_map" in probe(HvfConfig(framework=str(library))).reason


def test_more_address_bits_than_there_are(stand_in: StandIn) -> None:
    result = probe(HvfConfig(measure=False, address_bits=52))
    assert not result.available
    assert "address_bits is 52" in result.reason


def test_the_other_isas_guest_is_refused(stand_in: StandIn) -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[stand_in.isa]
    with pytest.raises(HypervisorError, match=f"runs {stand_in.isa}, not {other}"):
        create_vm(QUICK, VmSpec(other, make_binding(other), CpuFeatures((), frozenset())))


def test_an_older_macos_has_what_it_needs(old_stand_in: StandIn) -> None:
    assert life.whole(old_stand_in.path, old_stand_in.isa) == 2 * life.TOTAL
    exported = life.functions(old_stand_in.path)
    assert ("hv_vcpu_run_until" if old_stand_in.isa == "x86_64" else "hv_vm_config_create") not in exported
    assert old_stand_in.calls("hv_vcpu_run") > 0
    result = probe(QUICK)
    assert result.available, result.reason
    assert result.limits.gpa_bits >= 36
    assert old_stand_in.violations == 0
