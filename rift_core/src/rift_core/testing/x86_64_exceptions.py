"""Behaviour of x86-64 exceptions, privilege levels and debugging: Intel SDM volume 3, chapters 6 and 17."""

from __future__ import annotations

import struct
import threading

import pytest

from rift_core.exits import ExitKind
from rift_core.testing.requirements import requires
from rift_core.testing.x86_64_machine import (
    CODE,
    DEVICE,
    FLAG_DF,
    FLAG_IF,
    FLAG_TF,
    INTERRUPT_STACK,
    KERNEL_CODE,
    KERNEL_DATA,
    PLAYGROUND,
    STACK,
    STUBS,
    SYSCALL_CODE,
    TSS,
    USER_CODE,
    USER_CODE_SELECTOR,
    USER_DATA_SELECTOR,
    USER_STACK,
    Machine,
)

INT_80 = b"\xcd\x80"
OUT, IN, STORE, LOAD = b"\xee", b"\xec", b"\x89\x07", b"\x8b\x07"  # to and from port DX, and [RDI]
SYSCALL, SYSRET, IRETQ = b"\x0f\x05", b"\x48\x0f\x07", b"\x48\xcf"


class ExceptionTests:
    """Delivery in ring 0."""

    @pytest.mark.parametrize(
        ("code", "vector", "error"),
        [
            pytest.param(b"\x48\xf7\xf1", 0, None, id="divide"),  # div rcx
            pytest.param(b"\x0f\x0b", 6, None, id="undefined"),
            pytest.param(b"\x8e\xd8", 13, 0x1230, id="bad-selector"),  # mov ds, ax
        ],
    )
    def test_fault_in_ring_0(self, machine: Machine, code: bytes, vector: int, error: int | None) -> None:
        frame = machine.fault(code, rax=0x1230, rflags=2 | FLAG_IF)
        assert (frame.vector, frame.code, frame.rip, frame.cs) == (vector, error, CODE, KERNEL_CODE)
        assert (frame.ss, frame.rsp, frame.rflags & FLAG_IF) == (KERNEL_DATA, STACK - 0x800, FLAG_IF)
        assert not machine.register("rflags") & FLAG_IF  # an interrupt gate

    def test_trap_gate_keeps_interrupts(self, machine: Machine) -> None:
        machine.gate(6, STUBS + 8 * 6, kind=0xF)
        machine.fault(b"\x0f\x0b", rflags=2 | FLAG_IF)
        assert machine.register("rflags") & FLAG_IF

    def test_frame_is_aligned(self, machine: Machine) -> None:
        frame = machine.fault(b"\x0f\x0b", rsp=STACK - 0x803)
        assert frame.rsp == STACK - 0x803
        assert machine.register("rsp") == (STACK - 0x803 & ~15) - 5 * 8

    def test_returning_goes_on(self, machine: Machine) -> None:
        frame = machine.fault(b"\x0f\x0b\xf4")
        machine.put64(machine.register("rsp"), frame.rip + 2)
        machine.halt(machine.go(), CODE + 2)
        assert machine.register("rsp") == STACK - 0x800

    @requires("software_interrupts")
    @pytest.mark.parametrize(("code", "vector"), [(b"\xcc", 3), (b"\xcd\x21", 0x21)])
    def test_software_interrupt(self, machine: Machine, code: bytes, vector: int) -> None:
        frame = machine.fault(code)
        assert (frame.vector, frame.code, frame.rip) == (vector, None, CODE + len(code))

    def test_interrupt_stack(self, machine: Machine) -> None:
        machine.gate(6, STUBS + 8 * 6, ist=1)
        frame = machine.fault(b"\x0f\x0b")
        assert (frame.vector, frame.rsp) == (6, STACK - 0x800)
        assert machine.register("rsp") == INTERRUPT_STACK - 5 * 8

    def test_fault_in_a_handler(self, machine: Machine) -> None:
        """The page fault's handler faults itself: that is one more exception, not a double fault."""
        machine.put(CODE + 0x800, b"\x0f\x0b")
        machine.gate(14, CODE + 0x800)
        frame = machine.fault(b"\x48\x8b\x07", rdi=PLAYGROUND)
        assert (frame.vector, frame.rip) == (6, CODE + 0x800)

    def test_page_fault_again_in_its_handler(self, machine: Machine) -> None:
        machine.put(CODE + 0x800, b"\xf4\x48\x8b\x06")  # hlt; mov rax, [rsi], which faults as well
        machine.gate(14, CODE + 0x800)
        machine.start(b"\x48\x8b\x07", rdi=PLAYGROUND, rsi=PLAYGROUND + 0x1000)
        machine.halt(machine.go(), CODE + 0x800)
        assert machine.register("cr2") == PLAYGROUND
        machine.halt(machine.go(), CODE + 0x800)  # the second one, delivered like the first
        assert machine.register("cr2") == PLAYGROUND + 0x1000

    def test_gate_that_is_not_present(self, machine: Machine) -> None:
        machine.gate(6, STUBS + 8 * 6, present=False)
        frame = machine.fault(b"\x0f\x0b")
        assert (frame.vector, frame.code, frame.rip) == (11, 6 * 8 + 2 + 1, CODE)

    def test_gate_of_no_kind(self, machine: Machine) -> None:
        machine.gate(6, STUBS + 8 * 6, kind=0x3)
        frame = machine.fault(b"\x0f\x0b")
        assert (frame.vector, frame.code, frame.rip) == (13, 6 * 8 + 2 + 1, CODE)

    @requires("software_interrupts")
    def test_vector_beyond_the_table(self, machine: Machine) -> None:
        frame = machine.fault(b"\xcd\x21", idtr__limit=16 * 0x21 - 1)
        assert (frame.vector, frame.code, frame.rip) == (13, 0x21 * 8 + 2, CODE)

    def test_handler_that_cannot_be_fetched_is_left_by_a_kick(self, machine: Machine) -> None:
        """Page fault after page fault on a stack of its own, and never an instruction."""
        machine.gate(14, PLAYGROUND, ist=1)
        machine.start(b"\x48\x8b\x07", rdi=PLAYGROUND)
        for _ in range(3):
            timer = threading.Timer(0.05, machine.vcpu.kick)
            timer.start()
            assert machine.vcpu.run().kind is ExitKind.INTERRUPTED
            timer.join()
        machine.gate(14, STUBS + 8 * 14)
        assert machine.fault(b"\x48\x8b\x07", rdi=PLAYGROUND).vector == 14

    def test_double_fault(self, machine: Machine) -> None:
        """A page fault whose frame cannot be pushed."""
        machine.gate(8, STUBS + 8 * 8, ist=1)
        frame = machine.fault(b"\x48\x8b\x07", rdi=PLAYGROUND, rsp=PLAYGROUND + 0x8000)
        assert (frame.vector, frame.code, frame.rip, frame.rsp) == (8, 0, CODE, PLAYGROUND + 0x8000)
        assert machine.register("rsp") == INTERRUPT_STACK - 6 * 8

    def test_contributory_faults(self, machine: Machine) -> None:
        """A divide error whose gate is bad."""
        machine.gate(0, STUBS, present=False)
        machine.gate(8, STUBS + 8 * 8, ist=1)
        frame = machine.fault(b"\x48\xf7\xf1")
        assert (frame.vector, frame.code) == (8, 0)

    @requires(ExitKind.SHUTDOWN)
    def test_triple_fault(self, machine: Machine) -> None:
        machine.gate(8, STUBS + 8 * 8, present=False)
        machine.start(b"\x48\x8b\x07", rdi=PLAYGROUND, rsp=PLAYGROUND + 0x8000)
        assert machine.go().kind is ExitKind.SHUTDOWN

    @requires("inject_exception")
    def test_injected_exception(self, machine: Machine) -> None:
        machine.start(b"\x90\xf4")
        machine.vcpu.inject_exception(13, 0x18)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.code, frame.rip) == (13, 0x18, CODE)
        machine.halt(machine.go(), CODE + 1)


class PrivilegeTests:
    """Ring 3, and the ways in and out."""

    @pytest.mark.parametrize(
        "code",
        [pytest.param(b"\xf4", id="hlt"), pytest.param(b"\xfa", id="cli"), pytest.param(b"\x0f\x20\xd8", id="cr3")],
    )
    def test_privileged_instruction_in_ring_3(self, machine: Machine, code: bytes) -> None:
        frame = machine.fault(code, user=True)
        assert (frame.vector, frame.code, frame.rip) == (13, 0, USER_CODE)
        assert (frame.cs, frame.ss, frame.rsp) == (USER_CODE_SELECTOR, USER_DATA_SELECTOR, USER_STACK)
        assert machine.register("rsp") == STACK - 6 * 8
        assert machine.register("cs.selector") == KERNEL_CODE

    def test_msr_in_ring_3(self, machine: Machine) -> None:
        frame = machine.fault(b"\x0f\x32", user=True, rcx=0xC000_0080)
        assert (frame.vector, frame.code) == (13, 0)

    def test_iretq_enters_ring_3(self, machine: Machine) -> None:
        at = STACK - 0x800
        words = (USER_CODE, USER_CODE_SELECTOR, 2 | FLAG_IF, USER_STACK, USER_DATA_SELECTOR)
        machine.put(at, struct.pack("<5Q", *words))
        machine.put(USER_CODE, b"\x0f\x0b")
        frame = machine.fault(IRETQ, rsp=at)
        assert (frame.vector, frame.rip, frame.cs, frame.rsp) == (6, USER_CODE, USER_CODE_SELECTOR, USER_STACK)
        assert frame.rflags & FLAG_IF

    @requires("software_interrupts_user")
    def test_interrupt_and_return(self, machine: Machine) -> None:
        machine.gate(0x80, CODE + 0x800, dpl=3)
        machine.put(CODE + 0x800, b"\x48\xff\xc0" + IRETQ)  # inc rax; iretq
        frame = machine.fault(INT_80 + b"\x0f\x0b", user=True, rax=41)
        assert (frame.vector, frame.rip) == (6, USER_CODE + 2)
        assert machine.register("rax") == 42

    @requires("software_interrupts_user")
    @pytest.mark.parametrize("number", [0, 8, 13, 14, 0x80])
    def test_interrupt_through_a_gate_of_ring_0(self, machine: Machine, number: int) -> None:
        """INT n is no exception n: its fault is the first one, and no double fault."""
        frame = machine.fault(bytes((0xCD, number)), user=True)
        assert (frame.vector, frame.code, frame.rip) == (13, number * 8 + 2, USER_CODE)

    @requires("software_interrupts_user")
    def test_breakpoint_in_ring_3(self, machine: Machine) -> None:
        machine.gate(3, STUBS + 8 * 3, dpl=3)
        frame = machine.fault(b"\xcc", user=True)
        assert (frame.vector, frame.rip) == (3, USER_CODE + 1)

    @requires("syscall")
    def test_syscall_and_sysret(self, machine: Machine) -> None:
        machine.put(SYSCALL_CODE, b"\xf4" + SYSRET)
        machine.start(SYSCALL + b"\x0f\x0b", user=True, rflags=2 | FLAG_IF | FLAG_DF)
        machine.vcpu.write_registers(
            {"star": 0x10 << 48 | KERNEL_CODE << 32, "lstar": SYSCALL_CODE, "sfmask": FLAG_IF | FLAG_DF}
        )
        machine.halt(machine.go(), SYSCALL_CODE)
        names = ("rcx", "r11", "rflags", "rsp", "cs.selector", "ss.selector")
        rcx, r11, rflags, rsp, cs, ss = machine.vcpu.read_registers(names).values()
        assert (rcx, r11 & ~0x8D4, rsp) == (USER_CODE + 2, 2 | FLAG_IF | FLAG_DF, USER_STACK)
        assert (rflags & (FLAG_IF | FLAG_DF), cs, ss) == (0, KERNEL_CODE, KERNEL_CODE + 8)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip, frame.cs, frame.ss) == (6, USER_CODE + 2, 0x20 | 3, 0x18 | 3)
        assert frame.rflags & (FLAG_IF | FLAG_DF) == FLAG_IF | FLAG_DF

    @requires("syscall")
    def test_syscall_that_is_not_enabled(self, machine: Machine) -> None:
        frame = machine.fault(SYSCALL, user=True, efer=0xD00)
        assert (frame.vector, frame.rip) == (6, USER_CODE)

    def test_page_fault_in_ring_3_comes_to_ring_0(self, machine: Machine) -> None:
        frame = machine.fault(b"\x48\x8b\x07", user=True, rdi=PLAYGROUND)
        assert (frame.vector, frame.code, frame.cs) == (14, 4, USER_CODE_SELECTOR)
        assert machine.register("rsp") == STACK - 6 * 8

    # -- ports -----------------------------------------------------------------------------------

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("code", [b"\xee", b"\xec"])
    def test_port_without_permission(self, machine: Machine, code: bytes) -> None:
        frame = machine.fault(code, user=True, rdx=0x5A0, rax=0x1122)
        assert (frame.vector, frame.code, frame.rip) == (13, 0, USER_CODE)
        assert machine.register("rax") == 0x1122

    @requires(ExitKind.PORT_IO)
    def test_port_by_privilege_level(self, machine: Machine) -> None:
        machine.start(b"\xee", user=True, rdx=0x5A0, rax=0x77, rflags=2 | 3 << 12)
        exit = machine.go()
        assert (exit.kind, exit.address, exit.value) == (ExitKind.PORT_IO, 0x5A0, 0x77)

    @requires(ExitKind.PORT_IO)
    def test_port_by_the_map(self, machine: Machine) -> None:
        """The TSS grants 0x10 to 0x17, and no more."""
        machine.put(TSS + 0x68, b"\xff\xff\x00\xff\xff")
        machine.start(b"\xee", user=True, rdx=0x12, rax=0x55, tr__limit=0x6C)
        exit = machine.go()
        assert (exit.kind, exit.address, exit.value) == (ExitKind.PORT_IO, 0x12, 0x55)
        frame = machine.fault(b"\xef", user=True, rdx=0x16, tr__limit=0x6C)  # out dx, eax: the last two are closed
        assert (frame.vector, frame.code, frame.rip) == (13, 0, USER_CODE)


class DebugTests:
    """The guest's own trap flag, and the host's steps and breakpoints."""

    def test_trap_flag_of_the_guest(self, machine: Machine) -> None:
        machine.start(b"\x90\x90\xf4", rflags=2 | FLAG_TF)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip) == (1, CODE + 1)
        assert frame.rflags & FLAG_TF
        assert machine.register("dr6") & 1 << 14

    @requires("step_vector", ExitKind.PORT_IO)
    def test_trap_flag_behind_out(self, machine: Machine) -> None:
        self._trap_behind(machine, OUT)

    @requires("step_vector", ExitKind.PORT_IO)
    def test_trap_flag_behind_in(self, machine: Machine) -> None:
        self._trap_behind(machine, IN)

    @requires("step_vector")
    def test_trap_flag_behind_a_store_to_a_device(self, machine: Machine) -> None:
        self._trap_behind(machine, STORE)

    @requires("step_vector")
    def test_trap_flag_behind_a_load_from_a_device(self, machine: Machine) -> None:
        self._trap_behind(machine, LOAD)

    @staticmethod
    def _trap_behind(machine: Machine, code: bytes) -> None:
        """The trap comes behind the instruction whose access has been an exit: Intel SDM volume 3, 17.3.1.4."""
        machine.start(code + b"\x90\x90\xf4", rflags=2 | FLAG_TF, rdx=0x5A0, rdi=DEVICE)
        assert machine.go().kind in (ExitKind.PORT_IO, ExitKind.MMIO)
        frame = machine.frame(machine.go(0))
        assert (frame.vector, frame.rip) == (1, CODE + len(code))
        assert machine.register("dr6") & 1 << 14

    @requires("step_vector")
    def test_trap_flag_behind_hlt(self, machine: Machine) -> None:
        machine.start(b"\xf4\x90\xf4", rflags=2 | FLAG_TF)
        machine.halt(machine.go(), CODE)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip) == (1, CODE + 1)

    @requires("debug_hw_breakpoint", ExitKind.PORT_IO)
    @pytest.mark.parametrize("code", [OUT, IN, STORE, LOAD], ids=["out", "in", "store", "load"])
    def test_breakpoint_behind_a_device(self, machine: Machine, code: bytes) -> None:
        machine.start(code + b"\x90\xf4", rdx=0x5A0, rdi=DEVICE)
        machine.vcpu.set_debug(breakpoints=[CODE + len(code)])
        assert machine.go().kind in (ExitKind.PORT_IO, ExitKind.MMIO)
        exit = machine.go(0)
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, CODE + len(code), 3)
        machine.vcpu.set_debug()
        machine.halt(machine.go(), CODE + len(code) + 1)

    @requires("debug_single_step")
    def test_steps_through_a_fault_and_back(self, machine: Machine) -> None:
        machine.start(b"\x90\x90\xf4")
        machine.vcpu.set_debug(single_step=True)
        for at in (1, 2):
            exit = machine.go()
            assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, CODE + at, 1)
        machine.vcpu.set_debug()
        machine.halt(machine.go(), CODE + 2)

    @requires("debug_single_step", ExitKind.PORT_IO)
    def test_step_over_a_port(self, machine: Machine) -> None:
        machine.start(b"\xec\x90\xf4", rdx=0x5A0)
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().kind is ExitKind.PORT_IO
        exit = machine.go(0x66)
        assert (exit.kind, exit.address) == (ExitKind.DEBUG, CODE + 1)
        assert machine.register("rax") == 0x66

    @requires("debug_single_step")
    def test_step_over_a_device(self, machine: Machine) -> None:
        machine.start(b"\x8b\x07\x90\xf4", rdi=DEVICE)  # mov eax, [rdi]
        machine.vcpu.set_debug(single_step=True)
        assert machine.go().kind is ExitKind.MMIO
        exit = machine.go(0x66)
        assert (exit.kind, exit.address) == (ExitKind.DEBUG, CODE + 2)
        assert machine.register("rax") == 0x66

    @requires("debug_hw_breakpoint")
    def test_breakpoint_in_a_loop(self, machine: Machine) -> None:
        machine.start(b"\xff\xc0\xeb\xfc")  # again: inc eax; jmp again
        for count in (1, 2, 3):
            machine.vcpu.set_debug(breakpoints=[CODE + 2])
            exit = machine.go()
            assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, CODE + 2, 3)
            assert machine.register("rax") == count
            machine.vcpu.set_debug(breakpoints=[CODE])
            assert machine.go().address == CODE

    def test_code_that_writes_code(self, machine: Machine) -> None:
        """An instruction changes the next one."""
        # mov byte [rip + 1], 2; mov eax, 1: the constant becomes 2
        machine.finish(b"\xc6\x05\x01\x00\x00\x00\x02" + b"\xb8\x01\x00\x00\x00")
        assert machine.register("rax") == 2

    def test_code_that_writes_a_function_it_has_called(self, machine: Machine) -> None:
        function = CODE + 0x800
        machine.put(function, b"\xb8\x01\x00\x00\x00\xc3")  # mov eax, 1; ret
        # call rdi; mov ebx, eax; mov byte [rdi + 1], 7; call rdi
        machine.finish(b"\xff\xd7\x89\xc3\xc6\x47\x01\x07\xff\xd7", rdi=function)
        assert (machine.register("rbx"), machine.register("rax")) == (1, 7)

    def test_code_that_the_host_writes(self, machine: Machine) -> None:
        machine.finish(b"\xb8\x01\x00\x00\x00")
        machine.put(CODE, b"\xb8\x09")
        machine.vcpu.write_registers({"rip": CODE})
        machine.halt(machine.go(), CODE + 5)
        assert machine.register("rax") == 9


class InterruptTests:
    """External interrupts: when they are taken, and what they wake."""

    @requires("inject_interrupt")
    def test_taken_at_once(self, machine: Machine) -> None:
        machine.start(b"\x90\xf4", rflags=2 | FLAG_IF)
        machine.vcpu.inject_interrupt(0x40)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip, frame.rflags & FLAG_IF) == (0x40, CODE, FLAG_IF)
        machine.halt(machine.go(), CODE + 1)

    @requires("inject_interrupt", ExitKind.PORT_IO)
    @pytest.mark.parametrize("code", [OUT, IN, STORE, LOAD], ids=["out", "in", "store", "load"])
    def test_behind_sti_and_a_device(self, machine: Machine, code: bytes) -> None:
        """STI holds interrupts off for one instruction, whose access is an exit: CLI behind it comes too late."""
        machine.start(b"\xfb" + code + b"\xfa\x90\xf4", rdx=0x5A0, rdi=DEVICE)
        machine.vcpu.inject_interrupt(0x41)
        assert machine.go().kind in (ExitKind.PORT_IO, ExitKind.MMIO)
        frame = machine.frame(machine.go(0))
        assert (frame.vector, frame.rip) == (0x41, CODE + 1 + len(code))

    @requires("inject_interrupt")
    def test_waits_for_the_window(self, machine: Machine) -> None:
        """Behind STI one more instruction comes first."""
        machine.start(b"\x90\x90\xfb\x90\x90\xf4")
        machine.vcpu.inject_interrupt(0x41)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip) == (0x41, CODE + 4)
        machine.halt(machine.go(), CODE + 5)

    @requires("inject_interrupt")
    def test_window_opened_by_popf_and_iretq(self, machine: Machine) -> None:
        machine.start(b"\x68\x02\x02\x00\x00\x9d\x90\xf4")  # push 0x202; popfq
        machine.vcpu.inject_interrupt(0x42)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip) == (0x42, CODE + 6)

    @requires("inject_interrupt")
    def test_wakes_a_halt(self, machine: Machine) -> None:
        machine.start(b"\xfb\xf4\x90\xf4")
        machine.halt(machine.go(), CODE + 1)
        machine.vcpu.inject_interrupt(0x43)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip) == (0x43, CODE + 2)
        machine.halt(machine.go(), CODE + 3)

    @requires("inject_interrupt")
    def test_in_ring_3(self, machine: Machine) -> None:
        machine.start(b"\xeb\xfe", user=True, rflags=2 | FLAG_IF)
        machine.vcpu.inject_interrupt(0x44)
        frame = machine.frame(machine.go())
        assert (frame.vector, frame.rip, frame.cs) == (0x44, USER_CODE, USER_CODE_SELECTOR)
