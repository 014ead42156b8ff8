"""AArch64 machine code over the stand-in: what an exit looks like is the engine's word here, not a script's."""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

import life
import pytest

from rift_core.exits import ExitKind
from rift_core.memory import Gpa
from rift_hvf import HvfConfig
from rift_hvf.framework import open_framework
from rift_hvf.probe import probe
from rift_hvf.vm import HvfVm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StandIn

DEVICE = 0x50_0000
DATA = 0x1_8000
HVC, SMC, WFI, WFE = 0xD400_0002, 0xD400_0003, 0xD503_207F, 0xD503_205F


def code(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


@pytest.fixture
def guest(aarch64: StandIn) -> Iterator[life.Life]:
    with life.Life(aarch64.path, "aarch64") as made:
        yield made


@pytest.mark.parametrize(
    ("instruction", "size", "expected"),
    [
        (0x3940_0001, 1, 0x88),  # ldrb w1, [x0]
        (0x39C0_0001, 1, 0xFFFF_FF88),  # ldrsb w1
        (0x3980_0001, 1, 0xFFFF_FFFF_FFFF_FF88),  # ldrsb x1
        (0x7940_0001, 2, 0x8788),  # ldrh w1
        (0x79C0_0001, 2, 0xFFFF_8788),  # ldrsh w1
        (0x7980_0001, 2, 0xFFFF_FFFF_FFFF_8788),  # ldrsh x1
        (0xB940_0001, 4, 0x8586_8788),  # ldr w1
        (0xB980_0001, 4, 0xFFFF_FFFF_8586_8788),  # ldrsw x1
        (0xF940_0001, 8, 0x8182_8384_8586_8788),  # ldr x1
        (0xC8DF_FC01, 8, 0x8182_8384_8586_8788),  # ldar x1
        (0xF840_0001, 8, 0x8182_8384_8586_8788),  # ldur x1
        (0xF862_6801, 8, 0x8182_8384_8586_8788),  # ldr x1, [x0, x2]
    ],
)
def test_loads_of_a_device(guest: life.Life, instruction: int, size: int, expected: int) -> None:
    guest.put(code(instruction), x0=DEVICE, x1=0x5555_5555_5555_5555, x2=0)
    exit = guest.run()
    assert (exit.kind, exit.address, exit.size, exit.is_write) == (ExitKind.MMIO, DEVICE, size, False)
    exit = guest.run(0x8182_8384_8586_8788)
    assert exit.address == life.DEVICE, "the guest's end"
    assert guest.register("x1") == expected


@pytest.mark.parametrize(
    ("instruction", "size", "value"),
    [
        (0x3900_0001, 1, 0x88),  # strb w1, [x0]
        (0x7900_0001, 2, 0x7788),  # strh w1
        (0xB900_0001, 4, 0x5566_7788),  # str w1
        (0xF900_0001, 8, 0x1122_3344_5566_7788),  # str x1
        (0xF900_001F, 8, 0),  # str xzr
        (0xC89F_FC01, 8, 0x1122_3344_5566_7788),  # stlr x1
    ],
)
def test_stores_to_a_device(guest: life.Life, instruction: int, size: int, value: int) -> None:
    guest.put(code(instruction), x0=DEVICE, x1=0x1122_3344_5566_7788)
    exit = guest.run()
    assert (exit.kind, exit.address, exit.size, exit.value) == (ExitKind.MMIO, DEVICE, size, value)
    assert guest.run().address == life.DEVICE


@pytest.mark.parametrize("instruction", [0xA940_0801, 0xF840_8401, 0x3DC0_0000, 0xF822_0001], ids=str)
def test_what_the_cpu_does_not_describe(guest: life.Life, instruction: int) -> None:
    """ldp x1, x2, [x0]; ldr x1, [x0], 8; ldr q0, [x0]; ldadd x2, x1, [x0]."""
    guest.put(code(instruction), x0=DEVICE)
    exit = guest.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, DEVICE)
    assert guest.register("pc") == guest.guest.code
    assert guest.register("x0") == DEVICE


def test_vectors_go_by_value(guest: life.Life) -> None:
    """Registers of 128 bits reach the framework in a vector register of the call; each byte of each is another one."""
    values = {f"v{number}": int.from_bytes(bytes(16 * number + at & 0xFF for at in range(16)), "little")
              for number in range(32)}  # fmt: skip
    stores = [0x3D80_0000 | number << 10 | number for number in range(32)]  # str q<n>, [x0, 16 * n]
    guest.put(code(*stores, 0x4EE2_8420), x0=DATA)  # add v0.2d, v1.2d, v2.2d
    guest.vcpu.write_registers(values)
    assert guest.vcpu.read_registers(tuple(values)) == values
    assert guest.run().address == life.DEVICE
    stored = bytes(guest.memory[DATA : DATA + 512])
    assert stored == b"".join(value.to_bytes(16, "little") for value in values.values())
    lanes = [(values["v1"] >> at & (1 << 64) - 1) + (values["v2"] >> at & (1 << 64) - 1) for at in (0, 64)]
    assert guest.register("v0") == lanes[0] & (1 << 64) - 1 | (lanes[1] & (1 << 64) - 1) << 64


def test_calls_to_the_firmware(guest: life.Life) -> None:
    for instruction in (HVC, SMC):
        guest.put(code(instruction), x0=0x8400_0000)
        assert guest.run().address == life.DEVICE, "answered, not an exit"
        assert guest.register("x0") == 0x1_0001
        guest.put(code(instruction), x0=0x77, x1=5)
        exit = guest.run()
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.HYPERCALL, 0x77, 5)
        assert guest.run(0x1234).address == life.DEVICE
        assert guest.register("x0") == 0x1234
        guest.put(code(instruction), x0=0x8400_0008)
        assert guest.run().kind is ExitKind.POWER_OFF


TIMER = (
    0xD53B_E042,  # mrs x2, cntvct_el0
    0x8B00_0042,  # add x2, x2, x0
    0xD51B_E342,  # msr cntv_cval_el0, x2
    0xD51B_E321,  # msr cntv_ctl_el0, x1
    WFI,
    0xD53B_E323,  # mrs x3, cntv_ctl_el0
    0xD53B_E044,  # mrs x4, cntvct_el0
)


def test_wfi_waits_for_the_guests_timer(guest: life.Life) -> None:
    ticks = 62_500_000 // 20
    begun = time.monotonic()
    guest.put(code(*TIMER), x0=ticks, x1=1)
    assert guest.run().address == life.DEVICE
    assert time.monotonic() - begun >= 0.05
    assert guest.register("x3") & 5 == 5, "enabled, and its condition is met"
    assert guest.register("x4") >= guest.register("x2")


def test_wfi_without_a_timer_is_an_exit(guest: life.Life) -> None:
    for control in (0, 3):
        guest.put(code(*TIMER), x0=62_500, x1=control)
        exit = guest.run()
        assert (exit.kind, exit.address) == (ExitKind.HALT, guest.guest.code + 16)
        assert guest.run().address == life.DEVICE


def test_a_kick_ends_the_wait(guest: life.Life) -> None:
    guest.put(code(*TIMER), x0=62_500_000 * 600, x1=1)
    timer = threading.Timer(0.05, guest.vcpu.kick)
    timer.start()
    begun = time.monotonic()
    assert guest.vcpu.run().kind is ExitKind.INTERRUPTED
    assert time.monotonic() - begun < 60
    timer.join()


def test_a_timer_that_fires_disturbs_nobody(guest: life.Life) -> None:
    """The timer is due at once, and its interrupt is masked: one exit, and the sum comes out."""
    loop = life.SUM["aarch64"]
    guest.put(code(*TIMER[:4]) + loop, x0=0, x1=1)
    exit = guest.run()
    assert (exit.address, exit.value) == (life.DEVICE, life.TOTAL)


def test_wfe_goes_on(guest: life.Life) -> None:
    guest.put(code(WFE))
    assert guest.run().address == life.DEVICE


def test_a_step_over_a_device(guest: life.Life) -> None:
    guest.put(code(0xD503_201F, 0xF940_0001, 0xD503_201F), x0=DEVICE)
    guest.vcpu.set_debug(single_step=True)
    seen = []
    for _ in range(4):
        exit = guest.run(0x42)  # registers are not looked at: that would answer the load
        seen.append((exit.kind, exit.address))
    place = guest.guest.code
    assert seen == [(ExitKind.DEBUG, place + 4), (ExitKind.MMIO, DEVICE), (ExitKind.DEBUG, place + 8),
                    (ExitKind.DEBUG, place + 12)]  # fmt: skip
    assert guest.register("x1") == 0x42


def test_a_flush_reaches_the_guest(guest: life.Life) -> None:
    """A page table entry that the host changes: the old translation is used until the flush, or not at all."""
    tables, page = 0x8000, 0x1_C000
    descriptor = 0x703  # a page; inner shareable, accessed
    block = 0x701
    first, second, third = (tables + 0x1000 * at for at in range(3))  # levels 1, 2, 3 of a 4 KiB granule, 39 bits
    for at, value in (
        (first, second | 3),
        (second, 0 | block),
        (second + 8, third | 3),
        (second + 16, 0x40_0000 | block),
    ):
        guest.memory[at : at + 8] = value.to_bytes(8, "little")
    guest.memory[third : third + 8] = (page | descriptor).to_bytes(8, "little")
    guest.memory[page : page + 8] = (11).to_bytes(8, "little")
    guest.memory[page + 0x1000 : page + 0x1008] = (22).to_bytes(8, "little")
    control = {"ttbr0_el1": first, "tcr_el1": 25 | 1 << 23 | 3 << 12 | 5 << 8 | 5 << 10, "mair_el1": 0xFF,
               "sctlr_el1": 0x30D0_0985 | 1}  # fmt: skip
    load = code(0xF940_0001, 0xF900_0341, 0x17FF_FFFE)  # again: ldr x1, [x0]; str x1, [x26]; b again
    guest.put(load, x0=0x20_0000, **control)
    exit = guest.run()
    assert (exit.kind, exit.value) == (ExitKind.MMIO, 11)
    guest.memory[third : third + 8] = (page + 0x1000 | descriptor).to_bytes(8, "little")
    guest.vm.flush_translations()
    exit = guest.run()
    assert (exit.kind, exit.value) == (ExitKind.MMIO, 22)


def test_more_address_bits_can_be_asked_for(aarch64: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rift_hvf.probe._results", {})
    usual = probe(HvfConfig(measure=False))
    assert usual.limits.gpa_bits == 36
    wide = HvfConfig(measure=False, address_bits=40)
    result = probe(wide)
    assert (result.available, result.limits.gpa_bits) == (True, 40)
    assert aarch64.calls("hv_vm_config_set_ipa_size") == 1
    vm = HvfVm(wide, open_framework(wide.path), page_size=0x4000, gpa_bits=40, capabilities=life.CAPABILITIES,
               exit_kinds=frozenset(ExitKind))  # fmt: skip
    try:
        memory = life.new_memory(0x4000)
        vm.map_memory(life.region(1 << 39, memory))
        vm.unmap_memory(Gpa(1 << 39))
    finally:
        vm.close()
