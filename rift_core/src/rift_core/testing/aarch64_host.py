"""What AArch64 guests ask of the host: calls, system registers, devices. Encodings: Arm ARM, C6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.exits import ExitKind
from rift_core.testing.aarch64_machine import CODE, DATA, DEVICE, DEVICE_GPA, WFI, Machine
from rift_core.testing.requirements import requires

if TYPE_CHECKING:
    from rift_core.exits import Exit

HVC, SMC = 0xD400_0002, 0xD400_0003
UNKNOWN = 3 << 14 | 7 << 11 | 11 << 7 | 15 << 3 | 7  # S3_7_C11_C15_7
READ_UNKNOWN, WRITE_UNKNOWN = 0xD53F_BFE0, 0xD51F_BFE0  # with X0
PSCI_VERSION, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_FEATURES = 0x8400_0000, 0x8400_0008, 0x8400_0009, 0x8400_000A
NOT_SUPPORTED = (1 << 32) - 1


def mmio(exit: Exit) -> tuple[int, int, int, bool]:
    """Offset, size, value and direction."""
    assert exit.kind is ExitKind.MMIO, exit
    return exit.address - DEVICE_GPA, exit.size, exit.value, exit.is_write


class CallTests:
    """HVC, SMC and MSR."""

    @requires("hypercall_exit")
    @pytest.mark.parametrize("instruction", [HVC, SMC], ids=["hvc", "smc"])
    def test_call(self, machine: Machine, instruction: int) -> None:
        arguments = {f"x{number}": 10 + number for number in range(1, 7)}
        machine.start(instruction, WFI, user=False, x0=0xC600_0001, **arguments)
        exit = machine.go()
        assert (exit.kind, exit.address, exit.info) == (ExitKind.HYPERCALL, 0xC600_0001, (11, 12, 13, 14, 15, 16))
        assert (machine.go(0x1234).kind, machine.register("x0")) == (ExitKind.HALT, 0x1234)

    @requires("hypercall_exit", "inject_exception")
    @pytest.mark.parametrize("instruction", [HVC, SMC], ids=["hvc", "smc"])
    def test_exception_in_place_of_an_answer_to_a_call(self, machine: Machine, instruction: int) -> None:
        machine.start(instruction, WFI, user=False, x0=0xC600_0001)
        assert machine.go().kind is ExitKind.HYPERCALL
        machine.vcpu.inject_exception(0)
        frame = machine.frame(machine.go())
        assert (frame.cls, frame.elr, machine.register("x0")) == (0, CODE, 0xC600_0001)

    def test_firmware_version(self, machine: Machine) -> None:
        machine.finish(HVC, x0=PSCI_VERSION)
        assert machine.register("x0") >> 16 == 1
        machine.finish(HVC, x0=PSCI_FEATURES, x1=PSCI_SYSTEM_OFF)
        assert machine.register("x0") == 0
        machine.finish(HVC, x0=PSCI_FEATURES, x1=0x8400_001F)
        assert machine.register("x0") & NOT_SUPPORTED == NOT_SUPPORTED

    @pytest.mark.parametrize(
        ("function", "kind"), [(PSCI_SYSTEM_OFF, ExitKind.POWER_OFF), (PSCI_SYSTEM_RESET, ExitKind.RESET)]
    )
    @pytest.mark.parametrize("above", [0, 0x1234_5678], ids=["clean", "with garbage above"])
    def test_end_of_the_machine(self, machine: Machine, function: int, kind: ExitKind, above: int) -> None:
        machine.start(HVC, WFI, x0=above << 32 | function)
        assert machine.go().kind is kind

    @requires("user_msr_exit")
    def test_unknown_system_register(self, machine: Machine) -> None:
        machine.start(READ_UNKNOWN, WRITE_UNKNOWN, WFI, x0=7)
        exit = machine.go()
        assert (exit.kind, exit.address, exit.size, exit.is_write) == (ExitKind.SYSTEM_REGISTER, UNKNOWN, 8, False)
        exit = machine.go(0x99)
        assert (exit.kind, exit.address, exit.value, exit.is_write) == (ExitKind.SYSTEM_REGISTER, UNKNOWN, 0x99, True)
        assert machine.go().kind is ExitKind.HALT

    @requires("user_msr_exit")
    def test_exception_in_place_of_a_system_register(self, machine: Machine) -> None:
        machine.start(READ_UNKNOWN, WFI)
        assert machine.go().kind is ExitKind.SYSTEM_REGISTER
        machine.vcpu.inject_exception(0)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.cls, frame.elr) == (0x200, 0, CODE)


class DeviceTests:
    """Loads and stores where no memory is."""

    @pytest.mark.parametrize(
        ("instruction", "size", "reply", "result"),
        [
            pytest.param(0x3940_0020, 1, 0x81, 0x81, id="ldrb"),
            pytest.param(0x7940_0020, 2, 0x8181, 0x8181, id="ldrh"),
            pytest.param(0xB940_0020, 4, 0x8181_8181, 0x8181_8181, id="ldr-w"),
            pytest.param(0xF940_0020, 8, 1 << 63 | 5, 1 << 63 | 5, id="ldr-x"),
            pytest.param(0x3980_0020, 1, 0x81, (1 << 64) - 0x7F, id="ldrsb-x"),
            pytest.param(0x79C0_0020, 2, 0x8001, 0xFFFF_8001, id="ldrsh-w"),
        ],
    )
    def test_load(self, machine: Machine, instruction: int, size: int, reply: int, result: int) -> None:
        machine.start(instruction, WFI, x0=(1 << 64) - 1, x1=DEVICE + 8)
        assert mmio(machine.go()) == (8, size, 0, False)
        assert (machine.go(reply).kind, machine.register("x0")) == (ExitKind.HALT, result)

    @pytest.mark.parametrize(
        ("instruction", "size"), [(0x3900_0020, 1), (0x7900_0020, 2), (0xB900_0020, 4), (0xF900_0020, 8)]
    )
    def test_store(self, machine: Machine, instruction: int, size: int) -> None:
        value = 0x8877_6655_4433_2211
        machine.start(instruction, WFI, x0=value, x1=DEVICE + 0x10)
        assert mmio(machine.go()) == (0x10, size, value & (1 << 8 * size) - 1, True)
        assert machine.go().kind is ExitKind.HALT

    def test_load_that_moves_its_base(self, machine: Machine) -> None:
        machine.start(0xF840_8420, WFI, x1=DEVICE)  # ldr x0, [x1], #8
        assert mmio(machine.go()) == (0, 8, 0, False)
        assert machine.go(6).kind is ExitKind.HALT
        assert machine.vcpu.read_registers(["x0", "x1"]) == {"x0": 6, "x1": DEVICE + 8}

    def test_load_of_a_pair(self, machine: Machine) -> None:
        machine.start(0xA940_0820, WFI, x1=DEVICE)  # ldp x0, x2, [x1]
        assert mmio(machine.go()) == (0, 8, 0, False)
        assert mmio(machine.go(3)) == (8, 8, 0, False)
        assert machine.go(4).kind is ExitKind.HALT
        assert machine.vcpu.read_registers(["x0", "x2"]) == {"x0": 3, "x2": 4}

    def test_store_of_a_pair(self, machine: Machine) -> None:
        machine.start(0xA900_0820, WFI, x0=1, x1=DEVICE, x2=2)  # stp x0, x2, [x1]
        assert [mmio(machine.go()), mmio(machine.go())] == [(0, 8, 1, True), (8, 8, 2, True)]
        assert machine.go().kind is ExitKind.HALT

    def test_vector_register(self, machine: Machine) -> None:
        machine.start(0x3DC0_0020, WFI, x1=DEVICE)  # ldr q0, [x1]
        assert mmio(machine.go()) == (0, 8, 0, False)
        assert mmio(machine.go(0x11)) == (8, 8, 0, False)
        assert (machine.go(0x22).kind, machine.register("v0")) == (ExitKind.HALT, 0x22 << 64 | 0x11)

    @requires("inject_exception")
    def test_exception_in_place_of_an_answer(self, machine: Machine) -> None:
        machine.start(0xF940_0020, WFI, x0=5, x1=DEVICE)
        machine.go()
        machine.vcpu.inject_exception(0x25, 0x10)
        frame = machine.frame(machine.go())
        assert (frame.cls, frame.iss, frame.elr, machine.register("x0")) == (0x25, 0x10, CODE, 5)

    @requires("debug_single_step")
    def test_step_over_a_device(self, machine: Machine) -> None:
        machine.start(0xF940_0020, WFI, x1=DEVICE)
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().kind is ExitKind.MMIO
        exit = machine.go(8)
        assert (exit.kind, exit.address, machine.register("x0")) == (ExitKind.DEBUG, CODE + 4, 8)

    def test_copy_from_a_device_to_memory(self, machine: Machine) -> None:
        machine.start(0xF940_0020, 0xF900_0040, WFI, x1=DEVICE, x2=DATA)  # ldr x0, [x1]; str x0, [x2]
        machine.go()
        assert (machine.go(77).kind, machine.get(DATA)) == (ExitKind.HALT, 77)
