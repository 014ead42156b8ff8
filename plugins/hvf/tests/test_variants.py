"""Frameworks that differ from the others in what Apple's headers leave open: the backend runs over each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import life
import pytest

from rift_core.errors import HypervisorError
from rift_hvf import HvfConfig
from rift_hvf.framework import open_framework
from rift_hvf.probe import _probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StandIn

    from rift_core.backend import ProbeResult

VARIANTS = {
    "x86_64": ("first_id=1000", "demanding", "no_native_msrs", "no_deadlines", "demanding no_native_msrs no_deadlines"),
    "aarch64": ("first_id=1000", "ipa_bits=40", "ipa_bits=33", "fixed_numbers", "first_id=7 ipa_bits=39 fixed_numbers"),
}
MAY_MISS = {"no_native_msrs": {"syscall"}}
"""Capabilities that a variant cannot have: MSRs for SYSCALL that never reach the CPU."""


@pytest.fixture(params=[(isa, words) for isa, all_words in VARIANTS.items() for words in all_words], ids=":".join)
def variant(request: pytest.FixtureRequest) -> Iterator[tuple[StandIn, str]]:
    """A stand-in, told to be otherwise."""
    isa, words = request.param
    stand_in: StandIn = request.getfixturevalue(isa)
    stand_in.control(words)
    yield stand_in, words
    assert stand_in.violations == 0


def probed(stand_in: StandIn) -> ProbeResult:
    """What the backend makes of it now: not what it remembers."""
    return _probe(HvfConfig(framework=str(stand_in.path)))


def test_a_machine_lives(variant: tuple[StandIn, str]) -> None:
    stand_in, _ = variant
    for _ in range(2):
        assert life.whole(stand_in.path, stand_in.isa) == 2 * life.TOTAL


def test_the_probe_finds_the_same(variant: tuple[StandIn, str]) -> None:
    stand_in, words = variant
    result = probed(stand_in)
    assert result.available, result.reason
    assert stand_in.violations == 0
    stand_in.control("reset")
    usual = probed(stand_in)
    missing = (usual.capabilities | usual.features.names) - (result.capabilities | result.features.names)
    assert missing <= set().union(*(names for word, names in MAY_MISS.items() if word in words))
    if "ipa_bits" in words:
        assert f"ipa_bits={result.limits.gpa_bits}" in words


def test_no_kick_is_lost_when_there_are_no_deadlines(x86_64: StandIn) -> None:
    x86_64.control("no_deadlines irq=3")
    with life.Life(x86_64.path, "x86_64") as one:
        for _ in range(5):
            assert one.sum() == life.TOTAL
        assert x86_64.calls("hv_vcpu_run_until") == 1, "asked once"


def test_the_counter_goes_on_where_its_msr_is_not_native(x86_64: StandIn) -> None:
    x86_64.control("no_native_msrs")
    with life.Life(x86_64.path, "x86_64") as one:
        first, second = one.register("tsc"), one.register("tsc")
        assert first < second
        one.vcpu.write_registers({"tsc": 1 << 62})
        assert 1 << 62 < one.register("tsc") < (1 << 62) + (1 << 40)


def test_a_framework_with_nothing_to_spare(bare: StandIn) -> None:
    """The functions that are looked up one by one may all be missing: what needs them is missing then, and says so."""
    assert not open_framework(str(bare.path)).has("hv_vcpu_run_until")
    result = probed(bare)
    assert result.available, result.reason
    assert {"readonly_memory", "user_msr_exit", "inject_exception"} <= result.capabilities
    lost = {"x86_64": "syscall", "aarch64": "debug_single_step"}[bare.isa]
    assert lost not in result.capabilities | result.features.names
    with life.Life(bare.path, bare.isa) as one:
        assert one.sum() == life.TOTAL
        state = one.vcpu.save()
        one.vcpu.park()
        one.vcpu.adopt()
        one.vcpu.restore(state)
        assert one.sum() == life.TOTAL
        name = "xmm0" if bare.isa == "x86_64" else "v0"
        with pytest.raises(HypervisorError, match=f"{name}|simd"):
            one.register(name)
