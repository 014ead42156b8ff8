"""Behaviour of AArch64 address translation: Arm ARM, chapter D8; encodings: C6."""

from __future__ import annotations

import pytest

from rift_core.exits import ExitKind
from rift_core.testing.aarch64_machine import (
    ACCESSED,
    ADD,
    BRANCH,
    BRK,
    CODE,
    DATA,
    EL0T,
    EL1H,
    INNER_SHAREABLE,
    LOAD,
    MASKED,
    NOP,
    NORMAL,
    PLAYGROUND,
    PXN,
    READ_ONLY,
    STORE,
    TABLE1,
    TABLE2,
    USER,
    USER_CODE,
    USER_DATA,
    UXN,
    VALID,
    WFI,
    WRITE,
    Machine,
)

TRANSLATION, ACCESS_FLAG, PERMISSION = 0x04, 0x08, 0x0C  # fault status codes, with the level added


class PagingTests:
    """Aborts."""

    @pytest.mark.parametrize(("instruction", "write"), [(LOAD, 0), (STORE, WRITE)], ids=["load", "store"])
    def test_translation_fault(self, machine: Machine, instruction: int, write: int) -> None:
        frame = machine.fault(NOP, instruction, x1=PLAYGROUND + 0x123)
        assert (frame.offset, frame.cls, frame.iss & 0x7F) == (0x200, 0x25, write | TRANSLATION | 3)
        assert (frame.far, frame.elr, frame.spsr) == (PLAYGROUND + 0x123, CODE + 4, EL1H | MASKED)
        assert machine.register("pstate") == EL1H | MASKED

    @pytest.mark.parametrize(("address", "level"), [(1 << 30, 1), (1 << 22, 2)])
    def test_level_of_a_translation_fault(self, machine: Machine, address: int, level: int) -> None:
        frame = machine.fault(LOAD, x1=address)
        assert (frame.cls, frame.iss & 0x3F, frame.far) == (0x25, TRANSLATION | level, address)

    def test_address_of_no_half(self, machine: Machine) -> None:
        assert machine.fault(LOAD, x1=1 << 45).iss & 0x3F == TRANSLATION  # level 0
        assert machine.fault(LOAD, x1=0xFFFF_FFFF_FFFF_F000).iss & 0x3F == TRANSLATION  # EPD1

    def test_store_to_a_read_only_page(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, NORMAL | READ_ONLY)
        machine.put64(DATA, 77)
        machine.finish(LOAD, x1=PLAYGROUND)
        assert machine.register("x0") == 77
        frame = machine.fault(STORE, x0=5, x1=PLAYGROUND)
        assert (frame.cls, frame.iss & 0x7F, machine.get(DATA)) == (0x25, WRITE | PERMISSION | 3, 77)

    def test_access_flag(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, NORMAL & ~ACCESSED)
        assert machine.fault(LOAD, x1=PLAYGROUND).iss & 0x3F == ACCESS_FLAG | 3

    def test_user_mode_and_pages_of_the_supervisor(self, machine: Machine) -> None:
        frame = machine.fault(LOAD, x1=DATA, user=True)
        assert (frame.offset, frame.cls, frame.iss & 0x7F) == (0x400, 0x24, PERMISSION | 3)
        assert (frame.far, frame.elr, frame.spsr) == (DATA, USER_CODE, EL0T | MASKED)

    def test_supervisor_and_pages_of_user_mode(self, machine: Machine) -> None:
        machine.put64(USER_DATA, 9)
        machine.finish(LOAD, x1=USER_DATA)
        assert machine.register("x0") == 9

    @pytest.mark.parametrize(("flags", "status"), [(NORMAL | PXN, PERMISSION | 3), (0, TRANSLATION | 3)])
    def test_instruction_abort(self, machine: Machine, flags: int, status: int) -> None:
        machine.map(PLAYGROUND, CODE, flags)
        frame = machine.fault(BRANCH, x1=PLAYGROUND)
        assert (frame.offset, frame.cls, frame.iss & 0x3F) == (0x200, 0x21, status)
        assert (frame.far, frame.elr) == (PLAYGROUND, PLAYGROUND)

    def test_what_user_mode_may_write_the_supervisor_cannot_execute(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, CODE, NORMAL | USER)
        assert machine.fault(BRANCH, x1=PLAYGROUND).cls == 0x21

    def test_user_mode_cannot_execute(self, machine: Machine) -> None:
        frame = machine.fault(BRANCH, x1=USER_DATA, user=True)
        assert (frame.offset, frame.cls, frame.iss & 0x3F, frame.far) == (0x400, 0x20, PERMISSION | 3, USER_DATA)
        machine.map(PLAYGROUND, CODE, NORMAL | USER | READ_ONLY | UXN)
        assert machine.fault(BRANCH, x1=PLAYGROUND, user=True).cls == 0x20

    @pytest.mark.parametrize(("table", "address"), [(TABLE1 + 8, 1 << 30), (TABLE2 + 16, 1 << 22)], ids=["1G", "2M"])
    def test_blocks(self, machine: Machine, table: int, address: int) -> None:
        machine.put64(table, VALID | ACCESSED | INNER_SHAREABLE)
        machine.put64(DATA + 8, 0x1234)
        machine.finish(LOAD, x1=address + DATA + 8)
        assert machine.register("x0") == 0x1234

    def test_fix_and_retry(self, machine: Machine) -> None:
        machine.put64(DATA, 0x55)
        machine.fault(LOAD, WFI, x1=PLAYGROUND)
        machine.map(PLAYGROUND, DATA, NORMAL)
        machine.vm.flush_translations()
        exit = machine.go()
        assert (exit.kind, machine.register("pc"), machine.register("x0")) == (ExitKind.HALT, CODE + 8, 0x55)

    def test_fault_of_half_an_access(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, NORMAL)
        machine.put(DATA, bytes(0x1000))
        frame = machine.fault(STORE, x0=0xFFFF_FFFF_FFFF_FFFF, x1=PLAYGROUND + 0xFFC)
        assert (frame.cls, frame.far) == (0x25, PLAYGROUND + 0x1000)

    def test_address_translation_instruction(self, machine: Machine) -> None:
        machine.map(PLAYGROUND, DATA, NORMAL)
        at, read_par = 0xD508_7801, 0xD538_7400  # at s1e1r, x1; mrs x0, par_el1
        machine.finish(at, read_par, x1=PLAYGROUND + 0x10)
        assert machine.register("x0") & 0x0000_FFFF_FFFF_F001 == DATA
        machine.finish(at, read_par, x1=PLAYGROUND + 0x1000)
        assert machine.register("x0") & 0x7F == (TRANSLATION | 3) << 1 | 1

    def test_self_modifying_code(self, machine: Machine) -> None:
        # str w0, [x1]; dsb sy; ic ivau, x1; dsb sy; isb; then what was written
        write = (0xB900_0020, 0xD503_3F9F, 0xD50B_7521, 0xD503_3F9F, 0xD503_3FDF)
        machine.finish(*write, BRK, x0=ADD, x1=CODE + 4 * len(write))
        assert machine.register("x0") == ADD + 1
