"""Conformance of a backend: exits, their data, and the answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core import doorbell
from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa, Gva, Mapping, Permission
from rift_core.testing.bench import CODE, DATA, EXTRA, READ_ONLY, UNMAPPED, USER_CODE, USER_DATA, Bench
from rift_core.testing.guests import DEVICE
from rift_core.testing.requirements import requires

if TYPE_CHECKING:
    from rift_core.backend import VCpu
    from rift_core.isa import GuestFault

PORT = 0x5A0  # of no device that a hypervisor brings along
VALUE = 0xF1E2_D3C4_B5A6_9788

FAULT = doorbell.DEFAULT_ADDRESS + doorbell.FAULT


def cut(value: int, size: int) -> int:
    """The low ``size`` bytes."""
    return value & (1 << 8 * size) - 1


def data_of(exit: Exit) -> tuple[ExitKind, int, int, int, bool]:
    """What a handler looks at."""
    return exit.kind, exit.address, exit.size, exit.value, exit.is_write


def run_to_fault(bench: Bench, vcpu: VCpu) -> GuestFault:
    """Run until the built-in vectors report an exception."""
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address, exit.is_write) == (ExitKind.MMIO, FAULT, True), bench.describe(vcpu, exit)
    fault = bench.isa.read_fault(vcpu, bench, exit)
    assert fault is not None
    return fault


class ExitTests:
    """Each exit occurs with address, size and value right, and each reply reaches the guest."""

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_mmio_write(self, bench: Bench, size: int) -> None:
        vcpu = bench.vcpu(bench.guests.store(DEVICE + 8 * size, size, VALUE) + bench.guests.end())
        exit = bench.run(vcpu)
        assert data_of(exit) == (ExitKind.MMIO, DEVICE + 8 * size, size, cut(VALUE, size), True)
        bench.finish(vcpu)

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_mmio_read(self, bench: Bench, size: int) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE + 8 * size, size) + g.store_result(DATA) + g.end())
        exit = bench.run(vcpu)
        assert data_of(exit) == (ExitKind.MMIO, DEVICE + 8 * size, size, 0, False)
        bench.finish(vcpu, cut(VALUE, size))
        assert bench.number(DATA) == cut(VALUE, size)

    def test_reply_is_cut_to_the_access(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 2) + g.store_result(DATA) + g.end())
        bench.run(vcpu)
        bench.finish(vcpu, VALUE)
        assert bench.number(DATA) == cut(VALUE, 2)

    def test_several_reads_each_get_their_reply(self, bench: Bench) -> None:
        g = bench.guests
        code = b"".join(g.load(DEVICE + 8 * n, 8) + g.store_result(DATA + 8 * n) for n in range(4))
        vcpu = bench.vcpu(code + g.end())
        reply = None
        for n in range(4):
            exit = bench.run(vcpu, reply)
            assert exit.address == DEVICE + 8 * n
            reply = VALUE ^ n
        bench.finish(vcpu, reply)
        assert [bench.number(DATA + 8 * n) for n in range(4)] == [VALUE ^ n for n in range(4)]

    def test_read_without_reply_goes_on(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.end())
        assert not bench.run(vcpu).is_write
        bench.finish(vcpu)

    def test_exit_count(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) * 3 + g.end())
        before = vcpu.exit_count
        for _ in range(3):
            assert bench.run(vcpu).address == DEVICE
        assert vcpu.exit_count == before + 3
        assert vcpu.stopped is None

    @requires(ExitKind.HALT)
    def test_halt(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.halt() + bench.guests.end())
        exit = bench.run(vcpu)
        assert (exit.kind, exit.size, exit.value, exit.is_write) == (ExitKind.HALT, 0, 0, False)
        bench.finish(vcpu)

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_port_write(self, bench: Bench, size: int) -> None:
        vcpu = bench.vcpu(bench.guests.port_write(PORT, size, cut(VALUE, 4)) + bench.guests.end())
        assert data_of(bench.run(vcpu)) == (ExitKind.PORT_IO, PORT, size, cut(VALUE, size), True)
        bench.finish(vcpu)

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_port_read(self, bench: Bench, size: int) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.port_read(PORT, size) + g.store_result(DATA) + g.end())
        assert data_of(bench.run(vcpu)) == (ExitKind.PORT_IO, PORT, size, 0, False)
        bench.finish(vcpu, cut(VALUE, size))
        assert bench.number(DATA) == cut(VALUE, size)

    @requires(ExitKind.PORT_IO)
    def test_port_string_comes_as_single_exits(self, bench: Bench) -> None:
        g = bench.guests
        bench.memory[DATA : DATA + 5] = b"Rift!"
        vcpu = bench.vcpu(g.port_write_string(PORT, DATA, 5) + g.end())
        written = bytearray()
        for _ in range(5):
            exit = bench.run(vcpu)
            assert (exit.kind, exit.address, exit.size, exit.is_write) == (ExitKind.PORT_IO, PORT, 1, True)
            written.append(exit.value)
        assert written == b"Rift!"
        bench.finish(vcpu)

    @requires(ExitKind.HYPERCALL)
    def test_hypercall(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.hypercall(0x77, (1, 2, 3, 4, 5, 6)) + g.store_result(DATA) + g.end())
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.info) == (ExitKind.HYPERCALL, 0x77, (1, 2, 3, 4, 5, 6))
        bench.finish(vcpu, VALUE)
        assert bench.number(DATA) == VALUE

    @requires(ExitKind.SYSTEM_REGISTER)
    def test_system_register_write(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.write_system_register(g.system_register, VALUE) + g.end())
        assert data_of(bench.run(vcpu)) == (ExitKind.SYSTEM_REGISTER, g.system_register, 8, VALUE, True)
        bench.finish(vcpu)

    @requires(ExitKind.SYSTEM_REGISTER)
    def test_system_register_read(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.read_system_register(g.system_register) + g.store_result(DATA) + g.end())
        assert data_of(bench.run(vcpu)) == (ExitKind.SYSTEM_REGISTER, g.system_register, 8, 0, False)
        bench.finish(vcpu, VALUE)
        assert bench.number(DATA) == VALUE

    @requires(ExitKind.SHUTDOWN)
    def test_shutdown(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.invalid())
        vcpu.write_registers(bench.guests.crash_registers)
        assert bench.run(vcpu).kind is ExitKind.SHUTDOWN

    @requires("debug_single_step")
    def test_single_step(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.nop() * 3 + g.end())
        vcpu.set_debug(single_step=True)
        seen = []
        for _ in range(3):
            exit = bench.run(vcpu)
            assert exit.kind is ExitKind.DEBUG
            assert exit.info[0] == 1
            seen.append(exit.address)
        size = len(g.nop())
        assert seen == [CODE + size, CODE + 2 * size, CODE + 3 * size]
        vcpu.set_debug()
        bench.finish(vcpu)

    @requires("debug_hw_breakpoint")
    def test_hardware_breakpoint(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.nop() * 4 + g.end())
        there = CODE + 2 * len(g.nop())
        vcpu.set_debug(breakpoints=[there])
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, there, 3)
        pc = bench.isa.program_counter
        assert vcpu.read_registers([pc])[pc] == there
        vcpu.set_debug()
        bench.finish(vcpu)

    @requires("debug_sw_breakpoint")
    def test_software_breakpoint(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.nop() + g.breakpoint() + g.end())
        there = CODE + len(g.nop())
        vcpu.set_debug(software=True)
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, there, 2)
        pc = bench.isa.program_counter
        assert vcpu.read_registers([pc])[pc] == there
        vcpu.write_registers({pc: there + len(g.breakpoint())})
        vcpu.set_debug()
        bench.finish(vcpu)

    @requires("debug_watchpoint")
    def test_watchpoint(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DATA, 8) + g.store(DATA + 8, 8, VALUE) + g.store(DATA, 8, VALUE) + g.end())
        vcpu.set_debug(watchpoints=[Watchpoint(DATA, 8, "write")])
        exit = bench.run(vcpu)
        assert (exit.kind, exit.info[0], exit.info[1]) == (ExitKind.DEBUG, 4, DATA)
        assert bench.number(DATA + 8) == VALUE
        vcpu.set_debug()
        bench.finish(vcpu)
        assert bench.number(DATA) == VALUE

    @requires("debug_watchpoint")
    def test_more_breakpoints_than_there_are(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        with pytest.raises(HypervisorError, match="more than"):
            vcpu.set_debug(breakpoints=[CODE + 16 * at for at in range(64)])
        bench.finish(vcpu)

    @requires("inject_exception")
    def test_injected_exception(self, bench: Bench) -> None:
        vector, code = bench.guests.injected
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        assert bench.run(vcpu).address == DEVICE
        vcpu.inject_exception(vector, code)
        fault = run_to_fault(bench, vcpu)
        assert (fault.vector, fault.code) == (vector, code)

    @requires("inject_exception")
    def test_a_new_run_does_not_get_the_exceptions_of_the_old(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        for _ in range(2):  # before the first entry, and as the answer to an access
            vcpu.inject_exception(*bench.guests.injected)
            bench.begin_again(vcpu)
            assert bench.run(vcpu).address == DEVICE
        vcpu.inject_exception(*bench.guests.injected)
        bench.begin_again(vcpu)
        vcpu.kick()  # nothing has been lost but the events
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        assert bench.run(vcpu).address == DEVICE
        bench.finish(vcpu)


class SupervisorTests:
    """Supervisor mode really is one: it may what user mode may not, and faults are the guest's own."""

    def test_privileged_instruction_works(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.privileged() + g.store_result(DATA) + g.end())
        bench.finish(vcpu)
        assert bench.number(DATA) & ~0xFFF == bench.space.root

    def test_user_mode_may_not(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.privileged(), privilege="user")
        fault = run_to_fault(bench, vcpu)
        assert fault.user
        assert fault.pc == USER_CODE

    def test_undefined_instruction_is_the_guests_exception(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.nop() + g.invalid())
        fault = run_to_fault(bench, vcpu)
        assert fault.vector == g.invalid_vector
        assert fault.pc == CODE + len(g.nop())
        assert not fault.user

    def test_unmapped_page(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.store(UNMAPPED + 0x18, 4, 1))
        fault = run_to_fault(bench, vcpu)
        assert fault.vector in bench.guests.page_fault_vectors
        assert fault.address == UNMAPPED + 0x18

    def test_read_only_page(self, bench: Bench) -> None:
        g = bench.guests
        bench.put(READ_ONLY, VALUE)
        vcpu = bench.vcpu(g.copy(READ_ONLY, DATA) + g.store(READ_ONLY, 8, 1))
        fault = run_to_fault(bench, vcpu)
        assert fault.vector in g.page_fault_vectors
        assert fault.address == READ_ONLY
        assert bench.number(DATA) == VALUE
        assert bench.number(READ_ONLY) == VALUE

    def test_no_execute_page(self, bench: Bench) -> None:
        bench.load(bench.guests.end(), DATA)
        vcpu = bench.vcpu(bench.guests.jump(DATA))
        fault = run_to_fault(bench, vcpu)
        assert fault.vector in bench.guests.page_fault_vectors
        assert (fault.address, fault.pc) == (DATA, DATA)

    def test_lost_stack_is_reported(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.use_stack(UNMAPPED))
        assert run_to_fault(bench, vcpu).vector == g.stack_fault_vector

    def test_user_mode_without_a_stack(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.use_stack(UNMAPPED + 0x1000), privilege="user")
        fault = run_to_fault(bench, vcpu)
        assert fault.vector in g.page_fault_vectors
        assert fault.user

    def test_accessed_and_dirty(self, bench: Bench) -> None:
        g = bench.guests
        bench.space.accessed_dirty(Gva(DATA), 0x4000, clear=True)
        bench.vm.flush_translations()
        vcpu = bench.vcpu(g.store(DATA, 1, 1) + g.load(DATA + 0x2000, 1) + g.end())
        bench.finish(vcpu)
        marks = [(accessed, dirty) for _, _, accessed, dirty in bench.space.accessed_dirty(Gva(DATA), 0x4000)]
        expected = [(True, True), (False, False), (True, False), (False, False)]
        untold = (not bench.isa.keeps_accessed, not bench.isa.keeps_dirty)  # "may have been" where the CPU keeps none
        assert marks == [(accessed or untold[0], dirty or untold[1]) for accessed, dirty in expected]

    def test_user_mode_uses_its_pages(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(USER_DATA, 8, VALUE) + g.store(UNMAPPED, 8, 1), privilege="user")
        fault = run_to_fault(bench, vcpu)
        assert (fault.address, fault.user) == (UNMAPPED, True)
        assert bench.number(USER_DATA) == VALUE

    def test_supervisor_page_is_closed_to_user_mode(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DATA, 8, VALUE), privilege="user")
        fault = run_to_fault(bench, vcpu)
        assert fault.vector in g.page_fault_vectors
        assert (fault.address, fault.user) == (DATA, True)
        assert bench.number(DATA) == 0

    def test_doorbell_is_closed_to_user_mode(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1), privilege="user")
        assert run_to_fault(bench, vcpu).address == DEVICE

    @requires(ExitKind.PORT_IO)
    def test_ports_are_closed_to_user_mode(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.port_write(PORT, 1, 1), privilege="user")
        fault = run_to_fault(bench, vcpu)
        assert fault.user

    def test_user_call(self, bench: Bench) -> None:
        g = bench.guests
        arguments = (0x11, 0x22, 0x33, 0x44, 0x55, 0x66)
        vcpu = bench.vcpu(
            g.user_call(0x99, arguments) + g.store_result(USER_DATA) + g.store(UNMAPPED, 1, 1), privilege="user"
        )
        exit = bench.run(vcpu)
        assert exit.kind is ExitKind.MMIO
        if exit.address == FAULT:
            assert bench.isa.read_fault(vcpu, bench, exit) is None, bench.describe(vcpu, exit)
        else:
            assert exit.address == doorbell.DEFAULT_ADDRESS + doorbell.USER_CALL
        call = bench.isa.read_user_call(vcpu, bench, exit)
        assert (call.kind, call.address, call.info) == (ExitKind.USER_CALL, 0x99, arguments)
        bench.isa.finish_user_call(vcpu, bench, exit, VALUE)
        assert run_to_fault(bench, vcpu).address == UNMAPPED
        assert bench.number(USER_DATA) == VALUE

    def test_host_repairs_a_fault(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(UNMAPPED, 8, VALUE) + g.end())
        assert run_to_fault(bench, vcpu).address == UNMAPPED
        writable = Permission.READ | Permission.WRITE
        bench.space.map(Mapping(Gva(UNMAPPED), Gpa(DATA), 0x1000, writable))
        bench.vm.flush_translations()
        bench.finish(vcpu)
        assert bench.number(DATA) == VALUE

    def test_flush_shows_edited_page_tables(self, bench: Bench) -> None:
        g = bench.guests
        page = EXTRA + 0x8_0000  # mapped; moved below
        bench.space.unmap(Gva(page), 0x1000)
        both = Permission.READ | Permission.WRITE
        bench.space.map(Mapping(Gva(page), Gpa(DATA), 0x1000, both))
        bench.put(DATA, 1)
        bench.put(DATA + 0x1000, 2)
        vcpu = bench.vcpu(g.forever(g.copy(page, DEVICE)))
        assert bench.run(vcpu).value == 1
        bench.space.unmap(Gva(page), 0x1000)
        bench.space.map(Mapping(Gva(page), Gpa(DATA + 0x1000), 0x1000, both))
        bench.vm.flush_translations()
        assert bench.run(vcpu).value == 2
        bench.space.unmap(Gva(page), 0x1000)
        bench.vm.flush_translations()
        assert run_to_fault(bench, vcpu).address == page
