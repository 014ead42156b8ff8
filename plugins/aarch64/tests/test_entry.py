"""Entry state: system registers, stack pointers, vectors; fields are decoded here a second time."""

from __future__ import annotations

from typing import Any

import pytest

import rift_aarch64
from rift_aarch64 import Aarch64Config
from rift_aarch64.registers import REGISTERS
from rift_core.errors import BinaryError
from rift_core.isa import Vectors
from rift_core.memory import Gva


def field(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def test_a_supervisor_thread_starts_in_el1h(guest: Any) -> None:
    registers = guest.start()
    assert field(registers["pstate"], 4, 0) == 0b00101
    assert field(registers["pstate"], 7, 6) == 0b11, "IRQ and FIQ masked"
    assert not registers["pstate"] >> 8 & 1, "SError is an error to report"
    assert registers["pc"] == 0x40_1000
    assert registers["sp"] == guest.areas["stack"].end
    assert registers["x30"] == guest.system.return_address
    assert registers["tpidrro_el0"] == 1
    assert (registers["ttbr0_el1"], registers["ttbr1_el1"]) == (0x8000_0000, 0x8000_1000)
    assert registers["vbar_el1"] == guest.system_areas["code"].virtual
    assert registers["x29"] == 0, "the end of back traces"


def test_a_user_thread_starts_in_el0_with_a_stack_for_el1(guest: Any) -> None:
    registers = guest.start("user")
    assert field(registers["pstate"], 4, 0) == 0
    assert registers["sp"] == guest.areas["stack"].end
    assert registers["sp_el1"] == guest.areas["kernel-stack"].end
    assert registers["x30"] == guest.system_areas["user-code"].virtual
    assert registers["tpidrro_el0"] == 0
    requests = {request.name: request for request in guest.isa.system_areas()}
    assert str(requests["code"].permissions) == "r-x-"
    assert str(requests["user-code"].permissions) == "r-xu"
    assert [str(request.permissions) for request in guest.isa.thread_areas("user")] == ["rw--"]
    assert guest.isa.thread_areas("supervisor") == ()


def test_mmu_caches_and_alignment(guest: Any) -> None:
    sctlr = guest.start()["sctlr_el1"]
    assert [bit for bit in (0, 2, 12) if sctlr >> bit & 1] == [0, 2, 12], "M, C, I"
    assert sctlr & 0x30D0_0800 == 0x30D0_0800, "RES1 of Armv8.0"
    assert not sctlr >> 1 & 1, "A: unaligned accesses are allowed"
    assert sctlr >> 3 & 3 == 3, "SA, SA0"
    assert not sctlr >> 19 & 1, "WXN"
    assert not sctlr >> 9 & 1, "UMA: EL0 may not touch interrupt masks"
    assert not sctlr >> 16 & 1, "nTWI: EL0 may not WFI"
    assert sctlr >> 18 & 1, "nTWE"
    assert not sctlr >> 24 & 3, "little-endian"
    assert sctlr >> 23 & 1, "SPAN: exceptions leave PAN alone"


def test_floating_point_does_not_trap(guest: Any) -> None:
    assert field(guest.start()["cpacr_el1"], 21, 20) == 0b11


@pytest.mark.parametrize(("granule", "tg0", "tg1"), [(0x1000, 0b00, 0b10), (0x4000, 0b10, 0b01)])
@pytest.mark.parametrize("tracking", [0, 1, 2])
def test_translation_control(
    make_guest: Any, make_features: Any, granule: int, tg0: int, tg1: int, tracking: int
) -> None:
    guest = make_guest(None, make_features(granule, tracking))
    registers = guest.start()
    tcr = registers["tcr_el1"]
    assert field(tcr, 5, 0) == field(tcr, 21, 16) == 16, "48 bits in either half"
    assert (field(tcr, 15, 14), field(tcr, 31, 30)) == (tg0, tg1)
    for low in (8, 24):
        assert field(tcr, low + 1, low) == field(tcr, low + 3, low + 2) == 0b01, "walks are write-back"
        assert field(tcr, low + 5, low + 4) == 0b11, "and inner shareable"
    assert not tcr >> 7 & 1
    assert not tcr >> 23 & 1
    assert (tcr >> 39 & 1, tcr >> 40 & 1) == (tracking >= 1, tracking >= 2)
    assert registers["ttbr1_el1"] - registers["ttbr0_el1"] == granule
    assert guest.isa.page_sizes[0] == granule


@pytest.mark.parametrize(("parange", "ips"), [(0, 0), (1, 1), (2, 2), (4, 4), (5, 5), (6, 5)])
def test_physical_size_comes_from_the_cpu(make_guest: Any, make_features: Any, parange: int, ips: int) -> None:
    registers = make_guest(None, make_features(physical=parange)).start()
    assert field(registers["tcr_el1"], 34, 32) == ips


def table(address: int, size: int = 0x1000, symbol: str = "interrupt_table") -> Vectors:
    return Vectors(symbol, Gva(address), memoryview(bytes(size)))


@pytest.mark.parametrize("symbol", ["rift_vectors", "interrupt_table", "my_own"])
def test_a_payloads_vectors_are_used_as_they_are(guest: Any, symbol: str) -> None:
    assert guest.start("supervisor", table(0x40_0800, 0x800, symbol))["vbar_el1"] == 0x40_0800


def test_what_cannot_be_a_vector_table_is_refused(guest: Any) -> None:
    with pytest.raises(BinaryError, match=r"interrupt_table at 0x400400.*multiple of 0x800"):
        guest.start("supervisor", table(0x40_0400))
    with pytest.raises(BinaryError, match=r"ends after 2047 bytes"):
        guest.start("supervisor", table(0x40_0800, 0x7FF))
    assert guest.isa.default_vectors == ("rift_vectors", "interrupt_table")


def test_register_widths() -> None:
    widths = {register.name: register.bits for register in REGISTERS}
    assert (widths["x30"], widths["sp"], widths["pc"], widths["pstate"]) == (64, 64, 64, 32)
    assert (widths["v31"], widths["fpsr"], widths["ttbr1_el1"]) == (128, 32, 64)


def test_settings() -> None:
    with pytest.raises(ValueError, match="granule"):
        Aarch64Config(granule="64KiB")  # type: ignore[arg-type]
    info = rift_aarch64.rift_plugin()
    assert (info.kind, info.name, info.config) == ("isa", "aarch64", Aarch64Config)
