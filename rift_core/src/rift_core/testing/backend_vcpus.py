"""Conformance of a backend: registers, ownership, kicks, saved state, life and death of vCPUs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from rift_core import doorbell
from rift_core.backend import Watchpoint
from rift_core.capabilities import unknown
from rift_core.errors import HypervisorError, StateError, UnsupportedError
from rift_core.exits import ExitKind
from rift_core.testing.bench import CODE, DATA, Bench, Worker
from rift_core.testing.guests import DEVICE, DONE
from rift_core.testing.requirements import requires
from rift_core.testing.vm import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import VCpu

VALUE = 0xA5A5_0F0F_1234_8001
FAULT = doorbell.DEFAULT_ADDRESS + doorbell.FAULT
_PATTERN = int.from_bytes(bytes(range(0x11, 0x11 + 64)), "little")
_FREE_GROUPS = frozenset({"general", "vector"})  # registers that take any value


class RegisterTests:
    """Registers cross by name, whole, in batches."""

    def test_round_trip_of_each_register(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        known = []
        for register in bench.isa.registers:
            try:
                value = vcpu.read_registers([register.name])[register.name]
            except HypervisorError:
                continue
            known.append(register)
            assert 0 <= value < 1 << register.bits, register.name
        names = {register.name for register in known}
        assert names >= {*bench.isa.general_registers, bench.isa.program_counter}
        for register in known:
            if register.group in _FREE_GROUPS and "control" not in register.summary and register.bits >= 64:
                pattern = _PATTERN >> 8 * (len(register.name) % 7) & (1 << register.bits) - 1
                if register.name == bench.isa.program_counter:
                    pattern = CODE + 0x10
                vcpu.write_registers({register.name: pattern})
                assert vcpu.read_registers([register.name]) == {register.name: pattern}

    def test_all_known_registers_in_one_batch(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        names = [register.name for register in bench.isa.registers if self._known(vcpu, register.name)]
        values = vcpu.read_registers(names)
        assert list(values) == names
        clocks = {"tsc", "cntvct_el0"}  # go on by themselves, and not every hypervisor can set them
        values = {n: v for n, v in values.items() if n not in clocks}
        vcpu.write_registers(values)
        assert {n: v for n, v in vcpu.read_registers(names).items() if n not in clocks} == values
        bench.finish(vcpu)

    @staticmethod
    def _known(vcpu: VCpu, name: str) -> bool:
        try:
            vcpu.read_registers([name])
        except HypervisorError:
            return False
        return True

    def test_write_takes_effect_at_the_next_run(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.forever(g.store_result(DEVICE)))
        for value in (VALUE, 0, (1 << 64) - 1):
            vcpu.write_registers({g.result: value})
            assert bench.run(vcpu).value == value
            assert vcpu.read_registers([g.result]) == {g.result: value}

    def test_new_program_counter(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.spin())
        bench.load(g.store(DEVICE, 4, 2) + g.end(), CODE + 0x800)
        assert bench.run(vcpu).value == 1
        vcpu.write_registers({bench.isa.program_counter: CODE + 0x800})
        assert bench.run(vcpu).value == 2

    @pytest.mark.parametrize("name", ["", "no such register", "RAX", "x\0y"])
    def test_unknown_name_is_refused(self, bench: Bench, name: str) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        with pytest.raises(HypervisorError):
            vcpu.read_registers([name])
        with pytest.raises(HypervisorError):
            vcpu.write_registers({name: 1})
        bench.finish(vcpu)

    @pytest.mark.parametrize("value", [-1, 1 << 64])
    def test_value_beyond_the_width_is_refused(self, bench: Bench, value: int) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        with pytest.raises(HypervisorError):
            vcpu.write_registers({bench.guests.result: value})
        bench.finish(vcpu)

    def test_registers_between_read_exit_and_reply(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.store_result(DATA) + g.end())
        bench.put(DATA, VALUE)
        assert not bench.run(vcpu).is_write
        pc = bench.isa.program_counter
        values = vcpu.read_registers([pc, g.result])  # completes the access with 0
        assert values == {pc: CODE + len(g.load(DEVICE, 8)), g.result: 0}
        bench.finish(vcpu)
        assert bench.number(DATA) == 0

    def test_write_between_read_exit_and_reply(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.store_result(DATA) + g.end())
        assert not bench.run(vcpu).is_write
        vcpu.write_registers({g.result: VALUE})
        bench.finish(vcpu)
        assert bench.number(DATA) == VALUE


class KickTests:
    """A kick is never lost, and INTERRUPTED comes with every access complete."""

    def test_before_run(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        vcpu.kick()
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        bench.finish(vcpu)

    def test_two_kicks_are_one(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        vcpu.kick()
        vcpu.kick()
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        bench.finish(vcpu)

    def test_during_run(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.spin())
        assert bench.run(vcpu).address == DEVICE
        for delay in (0.0, 0.01, 0.05):
            timer = threading.Timer(delay, vcpu.kick)
            timer.start()
            assert vcpu.run().kind is ExitKind.INTERRUPTED
            timer.join()

    def test_from_another_thread_than_the_main_one(self, bench: Bench) -> None:
        ready = threading.Event()
        made: list[VCpu] = []

        def own() -> list[ExitKind]:
            vcpu = bench.vcpu(bench.guests.spin())
            made.append(vcpu)
            ready.set()
            kinds = [vcpu.run().kind]
            vcpu.close()
            return kinds

        worker = Worker(own)
        assert ready.wait(SECONDS)
        made[0].kick()
        assert worker.join() == [ExitKind.INTERRUPTED]
        made[0].kick()

    def test_after_close(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        bench.finish(vcpu)
        vcpu.close()
        vcpu.kick()

    def test_between_read_exit_and_reply(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.store_result(DATA) + g.end())
        assert not bench.run(vcpu).is_write
        vcpu.kick()
        assert vcpu.run(VALUE).kind is ExitKind.INTERRUPTED
        pc = bench.isa.program_counter
        assert vcpu.read_registers([pc, g.result]) == {pc: CODE + len(g.load(DEVICE, 8)), g.result: VALUE}
        bench.finish(vcpu)
        assert bench.number(DATA) == VALUE

    def test_between_write_exit_and_the_next_run(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.store(DEVICE, 4, 2) + g.end())
        assert bench.run(vcpu).value == 1
        vcpu.kick()
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        assert bench.run(vcpu).value == 2
        bench.finish(vcpu)

    def test_coinciding_with_exits(self, bench: Bench) -> None:
        """Kicks at any moment of a guest that exits all the time: each ends one run, no access is lost or doubled."""
        g = bench.guests
        vcpu = bench.vcpu(g.forever(g.load(DEVICE, 8) + g.store_result(DEVICE + 8)))
        seen = threading.Semaphore(0)
        kicks = 100
        missed: list[int] = []

        def kick_and_wait() -> None:
            for number in range(kicks):
                vcpu.kick()
                if not seen.acquire(timeout=SECONDS):
                    missed.append(number)
                    return

        kicker = Worker(kick_and_wait)
        reply: int | None = None
        sent, interrupted, value = 0, 0, 0
        while interrupted < kicks and not missed:
            exit = vcpu.run(reply)
            if exit.kind is ExitKind.INTERRUPTED:
                reply = None
                interrupted += 1
                seen.release()
            elif exit.is_write:
                assert exit.value == value
                reply = None
            else:
                sent += 1
                reply = value = sent * 3
        kicker.join()
        assert not missed

    def test_coinciding_with_a_user_call(self, bench: Bench) -> None:
        """Kicks around the first instructions of a run, one of which leaves user mode: it happens all the same."""
        g = bench.guests
        arguments = (0x11, 0x22, 0x33, 0x44, 0x55, 0x66)
        vcpu = bench.vcpu(g.user_call(0x99, arguments) + g.invalid(), privilege="user")
        start = vcpu.save()
        over = threading.Event()

        def kick_now_and_then() -> None:
            while not over.wait(0.0001):
                vcpu.kick()

        kicker = Worker(kick_now_and_then)
        interrupted = 0
        until = time.monotonic() + 2
        try:
            while interrupted < 3000 and time.monotonic() < until:
                vcpu.restore(start)
                while (exit := vcpu.run()).kind is ExitKind.INTERRUPTED:
                    interrupted += 1
                if exit.address == FAULT:
                    assert bench.isa.read_fault(vcpu, bench, exit) is None, bench.describe(vcpu, exit)
                call = bench.isa.read_user_call(vcpu, bench, exit)
                assert (call.kind, call.address, call.info) == (ExitKind.USER_CALL, 0x99, arguments)
        finally:
            over.set()
            kicker.join()
        assert interrupted


class OwnershipTests:
    """A vCPU belongs to the thread that made or adopted it."""

    def test_another_thread_is_refused(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())

        def intrude() -> None:
            with pytest.raises(StateError):
                vcpu.run()
            with pytest.raises(StateError):
                vcpu.read_registers([bench.guests.result])
            with pytest.raises(StateError):
                vcpu.write_registers({bench.guests.result: 1})
            with pytest.raises(StateError):
                vcpu.adopt()

        Worker(intrude).join()
        bench.finish(vcpu)

    def test_park_and_adopt(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.store_result(DATA) + g.store(DEVICE, 4, 2) + g.end())
        assert bench.run(vcpu).value == 1
        vcpu.write_registers({g.result: VALUE})
        vcpu.park()
        with pytest.raises(StateError):
            vcpu.run()

        def adopt() -> None:
            vcpu.adopt()
            assert vcpu.read_registers([g.result]) == {g.result: VALUE}
            assert bench.run(vcpu).value == 2
            vcpu.park()

        Worker(adopt).join()
        assert bench.number(DATA) == VALUE
        vcpu.adopt()
        bench.finish(vcpu)

    def test_park_completes_an_open_read(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.end())
        assert not bench.run(vcpu).is_write
        vcpu.park()

        def adopt() -> None:
            vcpu.adopt()
            bench.finish(vcpu)
            vcpu.park()

        Worker(adopt).join()
        vcpu.adopt()

    def test_two_vcpus_in_turn(self, bench: Bench) -> None:
        g = bench.guests
        first = bench.vcpu(g.forever(g.add(DATA, 1) + g.store(DEVICE, 4, 1)), index=0)
        second = bench.vcpu(g.forever(g.add(DATA, 1) + g.store(DEVICE, 4, 2)), index=1)
        assert (first.index, second.index) == (0, 1)
        for round_ in range(1, 4):
            assert bench.run(first).value == 1
            assert bench.run(second).value == 2
            assert bench.number(DATA) == 2 * round_

    @requires("parallel_vcpus")
    def test_two_vcpus_at_once(self, bench: Bench) -> None:
        g = bench.guests
        flags = (DATA + 0x100, DATA + 0x200)
        lock = threading.Lock()  # the page tables of the bench have one editor

        def own(index: int) -> None:
            mine, theirs = flags[index], flags[1 - index]
            code = g.store(mine, 4, 1) + g.wait_for(theirs, 1) + g.add(DATA, 500)
            code += g.store(mine + 8, 4, 1) + g.wait_for(theirs + 8, 1) + g.end()
            with lock:
                vcpu = bench.vcpu(code, index=index)
            bench.finish(vcpu)
            vcpu.close()

        workers = [Worker(lambda index=index: own(index)) for index in range(2)]  # type: ignore[misc]
        for worker in workers:
            worker.join()
        assert bench.number(DATA) == 1000


class AtomicTests:
    """``Vm.atomic``: the host's steps on guest words are atomic for the guest, and the guest's for the host."""

    def test_outside_of_the_guest(self, bench: Bench) -> None:
        with bench.vm.atomic(), bench.vm.atomic():
            bench.put(DATA, 1)
        vcpu = bench.vcpu(bench.guests.add(DATA, 3) + bench.guests.end())
        bench.finish(vcpu)
        assert bench.number(DATA) == 4


class LifeTests:
    """Saved state, closing, what is refused."""

    def test_save_and_restore(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.store_result(DATA) + g.store(DEVICE, 4, 2) + g.end())
        assert bench.run(vcpu).value == 1
        vcpu.write_registers({g.result: VALUE})
        saved = vcpu.save()
        names = [bench.isa.program_counter, *bench.isa.general_registers]
        before = vcpu.read_registers(names)
        for _ in range(2):
            assert bench.run(vcpu).value == 2
            assert bench.number(DATA) == VALUE
            bench.put(DATA, 0)
            vcpu.restore(saved)
            assert vcpu.read_registers(names) == before

    def test_save_completes_an_open_read(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.store_result(DATA) + g.end())
        assert not bench.run(vcpu).is_write
        saved = vcpu.save()
        bench.put(DATA, VALUE)
        bench.finish(vcpu)
        assert bench.number(DATA) == 0
        vcpu.restore(saved)
        bench.finish(vcpu)

    def test_restore_into_another_vcpu(self, bench: Bench) -> None:
        g = bench.guests
        first = bench.vcpu(g.store(DEVICE, 4, 1) + g.store(DEVICE, 4, 2) + g.end())
        assert bench.run(first).value == 1
        second = bench.vcpu(index=1)
        second.restore(first.save())
        assert bench.run(second).value == 2

    def test_damaged_state_is_refused(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        saved = vcpu.save()
        for damaged in (b"", saved[:-1], saved[: len(saved) // 2], b"\0" * len(saved), b"?" + saved[1:]):
            with pytest.raises(HypervisorError):
                vcpu.restore(damaged)
        bench.finish(vcpu)

    def test_closing_twice(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        vcpu.close()
        vcpu.close()
        bench.vm.close()
        bench.vm.close()

    def test_closed_vcpu_is_refused(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        vcpu.close()
        with pytest.raises(StateError):
            vcpu.run()

    def test_missing_capability_says_so(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        calls: dict[str, Callable[[], None]] = {
            "debug_single_step": lambda: vcpu.set_debug(single_step=True),
            "debug_hw_breakpoint": lambda: vcpu.set_debug(breakpoints=[CODE]),
            "debug_sw_breakpoint": lambda: vcpu.set_debug(software=True),
            "debug_watchpoint": lambda: vcpu.set_debug(watchpoints=[Watchpoint(DATA, 8, "write")]),
            "inject_exception": lambda: vcpu.inject_exception(*bench.guests.injected),
            "inject_interrupt": lambda: vcpu.inject_interrupt(0x40),
        }
        for name in calls.keys() - bench.vm.capabilities:
            with pytest.raises(UnsupportedError, match=name):
                calls[name]()

    def test_vm_tells_what_the_probe_told(self, bench: Bench) -> None:
        assert bench.vm.capabilities == bench.probe.capabilities
        assert bench.vm.exit_kinds == bench.probe.exit_kinds
        assert not unknown(bench.probe.capabilities), "names that are not in rift_core.capabilities, and without a dot"
        assert ExitKind.MMIO in bench.vm.exit_kinds
        assert ExitKind.INTERRUPTED in bench.vm.exit_kinds

    def test_end_is_seen(self, bench: Bench) -> None:
        vcpu = bench.vcpu(bench.guests.end())
        assert bench.run(vcpu).address == DONE
