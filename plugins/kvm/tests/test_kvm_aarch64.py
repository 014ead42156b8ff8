"""KVM on AArch64: what is not the same on x86-64. Encodings: Arm ARM, chapter C6."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.tools import expect_gap, require_backend, skip_here
from rift_kvm import KvmConfig
from rift_kvm import guest_aarch64 as g

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_kvm.vcpu import KvmVCpu
    from rift_kvm.vm import KvmVm

DEVICE = 0x40_0000  # no memory is there
SECONDS = 20.0
"""Nothing here takes a tenth of this, on an emulated CPU neither."""

LOAD, STORE = 0xF940_0001, 0xF900_0001  # ldr x1, [x0]; str x1, [x0]
LOAD_SIGNED_BYTE = 0x3980_0001  # ldrsb x1, [x0]
LOAD_PAIR = 0xA940_0801  # ldp x1, x2, [x0]
COUNT = (LOAD, 0x9100_0421, STORE, 0x17FF_FFFD)  # again: add x1, x1, 1 between them; b again
SVC = 0xD400_0001

SYSTEM_OFF, SYSTEM_RESET = 0x8400_0008, 0x8400_0009
"""PSCI functions: Arm Power State Coordination Interface (DEN 0022), 5.9 and 5.10."""

DATA_ABORT, EXTERNAL = 0x25, 0x410
SERROR = 0x2F
EL1T = 0x3C4
SERROR_UNMASKED = g.EL1H & ~0x100


def move_to_system(op0: int, op1: int, crn: int, crm: int, op2: int, register: int) -> int:
    """MSR."""
    return 0xD500_0000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | register


def from_system(*numbers: int) -> int:
    """MRS."""
    return move_to_system(*numbers) | 1 << 21


class ArmBench:
    """A VM with the probe's EL1 guest in it, and vCPUs of the calling thread."""

    def __init__(self) -> None:
        from rift_kvm.probe import probe
        from rift_kvm.vm import KvmVm, host_binding

        config = KvmConfig()
        self.result = probe(config)
        self.vm: KvmVm = KvmVm(
            config,
            host_binding(),
            gpa_bits=self.result.limits.gpa_bits,
            capabilities=self.result.capabilities,
            exit_kinds=self.result.exit_kinds,
        )
        self.guest = g.Guest()
        rw = Permission.READ | Permission.WRITE
        self.vm.map_memory(MemoryRegion(Gpa(0), memoryview(self.guest.memory), rw, "guest"))

    def start(self, *instructions: int, index: int = 0, user: bool = False, **registers: int) -> KvmVCpu:
        """A vCPU in front of code; each index has its own place."""
        entry = g.CODE + 0x1000 * index
        self.guest.store(entry, g.code(*instructions, g.STORE_DONE, g.SPIN))
        vcpu = self.vm.create_vcpu(index)
        vcpu.write_registers(self.guest.registers(user=user) | {"pc": entry} | registers)
        return vcpu

    @staticmethod
    def run(vcpu: KvmVCpu, reply: int | None = None) -> Exit:
        """The next exit that is not INTERRUPTED."""
        timer = threading.Timer(SECONDS, vcpu.kick)
        timer.start()
        try:
            exit = vcpu.run(reply)
            while exit.kind is ExitKind.INTERRUPTED and timer.is_alive():
                exit = vcpu.run()
            return exit
        finally:
            timer.cancel()

    def finish(self, vcpu: KvmVCpu, reply: int | None = None) -> None:
        exit = self.run(vcpu, reply)
        assert (exit.kind, exit.address) == (ExitKind.MMIO, g.DONE), exit


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[ArmBench]:
    probe = require_backend("kvm")
    expect_gap(probe.machine, request.node)
    made = ArmBench()
    yield made
    made.vm.close()


def read(vcpu: KvmVCpu, *names: str) -> tuple[int, ...]:
    return tuple(vcpu.read_registers(names).values())


# -- PSCI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "kind"), [(SYSTEM_OFF, ExitKind.POWER_OFF), (SYSTEM_RESET, ExitKind.RESET)], ids=["off", "reset"]
)
def test_psci_ends_the_machine_and_whoever_enters_again_means_it(
    bench: ArmBench, function: int, kind: ExitKind
) -> None:
    vcpu = bench.start(g.HVC, x0=function)
    assert bench.run(vcpu).kind is kind
    bench.finish(vcpu)  # KVM has switched it off, and would sleep


def test_switching_off_stops_the_other_vcpus_until_they_are_entered_again(bench: ArmBench) -> None:
    first = bench.start(g.HVC, x0=SYSTEM_OFF)
    made: list[KvmVCpu] = []
    kinds: list[ExitKind] = []
    counts: list[int] = []
    running, go_on = threading.Event(), threading.Event()

    def count() -> int:
        return int.from_bytes(bench.guest.memory[g.DATA : g.DATA + 8], "little")

    def own() -> None:
        vcpu = bench.start(*COUNT, index=1, x1=0)
        made.append(vcpu)
        running.set()
        for _ in range(2):
            kinds.append(vcpu.run().kind)
            counts.append(count())
            go_on.wait(SECONDS)
        vcpu.close()

    thread = threading.Thread(target=own)
    thread.start()
    assert running.wait(SECONDS)
    wait_for(lambda: count() > 0)
    assert bench.run(first).kind is ExitKind.POWER_OFF
    made[0].kick()
    wait_for(lambda: len(counts) == 1)
    stopped_at = count()
    time.sleep(0.05)
    assert count() == stopped_at
    go_on.set()
    wait_for(lambda: count() > stopped_at)
    made[0].kick()
    thread.join(SECONDS)
    assert kinds == [ExitKind.INTERRUPTED] * 2


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# -- device accesses -------------------------------------------------------------------------------


def test_a_reply_is_sign_extended_as_the_instruction_says(bench: ArmBench) -> None:
    vcpu = bench.start(LOAD_SIGNED_BYTE, x0=DEVICE)
    exit = bench.run(vcpu)
    assert exit[:5] == (ExitKind.MMIO, DEVICE, 1, 0, False)
    bench.finish(vcpu, 0x80)
    assert read(vcpu, "x1") == ((1 << 64) - 128,)


def test_a_store_is_complete_before_anybody_sees_registers(bench: ArmBench) -> None:
    vcpu = bench.start(STORE, x0=DEVICE, x1=7)
    assert bench.run(vcpu)[:5] == (ExitKind.MMIO, DEVICE, 8, 7, True)
    assert read(vcpu, "pc") == (g.CODE + 4,)
    bench.finish(vcpu)


@pytest.mark.parametrize("instruction", [LOAD, STORE], ids=["load", "store"])
def test_the_guest_goes_on_where_the_host_has_sent_it(bench: ArmBench, instruction: int) -> None:
    vcpu = bench.start(instruction, instruction, x0=DEVICE)
    assert bench.run(vcpu).address == DEVICE
    vcpu.write_registers({"pc": g.CODE + 8})
    bench.finish(vcpu)


def test_an_access_that_the_cpu_does_not_describe_is_no_exit_for_handlers(bench: ArmBench) -> None:
    vcpu = bench.start(LOAD_PAIR, x0=DEVICE)
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address) == (ExitKind.FAIL_ENTRY, g.CODE)
    vcpu.write_registers({"pc": g.CODE + 4})
    bench.finish(vcpu)


# -- exceptions from the host ----------------------------------------------------------------------


@pytest.mark.parametrize(("pstate", "entry"), [(g.EL1H, 4), (EL1T, 0), (g.EL0T, 8)], ids=["el1h", "el1t", "el0"])
def test_an_exception_as_the_answer_to_an_access(bench: ArmBench, pstate: int, entry: int) -> None:
    vcpu = bench.start(g.NOP, LOAD, pstate=pstate, x0=DEVICE, x1=0x99)
    assert bench.run(vcpu).address == DEVICE
    vcpu.inject_exception(DATA_ABORT, EXTERNAL)
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address) == (ExitKind.MMIO, g.FAULTS + 8 * entry)
    names = ("elr_el1", "spsr_el1", "esr_el1", "pstate", "x1")
    syndrome = DATA_ABORT << 26 | 1 << 25 | EXTERNAL
    assert read(vcpu, *names) == (g.CODE + 4, pstate, syndrome, g.EL1H, 0x99)


def test_the_flags_survive_an_exception_and_the_rest_of_pstate_is_new(bench: ArmBench) -> None:
    flags = 0xA000_0000
    vcpu = bench.start(g.NOP, pstate=g.EL0T & ~0x3C0 | flags)
    vcpu.inject_exception(0)
    assert bench.run(vcpu).address == g.FAULTS + 8 * 8
    assert read(vcpu, "pstate", "spsr_el1", "elr_el1") == (g.EL1H | flags, flags, g.CODE)


def test_an_serror_arrives_when_it_is_not_masked(bench: ArmBench) -> None:
    vcpu = bench.start(g.NOP, g.NOP, pstate=SERROR_UNMASKED)
    vcpu.inject_exception(SERROR, 0)
    assert bench.run(vcpu).address == g.FAULTS + 8 * 7


def test_no_such_exception_class(bench: ArmBench) -> None:
    vcpu = bench.start()
    for vector in (-1, 64, 1 << 40):
        with pytest.raises(HypervisorError, match="not the vector of an exception"):
            vcpu.inject_exception(vector)


def test_a_system_call_reaches_the_guests_own_vectors(bench: ArmBench) -> None:
    vcpu = bench.start(SVC, user=True)
    assert bench.run(vcpu).address == g.FAULTS + 8 * 8
    assert read(vcpu, "esr_el1")[0] >> 26 == 0x15


# -- waiting ---------------------------------------------------------------------------------------


def test_waiting_for_nothing_is_a_halt(bench: ArmBench) -> None:
    if ExitKind.HALT not in bench.vm.exit_kinds:
        skip_here("this kernel's KVM has no statistics of vCPUs")
    vcpu = bench.start(g.WFI, g.WFI)
    for number in (1, 2):
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address) == (ExitKind.HALT, g.CODE + 4 * number)
    bench.finish(vcpu)


def test_a_kick_does_not_take_the_guest_past_a_wait(bench: ArmBench) -> None:
    """Whenever it comes: the halt is told first, or the guest has not come that far."""
    if ExitKind.HALT not in bench.vm.exit_kinds:
        skip_here("this kernel's KVM has no statistics of vCPUs")
    vcpu = bench.start(g.WFI, 0)  # udf behind it
    for number in range(40):
        vcpu.write_registers({"pc": g.CODE})
        timer = threading.Timer(number / 4000, vcpu.kick)
        timer.start()
        kinds = [vcpu.run().kind]
        timer.join()
        while kinds[-1] is ExitKind.INTERRUPTED:
            assert read(vcpu, "pc") == (g.CODE,)
            kinds.append(vcpu.run().kind)
        assert kinds[-1] is ExitKind.HALT
        assert read(vcpu, "pc") == (g.CODE + 4,)
        if ExitKind.INTERRUPTED not in kinds:  # the kick is not lost either
            assert vcpu.run().kind is ExitKind.INTERRUPTED


def test_waiting_for_a_timer_is_none(bench: ArmBench) -> None:
    # msr cntv_tval_el0, x1; msr cntv_ctl_el0, x2; isb; again: wfi; mrs x3, cntv_ctl_el0; tbz x3, 2, again
    code = (
        move_to_system(3, 3, 14, 3, 0, 1),
        move_to_system(3, 3, 14, 3, 1, 2),
        0xD503_3FDF,
        g.WFI,
        from_system(3, 3, 14, 3, 1, 3),
        0x3617_FFC3,
    )
    vcpu = bench.start(from_system(3, 3, 14, 0, 0, 4))  # mrs x4, cntfrq_el0
    bench.finish(vcpu)
    (frequency,) = read(vcpu, "x4")
    waiting = bench.start(*code, index=1, x1=frequency // 8, x2=1)
    start = time.monotonic()
    bench.finish(waiting)
    assert time.monotonic() - start > 0.1
    assert read(waiting, "cntv_ctl_el0") == (5,)  # enabled, not masked, fired


# -- registers -------------------------------------------------------------------------------------


def test_the_timer_is_the_guests(bench: ArmBench) -> None:
    vcpu = bench.start(from_system(3, 3, 14, 0, 2, 1), from_system(3, 3, 14, 0, 2, 2))  # mrs x1 and x2, cntvct_el0
    bench.finish(vcpu)
    first, second = read(vcpu, "x1", "x2")
    assert 0 < first <= second <= read(vcpu, "cntvct_el0")[0]
    vcpu.write_registers({"cntv_cval_el0": 1 << 40, "cntkctl_el1": 3})
    assert read(vcpu, "cntv_cval_el0", "cntkctl_el1") == (1 << 40, 3)


def test_sp_is_the_one_in_use_of_the_pstate_that_is_written_along(bench: ArmBench) -> None:
    vcpu = bench.start()
    vcpu.write_registers({"sp_el0": 0x100, "sp_el1": 0x200, "pstate": g.EL1H})
    assert read(vcpu, "sp") == (0x200,)
    vcpu.write_registers({"sp": 0x300, "pstate": g.EL0T})
    assert read(vcpu, "sp", "sp_el0", "sp_el1") == (0x300, 0x300, 0x200)
    vcpu.write_registers({"pstate": EL1T, "sp": 0x400})
    assert read(vcpu, "sp", "sp_el0", "sp_el1") == (0x400, 0x400, 0x200)


def test_vectors_have_all_their_bits(bench: ArmBench) -> None:
    # str q1, [x0]; ldr q2, [x0]
    vcpu = bench.start(0x3D80_0001, 0x3DC0_0002)
    value = 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210
    vcpu.write_registers({"v1": value, "v2": 0})
    bench.finish(vcpu)
    assert read(vcpu, "v2") == (value,)
    assert bench.guest.memory[g.DATA : g.DATA + 16] == value.to_bytes(16, "little")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"pstate": 0x3C9}, "pstate failed"),  # EL2h
        ({"pstate": 1 << 32}, "pstate has 32 bits"),
        ({"midr_el1": 0}, "midr_el1 failed"),
        ({"x1": 5, "id_aa64mmfr0_el1": 0}, "id_aa64mmfr0_el1 failed"),
        ({"rax": 0}, "knows no register 'rax'"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(bench: ArmBench, values: dict[str, int], text: str) -> None:
    vcpu = bench.start(x1=1)
    with pytest.raises(HypervisorError, match=text):
        vcpu.write_registers(values)
    assert read(vcpu, "x1") == (1,)
    bench.finish(vcpu)


def test_a_state_holds_vectors_and_system_registers_and_time_goes_on(bench: ArmBench) -> None:
    vcpu = bench.start(g.NOP)
    vcpu.write_registers({"v31": 1 << 100, "ttbr1_el1": 0x5000, "tpidr_el0": 7, "fpcr": 3 << 22})
    saved = vcpu.save()
    (before,) = read(vcpu, "cntvct_el0")
    vcpu.write_registers({"v31": 0, "ttbr1_el1": 0, "tpidr_el0": 0, "fpcr": 0, "pc": 0})
    vcpu.restore(saved)
    names = ("v31", "ttbr1_el1", "tpidr_el0", "fpcr", "pc")
    assert read(vcpu, *names) == (1 << 100, 0x5000, 7, 3 << 22, g.CODE)
    assert read(vcpu, "cntvct_el0")[0] > before
    bench.finish(vcpu)


# -- debugging -------------------------------------------------------------------------------------


def test_a_step_over_a_device_access_ends_behind_it(bench: ArmBench) -> None:
    vcpu = bench.start(STORE, g.NOP, x0=DEVICE)
    vcpu.set_debug(single_step=True)
    assert bench.run(vcpu).kind is ExitKind.MMIO
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, g.CODE + 4, 1)
    vcpu.set_debug()
    bench.finish(vcpu)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_watchpoint_sees_its_bytes_and_no_others(bench: ArmBench, size: int) -> None:
    # strb w1, [x0, 15 - size]; strb w1, [x0, 16 - size]
    vcpu = bench.start(*(0x3900_0001 | (at - size) << 10 for at in (15, 16)), x1=0x55)
    vcpu.set_debug(watchpoints=[Watchpoint(g.DATA + 16 - size, size, "write")])
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address, exit.info[:2]) == (ExitKind.DEBUG, g.CODE + 4, (4, g.DATA + 16 - size))
    assert bench.guest.memory[g.DATA + 15 - size] == 0x55
    vcpu.set_debug()
    bench.finish(vcpu)


@pytest.mark.parametrize(
    ("access", "stops_at"), [("read", 0), ("write", 4), ("access", 0)], ids=["read", "write", "access"]
)
def test_a_watchpoint_sees_its_kind_of_access(bench: ArmBench, access: str, stops_at: int) -> None:
    vcpu = bench.start(LOAD, STORE)
    vcpu.set_debug(watchpoints=[Watchpoint(g.DATA, 8, access)])  # type: ignore[arg-type]
    assert bench.run(vcpu).address == g.CODE + stops_at
    vcpu.set_debug()
    bench.finish(vcpu)


def test_no_more_points_than_the_cpu_has(bench: ArmBench) -> None:
    vcpu = bench.start()
    with pytest.raises(HypervisorError, match="more than"):
        vcpu.set_debug(watchpoints=[Watchpoint(g.DATA + 8 * at, 8, "write") for at in range(17)])
    with pytest.raises(UnsupportedError):
        vcpu.set_debug(watchpoints=[Watchpoint(g.DATA + 1, 8, "write")])
    bench.finish(vcpu)
