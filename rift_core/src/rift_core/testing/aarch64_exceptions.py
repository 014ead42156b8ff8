"""Behaviour of AArch64 exceptions, interrupts and debugging: Arm ARM, chapters D1 and D2; encodings: C6."""

from __future__ import annotations

import threading

import pytest

from rift_core.backend import Watchpoint
from rift_core.errors import StateError
from rift_core.exits import ExitKind
from rift_core.memory import Gpa
from rift_core.testing.aarch64_machine import (
    ADD,
    BRANCH,
    BRANCH_OVER,
    BRK,
    CODE,
    CPACR,
    DATA,
    EL0T,
    EL1H,
    EL1T,
    ERET,
    LOAD,
    MASKED,
    NOP,
    PLAYGROUND,
    PSTATE_A,
    PSTATE_F,
    PSTATE_I,
    SCTLR,
    STACK,
    STACK0,
    STORE,
    SVC,
    UNDEFINED,
    USER_CODE,
    USER_DATA,
    USER_STACK,
    VECTORS,
    WFI,
    WRITE,
    Machine,
    code,
)
from rift_core.testing.requirements import requires

LOAD_EXCLUSIVE = 0xC85F_7C20  # ldxr x0, [x1]
FADD, LOAD_VECTOR, READ_FPCR = 0x1E61_2800, 0x3DC0_0020, 0xD53B_4400  # fadd d0, d0, d1; ldr q0, [x1]; mrs x0, fpcr
WRITE_CPACR = 0xD518_1040  # msr cpacr_el1, x0
WRITE_SCTLR, SCTLR_A = 0xD518_1002, 1 << 1  # msr sctlr_el1, x2
READ_LEVEL, READ_STACK = 0xD538_4240, 0x9100_03E2  # mrs x0, currentel; mov x2, sp
SELECT_SP0, SELECT_SP1 = 0xD500_40BF, 0xD500_41BF  # msr spsel, #0 and #1
FLAGS = 0xF << 28


class ExceptionTests:
    """Delivery."""

    @pytest.mark.parametrize(
        ("instruction", "cls", "iss", "behind"),
        [
            pytest.param(SVC, 0x15, 0x1234, 4, id="svc"),
            pytest.param(BRK, 0x3C, 5, 0, id="brk"),
            pytest.param(UNDEFINED, 0, 0, 0, id="undefined"),
        ],
    )
    @pytest.mark.parametrize("user", [False, True], ids=["el1", "el0"])
    def test_exception(self, machine: Machine, user: bool, instruction: int, cls: int, iss: int, behind: int) -> None:
        pstate = (EL0T if user else EL1H) | 5 << 28
        frame = machine.fault(instruction, user=user, pstate=pstate)
        place = USER_CODE if user else CODE
        assert (frame.offset, frame.cls, frame.iss) == (0x400 if user else 0x200, cls, iss)
        assert (frame.elr, frame.spsr) == (place + behind, pstate)
        assert machine.register("pstate") & ~FLAGS == EL1H | MASKED
        assert machine.register("sp") == STACK

    def test_from_el1_with_the_stack_of_el0(self, machine: Machine) -> None:
        frame = machine.fault(SELECT_SP0, READ_STACK, SVC)
        assert (frame.offset, frame.spsr & 0xF, machine.register("x2")) == (0, EL1T, STACK0)
        assert machine.vcpu.read_registers(["sp", "sp_el0", "sp_el1"]) == {
            "sp": STACK,
            "sp_el0": STACK0,
            "sp_el1": STACK,
        }

    def test_return_to_user_mode(self, machine: Machine) -> None:
        machine.put(USER_CODE, code(READ_STACK, SVC))
        machine.fault(ERET, elr_el1=USER_CODE, spsr_el1=EL0T | 9 << 28, sp_el0=USER_STACK)
        assert machine.register("x2") == USER_STACK
        assert machine.vcpu.read_registers(["elr_el1", "spsr_el1"]) == {"elr_el1": USER_CODE + 8, "spsr_el1": 9 << 28}

    def test_return_restores_flags_and_masks(self, machine: Machine) -> None:
        machine.start(SVC, WFI, pstate=EL1H | 6 << 28 | PSTATE_A)
        machine.frame(machine.go())
        assert machine.go().kind is ExitKind.HALT
        assert machine.vcpu.read_registers(["pc", "pstate"]) == {"pc": CODE + 8, "pstate": EL1H | 6 << 28 | PSTATE_A}

    def test_program_counter_that_is_not_aligned(self, machine: Machine) -> None:
        frame = machine.fault(BRANCH, x1=CODE + 0x102)
        assert (frame.cls, frame.far, frame.elr) == (0x22, CODE + 0x102, CODE + 0x102)

    def test_level_is_seen(self, machine: Machine) -> None:
        machine.finish(READ_LEVEL)
        assert machine.register("x0") == 1 << 2

    def test_user_mode_and_registers_of_the_supervisor(self, machine: Machine) -> None:
        frame = machine.fault(0xD538_2000, user=True)  # mrs x0, ttbr0_el1
        assert (frame.offset, frame.cls, frame.elr) == (0x400, 0, USER_CODE)

    def test_registers_of_higher_levels(self, machine: Machine) -> None:
        frame = machine.fault(0xD53E_1100)  # mrs x0, scr_el3
        assert (frame.cls, frame.elr) == (0, CODE)

    def test_identity_cannot_be_written(self, machine: Machine) -> None:
        assert machine.fault(0xD518_0000).cls == 0  # msr midr_el1, x0

    @pytest.mark.parametrize("instruction", [FADD, LOAD_VECTOR, READ_FPCR])
    @pytest.mark.parametrize(("enabled", "user"), [(0, False), (2, False), (0, True), (1, True), (2, True)])
    def test_floating_point_traps(self, machine: Machine, enabled: int, user: bool, instruction: int) -> None:
        frame = machine.fault(NOP, instruction, x1=USER_DATA, cpacr_el1=enabled << 20, user=user)
        assert (frame.cls, frame.iss & 0x1F0_0000) == (0x07, 0x1E0_0000)
        assert frame.elr == (USER_CODE if user else CODE) + 4

    def test_floating_point_that_traps_in_user_mode_only(self, machine: Machine) -> None:
        machine.finish(FADD, cpacr_el1=1 << 20)

    def test_guest_switches_floating_point_on_and_off(self, machine: Machine) -> None:
        machine.finish(WRITE_CPACR, FADD, x0=CPACR, cpacr_el1=0)
        assert machine.fault(FADD, WRITE_CPACR, FADD, x0=0).elr == CODE + 8

    @pytest.mark.parametrize(
        ("instruction", "offset", "fault", "write"),
        [
            (LOAD, 4, 4, 0),
            (STORE, 4, 4, WRITE),
            (0x7940_0020, 1, 1, 0),  # ldrh w0, [x1]
            (0xF940_0420, 1, 9, 0),  # ldr x0, [x1, #8]
            (0xF85F_D020, 8, 5, 0),  # ldur x0, [x1, #-3]
            (0xF840_1420, 2, 2, 0),  # ldr x0, [x1], #1
            (0xF81F_DC20, 8, 5, WRITE),  # str x0, [x1, #-3]!
            (0xF862_7820, 1, 9, 0),  # ldr x0, [x1, x2, lsl #3]
            (0xA940_8C20, 4, 12, 0),  # ldp x0, x3, [x1, #8]
            (0xA900_8C20, 4, 12, WRITE),  # stp x0, x3, [x1, #8]
            (0xFD40_0020, 4, 4, 0),  # ldr d0, [x1]
            (LOAD_VECTOR, 8, 8, 0),
        ],
    )
    @pytest.mark.parametrize("user", [False, True], ids=["el1", "el0"])
    def test_access_that_is_not_aligned(
        self, machine: Machine, user: bool, instruction: int, offset: int, fault: int, write: int
    ) -> None:
        """SCTLR_EL1.A, at both levels."""
        data = USER_DATA if user else DATA
        frame = machine.fault(NOP, instruction, user=user, x1=data + offset, x2=1, sctlr_el1=SCTLR | SCTLR_A)
        assert (frame.cls, frame.iss & 0x7F) == (0x24 if user else 0x25, 0x21 | write)
        assert (frame.far, frame.elr) == (data + fault, (USER_CODE if user else CODE) + 4)
        assert machine.register("x1") == data + offset

    @pytest.mark.parametrize("user", [False, True], ids=["el1", "el0"])
    def test_exclusive_access_that_is_not_aligned(self, machine: Machine, user: bool) -> None:
        """An exception whatever SCTLR_EL1.A says; FEAT_LSE2 asks for 16 bytes without a border (Arm ARM, B2.5.2)."""
        data = USER_DATA if user else DATA
        frame = machine.fault(NOP, LOAD_EXCLUSIVE, user=user, x1=data + 12)
        assert (frame.cls, frame.iss & 0x7F) == (0x24 if user else 0x25, 0x21)
        assert (frame.far, frame.elr) == (data + 12, (USER_CODE if user else CODE) + 4)

    @pytest.mark.parametrize(
        ("instruction", "offset"),
        [(LOAD, 8), (STORE, 0), (0x3940_0020, 1), (0xA940_8C20, 8), (LOAD_VECTOR, 16), (0xF840_1420, 8)],
    )  # the third: ldrb w0, [x1]
    def test_access_that_is_aligned(self, machine: Machine, instruction: int, offset: int) -> None:
        machine.finish(NOP, instruction, x1=DATA + offset, sctlr_el1=SCTLR | SCTLR_A)

    def test_guest_asks_for_alignment_and_gives_it_up(self, machine: Machine) -> None:
        machine.finish(LOAD, x1=DATA + 4)
        frame = machine.fault(LOAD, WRITE_SCTLR, NOP, LOAD, x1=DATA + 4, x0=0, x2=SCTLR | SCTLR_A)
        assert (frame.cls, frame.elr, frame.far) == (0x25, CODE + 12, DATA + 4)
        machine.finish(WRITE_SCTLR, NOP, LOAD, x1=DATA + 4, x2=SCTLR, sctlr_el1=SCTLR | SCTLR_A)

    def test_exception_in_the_vectors(self, machine: Machine) -> None:
        # It never ends: each abort is the next one.
        machine.start(SVC, vbar_el1=PLAYGROUND)
        machine.vcpu.kick()
        assert machine.vcpu.run().kind is ExitKind.INTERRUPTED
        timer = threading.Timer(0.2, machine.vcpu.kick)
        timer.start()
        assert machine.vcpu.run().kind is ExitKind.INTERRUPTED
        timer.cancel()
        assert machine.register("far_el1") == machine.register("elr_el1") == PLAYGROUND + 0x200

    def test_wait_in_user_mode(self, machine: Machine) -> None:
        frame = machine.fault(WFI, user=True)  # SCTLR_EL1.nTWI is 0
        assert (frame.offset, frame.cls, frame.elr) == (0x400, 0x01, USER_CODE)
        machine.start(WFI, user=True, sctlr_el1=SCTLR | 1 << 16)
        assert (machine.go().kind, machine.register("pc")) == (ExitKind.HALT, USER_CODE + 4)

    def test_exclusive_accesses(self, machine: Machine) -> None:
        machine.finish(0xC85F_7C20, ADD, 0xC802_7C20, x1=DATA)  # ldxr x0, [x1]; add; stxr w2, x0, [x1]
        assert (machine.register("x2"), machine.get(DATA)) == (0, 1)

    def test_identity_is_what_the_probe_says(self, machine: Machine) -> None:
        for name, value in machine.probe.features.id_registers.items():
            assert machine.register(name) == value, name


class DebugTests:
    """Steps, breakpoints and watchpoints of the host's."""

    @requires("debug_single_step")
    def test_steps(self, machine: Machine) -> None:
        machine.start(ADD, BRANCH_OVER, UNDEFINED, SVC, pstate=EL1H)
        machine.vcpu.set_debug(single_step=True)
        seen = []
        for _ in range(3):
            exit = machine.go()
            assert (exit.kind, exit.info[0]) == (ExitKind.DEBUG, 1)
            seen.append(exit.address)
        assert seen == [CODE + 4, CODE + 12, VECTORS + 0x200]
        assert machine.register("spsr_el1") == EL1H
        assert machine.register("mdscr_el1") == 0

    @requires("debug_single_step")
    def test_steps_are_hidden_from_the_guest(self, machine: Machine) -> None:
        machine.start(0xD530_0240, SVC, x0=7)  # mrs x0, mdscr_el1
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().address == CODE + 4
        assert machine.register("x0") == 0

    @requires("debug_single_step_user")
    def test_steps_into_user_mode_and_out(self, machine: Machine) -> None:
        machine.put(USER_CODE, code(NOP, SVC))
        machine.start(ERET, elr_el1=USER_CODE, spsr_el1=EL0T)
        machine.vcpu.set_debug(single_step=True)
        assert [machine.go().address for _ in range(3)] == [USER_CODE, USER_CODE + 4, VECTORS + 0x400]

    @requires("debug_single_step")
    def test_step_into_a_fault(self, machine: Machine) -> None:
        machine.start(LOAD, x1=PLAYGROUND)
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().address == VECTORS + 0x200
        assert machine.register("elr_el1") == CODE

    @requires("debug_single_step")
    def test_step_over_a_wait(self, machine: Machine) -> None:
        machine.start(WFI, ADD)
        machine.vcpu.set_debug(single_step=True)
        exits = [machine.go() for _ in range(3)]
        assert [exit.kind for exit in exits] == [ExitKind.HALT, ExitKind.DEBUG, ExitKind.DEBUG]
        assert [exit.address for exit in exits[1:]] == [CODE + 4, CODE + 8]

    @requires("debug_single_step")
    def test_step_into_a_floating_point_trap(self, machine: Machine) -> None:
        machine.start(FADD, cpacr_el1=0)
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().address == VECTORS + 0x200
        assert machine.register("elr_el1") == CODE

    @requires("debug_sw_breakpoint")
    def test_breakpoint_instruction(self, machine: Machine) -> None:
        machine.start(NOP, BRK)
        machine.vcpu.set_debug(software=True)
        exit = machine.go()
        assert (exit.kind, exit.info[0], exit.address, machine.register("pc")) == (
            ExitKind.DEBUG,
            2,
            CODE + 4,
            CODE + 4,
        )

    @requires("debug_hw_breakpoint")
    def test_breakpoint(self, machine: Machine) -> None:
        machine.start(ADD, ADD, ADD, WFI)
        machine.vcpu.set_debug(breakpoints=[CODE + 8])
        exit = machine.go()
        assert (exit.kind, exit.info[0], exit.address) == (ExitKind.DEBUG, 3, CODE + 8)
        assert machine.vcpu.read_registers(["pc", "x0"]) == {"pc": CODE + 8, "x0": 2}
        machine.vcpu.set_debug()
        assert (machine.go().kind, machine.register("x0")) == (ExitKind.HALT, 3)

    @requires("debug_hw_breakpoint")
    def test_breakpoint_behind_a_wait(self, machine: Machine) -> None:
        machine.start(WFI, ADD, WFI)
        machine.vcpu.set_debug(breakpoints=[CODE + 4])
        assert (machine.go().kind, machine.register("pc")) == (ExitKind.HALT, CODE + 4)
        exit = machine.go()
        assert (exit.kind, exit.info[0], exit.address) == (ExitKind.DEBUG, 3, CODE + 4)

    @requires("debug_watchpoint")
    @pytest.mark.parametrize(
        ("instruction", "access", "hit"), [(STORE, "write", True), (LOAD, "write", False), (LOAD, "read", True)]
    )
    def test_watchpoint(self, machine: Machine, instruction: int, access: str, hit: bool) -> None:
        machine.start(instruction, WFI, x1=DATA)
        machine.vcpu.set_debug(watchpoints=[Watchpoint(DATA, 8, access)])  # type: ignore[arg-type]
        exit = machine.go()
        assert exit.kind is (ExitKind.DEBUG if hit else ExitKind.HALT)
        assert not hit or exit.info[:2] == (4, DATA)


class InterruptTests:
    """What the host raises."""

    @requires("inject_interrupt")
    @pytest.mark.parametrize(("number", "mask", "offset", "unmask"), [(0, PSTATE_I, 0x80, 2), (1, PSTATE_F, 0x100, 1)])
    def test_interrupt_waits_until_it_is_open(
        self, machine: Machine, number: int, mask: int, offset: int, unmask: int
    ) -> None:
        machine.start(ADD, ADD, 0xD503_40FF | unmask << 8, ADD, WFI, pstate=EL1H | mask)  # msr daifclr, #unmask
        machine.vcpu.inject_interrupt(number)
        with pytest.raises(StateError):
            machine.vcpu.inject_interrupt(number)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.elr, frame.spsr) == (0x200 + offset, CODE + 12, EL1H)
        assert machine.register("x0") == 2

    @requires("inject_interrupt")
    def test_interrupt_ends_a_wait(self, machine: Machine) -> None:
        machine.start(WFI, ADD, WFI, pstate=EL1H)
        assert machine.go().kind is ExitKind.HALT
        machine.vcpu.inject_interrupt(0)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.elr) == (0x280, CODE + 4)

    @requires("inject_interrupt")
    def test_interrupt_in_user_mode(self, machine: Machine) -> None:
        machine.start(NOP, SVC, user=True, pstate=EL0T)
        machine.vcpu.inject_interrupt(0)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.elr, frame.spsr) == (0x480, USER_CODE, EL0T)

    @requires("inject_exception")
    def test_system_error(self, machine: Machine) -> None:
        machine.start(ADD, 0xD503_44FF, ADD, WFI)  # msr daifclr, #4
        machine.vcpu.inject_exception(0x2F, 0x11)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.cls, frame.elr) == (0x380, 0x2F, CODE + 8)

    @requires("inject_exception")
    def test_injected_exception(self, machine: Machine) -> None:
        machine.start(ADD, far_el1=0x77)
        machine.vcpu.inject_exception(0x25, 0x10)
        frame = machine.frame(machine.go())
        assert (frame.offset, frame.cls, frame.iss, frame.elr, frame.far) == (0x200, 0x25, 0x10, CODE, 0x77)

    def test_code_that_the_host_changes(self, machine: Machine) -> None:
        machine.start(ADD, WFI, BRANCH, x1=CODE)
        assert machine.go().kind is ExitKind.HALT
        machine.put(CODE, code(NOP))
        machine.vm.code_changed(Gpa(CODE), 4)
        assert machine.go().kind is ExitKind.HALT
        assert machine.register("x0") == 1
