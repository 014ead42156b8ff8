"""Exits of Apple silicon, written down one by one: what the backend makes of them, and what it answers."""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING

import life
import pytest
import stand_in_build

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError, StateError
from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.exits import Exit

CANCELED, EXCEPTION, VTIMER, NO_MORE = 0, 1, 2, 999
PC, CPSR, SYSTEM = 31, 34, 0x1_0000
X = tuple(range(31))
ELR, SPSR, ESR = (SYSTEM + number for number in (0xC201, 0xC200, 0xC290))
CNTV_CTL, CNTV_CVAL, VBAR = (SYSTEM + number for number in (0xDF19, 0xDF1A, 0xC600))
START = 0x1_0000
RAM, DEVICE = 0x1_2000, 0x4000_0000
IL = 1 << 25
ISV, SSE, SF, CM, S1PTW, WNR = 1 << 24, 1 << 21, 1 << 15, 1 << 8, 1 << 7, 1 << 6


def syndrome(exception_class: int, iss: int = 0) -> int:
    """ESR_EL2 of an exit."""
    return exception_class << 26 | IL | iss


def access(size: int, register: int, more: int = 0) -> int:
    """ISS of a data abort that describes its access."""
    return syndrome(0x24, ISV | {1: 0, 2: 1, 4: 2, 8: 3}[size] << 22 | register << 16 | more | 7)


class Script(life.Life):
    """A machine over the scripted framework."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.rift_script_get_register.restype = ctypes.c_uint64
        self.library.rift_stand_in_control(b"reset")
        self.library.rift_script_reset()
        super().__init__(path, "aarch64")
        self.vcpu.write_registers(self.guest.registers())

    def exit(
        self, value: int = 0, *, reason: int = EXCEPTION, far: int = 0, ipa: int = 0, times: int = 1,
        registers: dict[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Write one exit down, PC at START."""
        self.library.rift_script_exit(reason, *(ctypes.c_uint64(n) for n in (value, far, ipa)), times)
        for number, content in {PC: START, **(registers or {})}.items():
            self.library.rift_script_register(number, ctypes.c_uint64(content))

    def get(self, number: int) -> int:
        return int(self.library.rift_script_get_register(number))

    @property
    def pending(self) -> list[int]:
        """The lines that were raised, entry by entry."""
        return [self.library.rift_script_raised(at) for at in range(self.library.rift_script_raised_count())]

    def run_out(self, reply: int | None = None) -> None:
        """To the end of the script, without an exit before."""
        exit = self.vcpu.run(reply)
        assert (exit.kind, exit.raw_reason) == (ExitKind.UNKNOWN, NO_MORE), exit

    def mmio(self, value: int, ipa: int = DEVICE, **more: dict[int, int]) -> Exit:
        self.exit(value, ipa=ipa, **more)  # type: ignore[arg-type]
        exit = self.vcpu.run()
        assert exit.kind is ExitKind.MMIO
        assert exit.address == ipa
        return exit


@pytest.fixture(scope="session")
def scripted(stand_in_folder: Path) -> Path:
    return stand_in_build.build(stand_in_folder, "scripted-arm64", ("stand_in.c", "scripted_arm64.c"))


@pytest.fixture
def script(scripted: Path) -> Iterator[Script]:
    with Script(scripted) as made:
        yield made


# -- devices -------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_load_is_extended_as_its_instruction_says(script: Script, size: int) -> None:
    pattern = 0x8182_8384_8586_8788 & (1 << 8 * size) - 1
    for more, bits in ((0, 0), (SSE, 32), (SSE | SF, 64)):
        if bits and 8 * size >= bits:
            continue
        exit = script.mmio(access(size, 5, more))
        assert (exit.size, exit.is_write) == (size, False)
        assert script.get(PC) == START, "an exception could still be raised there"
        script.run_out(pattern)
        negative = bits and pattern >> (8 * size - 1)
        expected = pattern | ((1 << bits) - 1) & ~((1 << 8 * size) - 1) if negative else pattern
        assert script.get(X[5]) == expected, (size, bits)
        assert script.get(PC) == START + 4


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_store_shows_its_bytes(script: Script, size: int) -> None:
    exit = script.mmio(access(size, 7, WNR), registers={X[7]: 0x1122_3344_5566_7788})
    assert (exit.size, exit.is_write, exit.value) == (size, True, 0x1122_3344_5566_7788 & (1 << 8 * size) - 1)
    script.run_out()
    assert script.get(PC) == START + 4


def test_register_31_is_zero(script: Script) -> None:
    exit = script.mmio(access(8, 31, WNR))
    assert exit.value == 0
    script.run_out()
    before = script.get(PC)
    script.mmio(access(8, 31))
    script.run_out(0x77)
    assert script.get(PC) == before, "not what the number 31 means to the framework"


def test_an_access_that_nobody_describes_is_a_fault(script: Script) -> None:
    for iss in (7, 7 | WNR, ISV | S1PTW | 7):
        script.exit(syndrome(0x24, iss), ipa=DEVICE)
        exit = script.vcpu.run()
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.MEMORY_FAULT, DEVICE, syndrome(0x24, iss))
        assert script.get(PC) == START


def test_cache_maintenance_of_a_device_does_nothing(script: Script) -> None:
    script.exit(syndrome(0x24, CM | WNR | 7), ipa=DEVICE)
    script.run_out()
    assert script.get(PC) == START + 4


def test_memory_that_is_there_enters_again_but_not_for_ever(script: Script) -> None:
    script.exit(access(8, 1), ipa=RAM, times=1000)
    script.exit(syndrome(0x20, 7), ipa=START, times=1000)
    script.run_out()
    assert script.get(PC) == START
    script.library.rift_script_reset()
    script.exit(access(8, 1), ipa=RAM, times=1_000_000)
    exit = script.vcpu.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, RAM)


def test_fetching_where_nothing_is(script: Script) -> None:
    script.exit(syndrome(0x20, 7), ipa=DEVICE)
    exit = script.vcpu.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, DEVICE)


# -- system registers --------------------------------


def system(op0: int, op1: int, crn: int, crm: int, op2: int, register: int, read: bool) -> int:
    """The syndrome of a trapped MRS or MSR."""
    return syndrome(0x18, op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | register << 5 | crm << 1 | read)


def test_an_unknown_register_is_an_exit(script: Script) -> None:
    number = 3 << 14 | 1 << 11 | 15 << 7 | 2 << 3 | 4
    script.exit(system(3, 1, 15, 2, 4, 9, read=True))
    exit = script.vcpu.run()
    assert (exit.kind, exit.address, exit.is_write, exit.size) == (ExitKind.SYSTEM_REGISTER, number, False, 8)
    script.run_out(0xFEED)
    assert (script.get(X[9]), script.get(PC)) == (0xFEED, START + 4)
    script.exit(system(3, 1, 15, 2, 4, 9, read=False), registers={X[9]: 0xBEEF})
    exit = script.vcpu.run()
    assert (exit.address, exit.is_write, exit.value) == (number, True, 0xBEEF)
    script.run_out()
    assert script.get(PC) == START + 4


def test_the_locks_of_debuggers_are_open(script: Script) -> None:
    script.exit(system(2, 0, 1, 1, 4, 3, read=True))  # OSLSR_EL1
    script.run_out()
    assert (script.get(X[3]), script.get(PC)) == (8, START + 4)
    for crm in (0, 3):  # OSLAR_EL1, OSDLR_EL1
        script.exit(system(2, 0, 1, crm, 4, 31, read=False))
        script.run_out()
        assert script.get(PC) == START + 4


def test_the_counter_is_the_hosts(script: Script) -> None:
    script.exit(system(3, 3, 14, 0, 1, 4, read=True))  # CNTPCT_EL0
    script.run_out()
    assert (script.get(X[4]), script.get(PC)) == (1_000_000, START + 4)


# -- calls ------------------------------


def call(script: Script, secure: bool, function: int, *arguments: int) -> None:
    """HVC leaves PC behind itself, SMC does not."""
    values = {X[0]: function, **{X[1 + at]: value for at, value in enumerate(arguments)}}
    script.exit(syndrome(0x17 if secure else 0x16), registers={PC: START if secure else START + 4, **values})


@pytest.mark.parametrize("secure", [False, True], ids=["hvc", "smc"])
@pytest.mark.parametrize(
    ("function", "argument", "result"),
    [
        (0x8000_0000, 0, 0x1_0001),  # SMCCC_VERSION
        (0x8400_0000, 0, 0x1_0001),  # PSCI_VERSION
        (0x7777_8400_0000, 0, 0x1_0001),  # the identifier is in W0
        (0x8400_0002, 0, (1 << 64) - 3),  # CPU_OFF: threads are the host's business
        (0xC400_0003, 1, (1 << 64) - 3),  # CPU_ON
        (0xC400_0004, 0, 0),  # AFFINITY_INFO of itself: on
        (0xC400_0004, 1, 1),
        (0x8400_0006, 0, 2),  # MIGRATE_INFO_TYPE
        (0x8400_000A, 0x8400_0008, 0),  # PSCI_FEATURES of SYSTEM_OFF
        (0x8400_000A, 0x8400_0012, (1 << 64) - 1),
        (0x8400_0014, 0, (1 << 64) - 1),  # not supported
    ],
)
def test_psci_is_answered(script: Script, secure: bool, function: int, argument: int, result: int) -> None:
    call(script, secure, function, argument)
    script.run_out()
    assert (script.get(X[0]), script.get(PC)) == (result, START + 4)


@pytest.mark.parametrize("secure", [False, True], ids=["hvc", "smc"])
def test_the_end_by_psci(script: Script, secure: bool) -> None:
    for function, kind in ((0x8400_0008, ExitKind.POWER_OFF), (0x8400_0009, ExitKind.RESET)):
        call(script, secure, function)
        assert script.vcpu.run().kind is kind
        assert script.get(PC) == START + 4


@pytest.mark.parametrize("secure", [False, True], ids=["hvc", "smc"])
@pytest.mark.parametrize("function", [0x77, 0xC600_0001, 0x8600_0000, 0x8400_0020])
def test_other_calls_are_exits(script: Script, secure: bool, function: int) -> None:
    call(script, secure, function, 1, 2, 3, 4, 5, 6)
    exit = script.vcpu.run()
    assert (exit.kind, exit.address, exit.info) == (ExitKind.HYPERCALL, function, (1, 2, 3, 4, 5, 6))
    script.run_out(0x99)
    assert (script.get(X[0]), script.get(PC)) == (0x99, START + 4)


def test_an_exception_as_the_answer_belongs_to_the_instruction(script: Script) -> None:
    for secure in (False, True):
        call(script, secure, 0x77)
        script.vcpu.run()
        script.vcpu.inject_exception(0x18, 0x12345)
        assert script.get(ELR) == START
        assert script.get(ESR) == syndrome(0x18, 0x12345)
        assert script.get(PC) == script.get(VBAR) + 0x200
        script.run_out()
        script.vcpu.write_registers({"pstate": 0x3C5})
    script.mmio(access(8, 1))
    script.vcpu.inject_exception(0x25, 0x50)
    assert (script.get(ELR), script.get(SPSR)) == (START, 0x3C5)
    script.run_out()


# -- waiting, the timer, what is not the guest's ------------------------------


def test_wfi_without_a_timer_is_an_exit(script: Script) -> None:
    for control in (0, 2, 3, 6):  # off, or masked
        script.exit(syndrome(0x01), registers={CNTV_CTL: control, CNTV_CVAL: 0})
        exit = script.vcpu.run()
        assert (exit.kind, exit.address) == (ExitKind.HALT, START)
        script.run_out()
        assert script.get(PC) == START + 4


def test_wfi_waits_for_the_timer(script: Script) -> None:
    ticks = 24_000_000 // 20
    for compare, least in ((1_000_000 + ticks, 0.05), (1_000_000, 0), (0, 0)):
        begun = time.monotonic()
        script.exit(syndrome(0x01), registers={CNTV_CTL: 1, CNTV_CVAL: compare})
        script.run_out()
        assert least <= time.monotonic() - begun < least + 5
        assert script.get(PC) == START + 4


def test_wfe_and_waits_with_a_limit_go_on(script: Script) -> None:
    for instruction in (1, 2, 3):
        script.exit(syndrome(0x01, instruction))
        script.run_out()
        assert script.get(PC) == START + 4


def test_the_timers_exit_masks_it_until_the_guest_has_seen_to_it(script: Script) -> None:
    masked = script.library.rift_script_timer_is_masked
    script.exit(reason=VTIMER, registers={CNTV_CTL: 5})
    script.exit(syndrome(0x01, 1), registers={CNTV_CTL: 5})
    script.run_out()
    assert masked(), "it would come again and again"
    script.exit(syndrome(0x01, 1), registers={CNTV_CTL: 7})  # the guest masks it itself
    script.run_out()
    script.exit(syndrome(0x01, 1), registers={CNTV_CTL: 1})
    script.run_out()
    assert not masked()


def test_a_canceled_run_is_nothing(script: Script) -> None:
    before = script.vcpu.exit_count
    script.exit(reason=CANCELED, times=10)
    script.run_out()
    assert script.vcpu.exit_count == before + 1, "only the end of the script"
    assert script.get(PC) == START


@pytest.mark.parametrize("exception_class", [0x00, 0x07, 0x0E, 0x19, 0x2F, 0x3F])
def test_what_nobody_knows_is_shown(script: Script, exception_class: int) -> None:
    script.exit(syndrome(exception_class, 0x123))
    exit = script.vcpu.run()
    assert (exit.kind, exit.raw_reason) == (ExitKind.UNKNOWN, exception_class)


# -- debugging -------------------------------


def test_debug_exits(script: Script) -> None:
    assert script.library.rift_script_traps() == 0
    script.vcpu.set_debug(single_step=True, breakpoints=(START,), watchpoints=(Watchpoint(RAM, 8, "write"),))
    assert script.library.rift_script_traps() == 3
    for exception_class, what, far, address in (
        (0x32, 1, 0, 0),
        (0x3C, 2, 0, 0),
        (0x30, 3, 0, 0),
        (0x34, 4, RAM + 3, RAM),
        (0x34, 4, RAM - 8, RAM),
    ):
        script.exit(syndrome(exception_class), far=far)
        exit = script.vcpu.run()
        assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START, what)
        assert exit.info[1] == address
        assert script.get(PC) == START
    script.vcpu.set_debug()
    assert script.library.rift_script_traps() == 0


def test_a_step_over_what_the_backend_carries_out(script: Script) -> None:
    """A load from a device, an answered MRS and a PSCI call are steps, though the CPU makes none of them."""
    script.vcpu.set_debug(single_step=True)
    script.mmio(access(8, 1))
    exit = script.vcpu.run(7)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 4, 1)
    script.exit(system(2, 0, 1, 1, 4, 3, read=True))
    exit = script.vcpu.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 4, 1)
    call(script, False, 0x8400_0000)
    exit = script.vcpu.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 4, 1)
    script.run_out()


def test_steps_need_the_bit_of_pstate(script: Script) -> None:
    script.vcpu.set_debug(single_step=True)
    script.exit(syndrome(0x32))
    script.vcpu.run()
    assert script.get(CPSR) >> 21 & 1, "set at each entry"
    assert not script.vcpu.read_registers(("pstate",))["pstate"] >> 21 & 1, "and not the guest's"


# -- flushes -------------------------------


def test_a_flush_leaves_the_vcpu_as_it_was(script: Script) -> None:
    names = tuple(script.vm.registers.ids)
    readable = [name for name in names if name not in ("cntvct_el0", "cntpct_el0")]
    script.run_out()
    before = script.vcpu.read_registers(readable)
    runs = script.library.rift_stand_in_calls(b"hv_vcpu_run")
    script.vm.flush_translations()
    script.exit(reason=CANCELED)
    script.run_out()
    assert script.library.rift_stand_in_calls(b"hv_vcpu_run") == runs + 3, "the flush, the exit, the end"
    after = script.vcpu.read_registers(readable)
    assert {name: after[name] for name in readable if after[name] != before[name]} == {}


def test_the_first_entry_of_all_is_the_guests(script: Script) -> None:
    """Nothing can be cached yet, so that nothing of ours runs in its place."""
    script.vcpu.write_registers({"ttbr0_el1": 0x4000, "tcr_el1": 0x10})
    script.vm.flush_translations()
    script.run_out()
    assert script.library.rift_stand_in_calls(b"hv_vcpu_run") == 1
    assert script.library.rift_stand_in_calls(b"hv_vm_map") == 1
    script.vcpu.write_registers({"ttbr0_el1": 0x8000})
    script.run_out()
    assert script.library.rift_stand_in_calls(b"hv_vcpu_run") == 3
    assert script.library.rift_stand_in_calls(b"hv_vm_map") == 2, "the page with our own code"


# -- interrupts ----------------------------

IRQ_MASK, FIQ_MASK = 0x80, 0x40


@pytest.mark.parametrize(("kind", "mask", "offset"), [(0, IRQ_MASK, 0x280), (1, FIQ_MASK, 0x300)])
def test_an_interrupt_that_the_guest_takes_is_delivered_at_once(
    script: Script, kind: int, mask: int, offset: int
) -> None:
    script.vcpu.write_registers({"pstate": 0x3C5 & ~mask, "pc": START + 0x40})
    script.vcpu.inject_interrupt(kind)
    with pytest.raises(StateError, match="waits already"):
        script.vcpu.inject_interrupt(kind)
    script.run_out()
    assert script.get(PC) == script.get(VBAR) + offset
    assert (script.get(ELR), script.get(SPSR)) == (START + 0x40, 0x3C5 & ~mask)
    assert script.get(CPSR) & 0x3C0 == 0x3C0
    assert script.pending == [], "no line was raised"
    script.vcpu.inject_interrupt(kind)


@pytest.mark.parametrize(("kind", "offset"), [(0, 0x80), (1, 0x100)])
@pytest.mark.parametrize("origin", [0, 0x200, 0x400])
def test_a_masked_interrupt_is_delivered_once(script: Script, kind: int, offset: int, origin: int) -> None:
    vector = script.get(VBAR) + offset + origin
    script.vcpu.inject_interrupt(kind)
    script.exit(reason=CANCELED, times=2)
    script.exit(syndrome(0x30, 0x22), registers={PC: vector})  # it has arrived
    script.exit(syndrome(0x01, 1), registers={PC: vector})
    script.run_out()
    assert script.pending == [kind] * 3, "the line is raised at each entry before, and at none afterwards"
    assert script.library.rift_script_traps() == 0, "nobody debugs"
    script.vcpu.inject_interrupt(kind)


def test_a_breakpoint_of_the_host_at_a_vector_is_shown(script: Script) -> None:
    vector = script.get(VBAR) + 0x280
    script.vcpu.set_debug(breakpoints=(vector,))
    script.vcpu.inject_interrupt(0)
    script.exit(syndrome(0x30, 0x22), registers={PC: vector})
    exit = script.vcpu.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, vector, 3)
    script.run_out()
    assert script.pending == [0]


def test_brk_stays_the_guests_while_an_interrupt_waits(script: Script) -> None:
    script.vcpu.inject_interrupt(0)
    script.exit(syndrome(0x3C, 0x1234))
    script.run_out()
    assert (script.get(ELR), script.get(ESR)) == (START, syndrome(0x3C, 0x1234))
    assert script.get(PC) == script.get(VBAR) + 0x200


def test_without_room_for_breakpoints_it_comes_with_an_exit(script: Script) -> None:
    script.vcpu.set_debug(breakpoints=tuple(START + 4 * at for at in range(4)))  # of 6
    script.vcpu.inject_interrupt(0)
    script.exit(reason=CANCELED)
    script.exit(reason=CANCELED, registers={CPSR: 0x345})  # the mask is open now
    script.run_out()
    assert script.pending == []
    assert script.get(PC) == script.get(VBAR) + 0x280


def test_an_interrupt_ends_a_wait(script: Script) -> None:
    script.vcpu.inject_interrupt(0)
    script.exit(syndrome(0x01))
    script.run_out()
    assert script.get(PC) == START + 4


def test_there_are_two_kinds_of_interrupts(script: Script) -> None:
    for number in (2, 64, 1 << 40):
        with pytest.raises(HypervisorError, match="not the vector of an interrupt"):
            script.vcpu.inject_interrupt(number)


def test_a_waiting_interrupt_is_saved(script: Script) -> None:
    script.vcpu.inject_interrupt(1)
    state = script.vcpu.save()
    script.vcpu.restore(state)
    with pytest.raises(StateError):
        script.vcpu.inject_interrupt(0)
