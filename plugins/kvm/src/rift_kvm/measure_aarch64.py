"""The experiments on AArch64. What the guest's CPU has stands in its identification registers, which are read too."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from rift_core.backend import Watchpoint
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Permission
from rift_kvm import guest_aarch64 as g
from rift_kvm.guest_aarch64 import Guest, code
from rift_kvm.measure import Laboratory, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rift_kvm.vm import KvmVm

    Experiment: TypeAlias = "Callable[[ArmLaboratory], bool]"

_HALT_SECONDS = 1.0
"""The backend needs two hundredths."""

_PAGE = 0x30_0000
"""Guest-physical address of a page that an experiment adds."""

ID_REGISTERS = (
    "midr_el1", "id_aa64pfr0_el1", "id_aa64pfr1_el1", "id_aa64dfr0_el1", "id_aa64isar0_el1", "id_aa64isar1_el1",
    "id_aa64isar2_el1", "id_aa64mmfr0_el1", "id_aa64mmfr1_el1", "id_aa64mmfr2_el1", "ctr_el0",
)  # fmt: skip

_LOAD_DATA = 0xF940_0001  # ldr x1, [x0]
_STORE_DATA = 0xF900_0001  # str x1, [x0]

_ABSENT = 0xF
"""Value of the fields below that are signed, or say so, where the feature is missing."""

_FEATURES: dict[str, tuple[str, int, int]] = {
    "aes": ("id_aa64isar0_el1", 4, 1),
    "sha1": ("id_aa64isar0_el1", 8, 1),
    "sha2": ("id_aa64isar0_el1", 12, 1),
    "crc32": ("id_aa64isar0_el1", 16, 1),
    "atomics": ("id_aa64isar0_el1", 20, 2),
    "dotprod": ("id_aa64isar0_el1", 44, 1),
    "fp": ("id_aa64pfr0_el1", 16, 0),
    "asimd": ("id_aa64pfr0_el1", 20, 0),
    "bti": ("id_aa64pfr1_el1", 0, 1),
    "access_flag": ("id_aa64mmfr1_el1", 0, 1),
    "dirty_state": ("id_aa64mmfr1_el1", 0, 2),
    "pan": ("id_aa64mmfr1_el1", 20, 1),
    "xnx": ("id_aa64mmfr1_el1", 28, 1),
}
"""Feature -> register, lowest bit of its field of four bits, smallest value that means it (Arm ARM, D19.2)."""

_GRANULES: tuple[tuple[int, frozenset[int], tuple[int, ...]], ...] = (
    (28, frozenset({0, 1}), (0x1000, 0x20_0000, 0x4000_0000)),
    (20, frozenset({1, 2}), (0x4000, 0x200_0000)),
    (24, frozenset({0}), (0x1_0000, 0x2000_0000)),
)
"""Field of ID_AA64MMFR0_EL1, values that mean the granule, its page and block sizes (Arm ARM, D19.2.64 and D8.2)."""


class ArmLaboratory(Laboratory):
    """With an EL1 guest in it."""

    def __init__(self, vm: KvmVm) -> None:
        self.guest = Guest()
        super().__init__(vm, self.guest.memory, self.guest.reset)

    def prepare(self, *instructions: int, user: bool = False, **registers: int) -> None:
        """Put code in place and the vCPU in front of it."""
        self.guest.store(g.CODE, code(*instructions, g.STORE_DONE, g.SPIN))
        self.vcpu.write_registers(self.guest.registers(user=user) | registers)

    def attempt(self, *instructions: int, user: bool = False, **registers: int) -> Exit | None:
        """Run code from the start; the exit, or None when KVM refuses or time is over."""
        self.prepare(*instructions, user=user, **registers)
        return self.go_on()

    def runs(self, *instructions: int, user: bool = False) -> bool:
        """Whether the code runs through."""
        exit = self.attempt(*instructions, user=user)
        return exit is not None and exit.kind is ExitKind.MMIO and exit.address == g.DONE

    def stopped(self, exit: Exit | None, reason: int, offset: int) -> bool:
        """Whether it is a DEBUG exit for this reason, so many bytes into the code."""
        return (
            exit is not None
            and exit.kind is ExitKind.DEBUG
            and (exit.info[0], exit.address)
            == (
                reason,
                g.CODE + offset,
            )
        )


def measure(vm: KvmVm) -> Measured | None:
    """All experiments, or None when not even a store in EL1 works.

    ``vm`` is empty, and of no use afterwards.
    """
    laboratory = ArmLaboratory(vm)
    with laboratory.timed():
        if not laboratory.runs():
            return None
        identity = laboratory.vcpu.read_registers(ID_REGISTERS)

        def holds(experiment: Experiment) -> bool:
            return laboratory.holds(lambda: experiment(laboratory))

        capabilities = {name for name, experiment in _CAPABILITIES.items() if holds(experiment)}
    return Measured(_names(identity), frozenset(capabilities), _page_sizes(identity), 0, identity)


def _field(identity: Mapping[str, int], register: str, lowest: int) -> int:
    return identity[register] >> lowest & 0xF


def _names(identity: Mapping[str, int]) -> frozenset[str]:
    fields = {
        name: (_field(identity, register, lowest), least) for name, (register, lowest, least) in _FEATURES.items()
    }
    return frozenset(name for name, (value, least) in fields.items() if least <= value < _ABSENT)


def _page_sizes(identity: Mapping[str, int]) -> tuple[int, ...]:
    found = [sizes for lowest, values, sizes in _GRANULES if _field(identity, "id_aa64mmfr0_el1", lowest) in values]
    return tuple(sorted(size for sizes in found for size in sizes))


def _vectors(laboratory: ArmLaboratory) -> bool:
    # movi v0.4s, 1; add v0.4s, v0.4s, v0.4s; str q0, [x0]
    return laboratory.runs(0x4F00_0420, 0x4EA0_8400, 0x3D80_0000) and (
        laboratory.guest.memory[g.DATA : g.DATA + 16] == b"\2\0\0\0" * 4
    )


def _inject(laboratory: ArmLaboratory) -> bool:
    """An undefined instruction's exception arrives at the vector for EL1 with its own stack pointer."""
    laboratory.prepare(g.NOP)
    laboratory.vcpu.inject_exception(0)
    exit = laboratory.go_on()
    return exit is not None and exit.kind is ExitKind.MMIO and exit.address == g.FAULTS + 8 * 4


def _read_only(laboratory: ArmLaboratory) -> bool:
    with laboratory.page(_PAGE, Permission.READ) as page:
        exit = laboratory.attempt(_STORE_DATA, x0=_PAGE, x1=0x1234)
        return (
            exit is not None
            and exit.kind is ExitKind.MMIO
            and exit.is_write
            and (exit.address, exit.size, exit.value) == (_PAGE, 8, 0x1234)
            and page[:8] == bytes(8)
        )


def _memory_fault(laboratory: ArmLaboratory) -> bool:
    """Memory that the host has taken away gives an exit of its own, not MMIO."""
    with laboratory.unbacked_page(_PAGE):
        exit = laboratory.attempt(_LOAD_DATA, x0=_PAGE)
        return exit is not None and exit.kind is ExitKind.MEMORY_FAULT


def _hypercall(laboratory: ArmLaboratory) -> bool:
    exit = laboratory.attempt(g.HVC, x0=0x77)
    return exit is not None and exit.kind is ExitKind.HYPERCALL and exit.address == 0x77


def _halt(laboratory: ArmLaboratory) -> bool:
    """WFI that nothing can end is an exit: KVM does not make it one, the binding finds out that the guest sleeps."""
    laboratory.prepare(g.WFI)
    timer = threading.Timer(_HALT_SECONDS, laboratory.vcpu.kick)
    timer.start()
    try:
        exit = laboratory.vcpu.run()
    finally:
        timer.cancel()
        timer.join()
    laboratory.renew()  # with its kick, if there was one
    return exit.kind is ExitKind.HALT and exit.address == g.CODE + 4


def _step(user: bool) -> Experiment:
    def experiment(laboratory: ArmLaboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(g.NOP, g.NOP, user=user)
        laboratory.vcpu.set_debug(single_step=True)
        return laboratory.stopped(laboratory.go_on(), 1, 4)

    return experiment


def _hardware_breakpoint(user: bool) -> Experiment:
    def experiment(laboratory: ArmLaboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(g.NOP, g.NOP, g.NOP, user=user)
        laboratory.vcpu.set_debug(breakpoints=(g.CODE + 8,))
        return laboratory.stopped(laboratory.go_on(), 3, 8)

    return experiment


def _software_breakpoint(user: bool) -> Experiment:
    def experiment(laboratory: ArmLaboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(g.NOP, g.BRK, user=user)
        laboratory.vcpu.set_debug(software=True)
        return laboratory.stopped(laboratory.go_on(), 2, 4)

    return experiment


def _watchpoint(user: bool) -> Experiment:
    def experiment(laboratory: ArmLaboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(g.NOP, _STORE_DATA, user=user)
        laboratory.vcpu.set_debug(watchpoints=(Watchpoint(g.DATA, 8, "write"),))
        exit = laboratory.go_on()
        return exit is not None and laboratory.stopped(exit, 4, 4) and exit.info[1] == g.DATA

    return experiment


_CAPABILITIES: dict[str, Experiment] = {
    "vector_supervisor": _vectors,
    "inject_exception": _inject,
    "readonly_memory": _read_only,
    "memory_fault_exit": _memory_fault,
    "hypercall_exit": _hypercall,
    "halt_exit": _halt,
    "debug_single_step": _step(False),
    "debug_single_step_user": _step(True),
    "debug_hw_breakpoint": _hardware_breakpoint(False),
    "debug_hw_breakpoint_user": _hardware_breakpoint(True),
    "debug_sw_breakpoint": _software_breakpoint(False),
    "debug_sw_breakpoint_user": _software_breakpoint(True),
    "debug_watchpoint": _watchpoint(False),
    "debug_watchpoint_user": _watchpoint(True),
}
