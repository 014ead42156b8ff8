"""Interrupts, exceptions and debugging, exit by exit; and exits that make no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from vmx_script import (
    CODE,
    DATA,
    DEVICE,
    DR0,
    DR6,
    F_CPU,
    F_DR7,
    F_EVENT,
    F_EXC_BITMAP,
    F_IDT_INFO,
    F_INTERRUPTIBILITY,
    F_IRQ_INFO,
    NO_MORE,
    RBX,
    RIP,
    START,
    UD,
    VIRTUAL,
    event,
)

from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from vmx_script import Script


# -- events ------------------------------


def test_an_interrupt_waits_for_the_window(script: Script) -> None:
    script.vcpu.write_registers({"rflags": 2})
    script.vcpu.inject_interrupt(0x41)
    script.exit(7, rflags=0x202)
    script.exit(1, rflags=0x202)
    assert not script.vmcs(F_CPU) >> 2 & 1
    script.run_out()
    assert script.delivered == 1 << 31 | 0x41
    assert not script.vmcs(F_CPU) >> 2 & 1, "the window is closed again"


def test_no_interrupt_in_the_shadow_of_sti(script: Script) -> None:
    script.vcpu.write_registers({"rflags": 0x202})
    script.exit(1, rflags=0x202)
    script.field(F_INTERRUPTIBILITY, 1)
    script.run_out()
    script.vcpu.inject_interrupt(0x41)
    script.exit(1)
    script.field(F_INTERRUPTIBILITY, 0)
    script.run_out()
    assert script.delivered == 1 << 31 | 0x41


def test_one_interrupt_at_a_time_and_no_exceptions_vector(script: Script) -> None:
    from rift_core.errors import HypervisorError, StateError

    with pytest.raises(HypervisorError):
        script.vcpu.inject_interrupt(31)
    with pytest.raises(HypervisorError):
        script.vcpu.inject_interrupt(256)
    script.vcpu.inject_interrupt(0x20)
    with pytest.raises(StateError, match="waits already"):
        script.vcpu.inject_interrupt(0x21)


# -- debugging ------------------------------


def test_steps_use_the_monitor_trap(script: Script) -> None:
    script.vcpu.set_debug(single_step=True)
    assert script.vmcs(F_CPU) >> 27 & 1
    script.exit(37, rip=START + 1)
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 1, 1)
    script.vcpu.set_debug()
    assert not script.vmcs(F_CPU) >> 27 & 1


def test_an_instruction_that_is_carried_out_here_is_a_step_too(script: Script) -> None:
    script.vcpu.set_debug(single_step=True)
    script.exit(10, length=2, rax=0, rcx=0)  # CPUID
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 2, 1)
    script.exit(30, qualification=0x60 << 16 | 1 << 3, length=2)
    assert script.run().kind is ExitKind.PORT_IO
    exit = script.run(1)
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START + 2, 1)


def test_int3_stops_here_and_only_while_it_should(script: Script) -> None:
    script.vcpu.set_debug(software=True)
    assert script.vmcs(F_EXC_BITMAP) == 1 << 3
    script.exit(0, length=1)
    script.field(F_IRQ_INFO, 1 << 31 | 6 << 8 | 3)
    exit = script.run()
    assert (exit.kind, exit.address, exit.info[0]) == (ExitKind.DEBUG, START, 2)
    assert script.get(RIP) == START
    script.vcpu.set_debug()
    assert script.vmcs(F_EXC_BITMAP) == 0


def test_breakpoints_and_watchpoints_keep_the_guests_registers(script: Script) -> None:
    from rift_core.backend import Watchpoint

    script.vcpu.write_registers({"dr0": 0x1111, "dr7": 0x402})
    script.vcpu.set_debug(breakpoints=[0x5000], watchpoints=[Watchpoint(0x6000, 8, "write")])
    assert (script.get(DR0), script.get(DR0 + 1)) == (0x5000, 0x6000)
    assert script.vmcs(F_DR7) == 0x400 | 2 | 8 | (1 | 2 << 2) << 20
    assert script.vcpu.read_registers(["dr0", "dr7"]) == {"dr0": 0x1111, "dr7": 0x402}
    assert script.vmcs(F_CPU) >> 23 & 1, "the guest's accesses exit"
    script.exit(0, qualification=2)
    script.field(F_IRQ_INFO, event(1))
    exit = script.run()
    assert (exit.kind, exit.info[:2]) == (ExitKind.DEBUG, (4, 0x6000))
    script.exit(29, qualification=0 | 0 << 4 | 1 << 8, rcx=0x2222)  # mov dr0, rcx
    script.exit(29, qualification=0 | 1 << 4 | 3 << 8)  # mov rbx, dr0
    script.run_out()
    assert (script.get(RBX), script.get(DR0)) == (0x2222, 0x5000)
    script.vcpu.set_debug()
    assert (script.get(DR0), script.vmcs(F_DR7)) == (0x2222, 0x402)


def test_the_guests_own_debug_exception_is_given_back(script: Script) -> None:
    script.vcpu.set_debug(breakpoints=[0x5000])
    script.exit(0, qualification=1 << 14)  # its own RFLAGS.TF
    script.field(F_IRQ_INFO, event(1))
    script.run_out()
    assert (script.delivered, script.get(DR6) >> 14 & 1) == (event(1), 1)


def test_random_exits_do_no_harm(script: Script) -> None:
    """Whatever the fields hold, the backend answers with an exit or goes on; it neither fails nor hangs."""
    import random

    rng = random.Random(6)
    reasons = [0, 1, 2, 7, 10, 12, 18, 28, 29, 30, 31, 32, 37, 48, 48, 48, 55, 60, 0x8000_0021]
    for _ in range(2000):
        script.library.rift_script_reset()
        script.memory[CODE : CODE + 16] = rng.randbytes(16)
        registers: dict[str, Any] = {
            name: rng.choice([VIRTUAL, DATA, START, rng.getrandbits(64)])
            for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")
        }
        gpa = rng.choice([DEVICE + rng.getrandbits(12), DATA, rng.getrandbits(40)])
        script.exit(rng.choice(reasons), qualification=rng.getrandbits(34), length=rng.randrange(16), gpa=gpa,
                    rflags=2 | rng.getrandbits(22), **registers)  # fmt: skip
        script.field(F_IRQ_INFO, rng.choice([0, rng.getrandbits(32)]))
        script.field(F_IDT_INFO, rng.choice([0, rng.getrandbits(32)]))
        for _ in range(4):
            exit = script.run(rng.getrandbits(64))
            if exit.raw_reason == NO_MORE:
                break


def test_a_new_run_forgets_an_event_whose_entry_did_not_come_about(script: Script) -> None:
    script.exit(12, length=1)
    script.field(F_EVENT, event(UD))
    assert script.run().kind is ExitKind.HALT
    script.vcpu.drop_events()
    script.run_out()
    assert script.delivered == 0
