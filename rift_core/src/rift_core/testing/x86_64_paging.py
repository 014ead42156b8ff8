"""Behaviour of x86-64 paging in supervisor and user mode: Intel SDM volume 3, 4.6 to 4.8."""

from __future__ import annotations

import pytest

from rift_core.testing.tools import skip_here
from rift_core.testing.x86_64_machine import (
    ACCESSED,
    CODE,
    CR0,
    CR0_WP,
    CR4,
    CR4_SMAP,
    CR4_SMEP,
    DATA,
    DIRTY,
    EFER,
    EFER_NXE,
    LARGE,
    NO_EXECUTE,
    PD,
    PDPT,
    PLAYGROUND,
    PML4,
    PRESENT,
    PT0,
    PT1,
    USER,
    USER_CODE,
    USER_DATA,
    WRITABLE,
    Machine,
)

LOAD, STORE, JUMP = b"\x48\x8b\x07", b"\x48\x89\x07", b"\xff\xe7"  # mov rax, [rdi]; mov [rdi], rax; jmp rdi
PAGE_FAULT, GENERAL_PROTECTION = 14, 13
MISSING = PLAYGROUND + 0x3_0008


class PagingTests:
    """Which accesses fault, with which error code; which marks they leave."""

    @pytest.mark.parametrize(
        ("instruction", "user", "code"),
        [
            pytest.param(LOAD, False, 0x0, id="supervisor-read"),
            pytest.param(STORE, False, 0x2, id="supervisor-write"),
            pytest.param(JUMP, False, 0x10, id="supervisor-fetch"),
            pytest.param(LOAD, True, 0x4, id="user-read"),
            pytest.param(STORE, True, 0x6, id="user-write"),
            pytest.param(JUMP, True, 0x14, id="user-fetch"),
        ],
    )
    def test_page_that_is_not_present(self, machine: Machine, instruction: bytes, user: bool, code: int) -> None:
        frame = machine.fault(instruction, user=user, rdi=MISSING)
        assert (frame.vector, frame.code) == (PAGE_FAULT, code)
        assert machine.register("cr2") == MISSING
        at = USER_CODE if user else CODE
        assert frame.rip == (MISSING if instruction == JUMP else at)

    @pytest.mark.parametrize(
        ("instruction", "code"), [pytest.param(LOAD, 0x5, id="read"), pytest.param(STORE, 0x7, id="write")]
    )
    def test_supervisor_page_from_user_mode(self, machine: Machine, instruction: bytes, code: int) -> None:
        frame = machine.fault(instruction, user=True, rdi=DATA)
        assert (frame.vector, frame.code, frame.rip) == (PAGE_FAULT, code, USER_CODE)

    def test_read_only_page(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT)
        machine.put64(DATA, 0x77)
        frame = machine.fault(LOAD + STORE, rdi=PLAYGROUND)
        assert (frame.vector, frame.code, frame.rip) == (PAGE_FAULT, 0x3, CODE + len(LOAD))
        assert machine.register("rax") == 0x77

    def test_read_only_page_without_write_protection(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT)
        machine.finish(STORE, rdi=PLAYGROUND, rax=0x55, cr0=CR0 & ~CR0_WP)
        assert machine.get(DATA) == 0x55

    def test_read_only_page_from_user_mode(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, USER_DATA, PRESENT | USER)
        frame = machine.fault(STORE, user=True, rdi=PLAYGROUND, cr0=CR0 & ~CR0_WP)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x7)

    def test_read_only_by_an_upper_level(self, machine: Machine) -> None:
        machine.put64(PD + 8, PT1 | PRESENT | USER)
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE)
        frame = machine.fault(STORE, rdi=PLAYGROUND)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x3)

    @pytest.mark.parametrize(("user", "code"), [(False, 0x11), (True, 0x15)])
    def test_no_execute(self, machine: Machine, user: bool, code: int) -> None:
        machine.map(PLAYGROUND, USER_DATA, PRESENT | USER | NO_EXECUTE)
        frame = machine.fault(JUMP, user=user, rdi=PLAYGROUND + 0x10)
        assert (frame.vector, frame.code, frame.rip) == (PAGE_FAULT, code, PLAYGROUND + 0x10)

    def test_no_execute_page_can_be_read(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT | NO_EXECUTE)
        machine.put64(DATA, 0x1234)
        machine.finish(LOAD, rdi=PLAYGROUND)
        assert machine.register("rax") == 0x1234

    def test_reserved_bit_of_an_entry(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE | 1 << 51)
        frame = machine.fault(LOAD, rdi=PLAYGROUND)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x9)

    def test_no_execute_bit_is_reserved_without_nxe(self, machine: Machine) -> None:
        for page in range(4):  # the machine's own entries with the bit
            machine.put64(PT0 + (0x1FC + page) * 8, 0)
        machine.map(PLAYGROUND, DATA, PRESENT | NO_EXECUTE)
        frame = machine.fault(STORE, rdi=PLAYGROUND, efer=EFER & ~EFER_NXE)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0xB)

    def test_address_that_is_not_canonical(self, machine: Machine) -> None:
        frame = machine.fault(LOAD, rdi=0x8000_0000_0000_0000)
        assert (frame.vector, frame.code, frame.rip) == (GENERAL_PROTECTION, 0, CODE)

    def test_supervisor_mode_execution_prevention(self, machine: Machine) -> None:
        if "smep" not in machine.probe.features.names:
            skip_here("this CPU has no SMEP")
        frame = machine.fault(JUMP, rdi=USER_CODE, cr4=CR4 | CR4_SMEP)
        assert (frame.vector, frame.code, frame.rip) == (PAGE_FAULT, 0x11, USER_CODE)

    def test_supervisor_mode_access_prevention(self, machine: Machine) -> None:
        if "smap" not in machine.probe.features.names:
            skip_here("this CPU has no SMAP")
        frame = machine.fault(LOAD, rdi=USER_DATA, cr4=CR4 | CR4_SMAP)
        assert (frame.vector, frame.code, frame.rip) == (PAGE_FAULT, 0x1, CODE)

    # -- marks -----------------------------------------------------------------------------------

    def test_accessed_and_dirty_at_every_level(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE)
        machine.map(PLAYGROUND + 0x1000, DATA, PRESENT | WRITABLE)
        machine.finish(LOAD + b"\x48\x81\xc7\x00\x10\x00\x00" + STORE, rdi=PLAYGROUND)  # add rdi, 0x1000
        marks = ACCESSED | DIRTY
        assert machine.get(machine.entry(PLAYGROUND)) & marks == ACCESSED
        assert machine.get(machine.entry(PLAYGROUND + 0x1000)) & marks == marks
        assert machine.get(machine.entry(PLAYGROUND + 0x2000)) & marks == 0
        for upper in (PML4, PDPT, PD + 8):
            assert machine.get(upper) & ACCESSED

    def test_refused_write_leaves_no_dirty_mark(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT)
        machine.fault(STORE, rdi=PLAYGROUND)
        assert not machine.get(machine.entry(PLAYGROUND)) & DIRTY

    # -- large pages -----------------------------------------------------------------------------

    def test_two_megabyte_page(self, machine: Machine) -> None:
        machine.put64(PD + 16, LARGE | PRESENT | WRITABLE)  # 0x40_0000 is 0 once more
        machine.put64(DATA + 0x18, 0x4321)
        machine.finish(LOAD + b"\x48\x83\xc7\x08" + STORE, rdi=0x40_0000 + DATA + 0x18)  # add rdi, 8
        assert machine.register("rax") == machine.get(DATA + 0x20) == 0x4321
        assert machine.get(PD + 16) & (ACCESSED | DIRTY) == ACCESSED | DIRTY

    def test_reserved_bit_of_a_large_page(self, machine: Machine) -> None:
        machine.put64(PD + 16, LARGE | PRESENT | WRITABLE | 1 << 14)
        frame = machine.fault(LOAD, rdi=0x40_0000)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x9)

    def test_gigabyte_page(self, machine: Machine) -> None:
        if 0x4000_0000 not in machine.probe.features.page_sizes:
            skip_here("this CPU has no pages of 1 GiB")
        machine.put64(PDPT + 8, LARGE | PRESENT | WRITABLE)
        machine.put64(DATA, 0x9876)
        machine.finish(LOAD, rdi=0x4000_0000 + DATA)
        assert machine.register("rax") == 0x9876
        assert machine.get(PDPT + 8) & (ACCESSED | DIRTY) == ACCESSED

    # -- repair ----------------------------------------------------------------------------------

    def test_repaired_and_tried_again(self, machine: Machine) -> None:
        frame = machine.fault(STORE + b"\xf4", rdi=PLAYGROUND, rax=0x5A5A)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x2)
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE)
        machine.halt(machine.go(), CODE + len(STORE))
        assert machine.get(DATA) == 0x5A5A

    def test_permission_given_and_tried_again(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT)
        frame = machine.fault(STORE + b"\xf4", rdi=PLAYGROUND, rax=0x6B6B)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x3)
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE)
        machine.vm.flush_translations()
        machine.halt(machine.go(), CODE + len(STORE))
        assert machine.get(DATA) == 0x6B6B

    def test_guest_repairs_by_itself(self, machine: Machine) -> None:
        """The handler writes the entry, and INVLPG: mov [rbx], rcx; invlpg [rdi]; add rsp, 8; iretq."""
        handler = b"\x48\x89\x0b\x0f\x01\x3f\x48\x83\xc4\x08\x48\xcf"
        machine.put(CODE + 0x800, handler)
        machine.gate(PAGE_FAULT, CODE + 0x800)
        machine.map(PLAYGROUND, DATA, PRESENT)
        entry = machine.entry(PLAYGROUND)
        machine.finish(LOAD + STORE, rdi=PLAYGROUND, rbx=entry, rcx=DATA | PRESENT | WRITABLE)
        assert machine.get(entry) & DIRTY

    def test_access_across_pages_faults_at_the_second(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, PRESENT | WRITABLE)
        frame = machine.fault(STORE, rdi=PLAYGROUND + 0xFFC, rax=(1 << 64) - 1)
        assert (frame.vector, frame.code) == (PAGE_FAULT, 0x2)
        assert machine.register("cr2") == PLAYGROUND + 0x1000
        assert machine.get(DATA + 0xFFC, 4) == 0
