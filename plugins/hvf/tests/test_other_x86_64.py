"""The x86-64 half over the second stand-in: exits that KVM keeps to itself, and what happens between instructions."""

from __future__ import annotations

import struct
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import life
import pytest

import rift_hvf
from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError
from rift_core.exits import ExitKind
from rift_core.plugin import hookimpl
from rift_core.testing.backend import BackendConformance
from rift_core.testing.x86_64_behaviour import X86_64Behaviour
from rift_hvf import guest_x86_64 as guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core.backend import ProbeResult
    from rift_core.exits import Exit
    from rift_hvf import HvfConfig

HOLE = 0x20_0000
"""Linear and guest-physical address where nothing is."""

STORE = b"\x89\x04\x25" + struct.pack("<I", HOLE)  # mov [HOLE], eax
LOAD = b"\x8b\x04\x25" + struct.pack("<I", HOLE)  # mov eax, [HOLE]
OUT, IN, CPUID, VMCALL, NOP, CLI, STI, UD2 = (
    bytes.fromhex(code) for code in ("e680", "e480", "0fa2", "0f01c1", "90", "fa", "fb", "0f0b")
)
READ_CR3 = bytes.fromhex("0f20d8")  # mov rax, cr3
STEP, UNDEFINED, PROTECTION, INTERRUPT = 1, 6, 13, 0x40


def probe(config: HvfConfig) -> ProbeResult:
    """As the backend's own, for a kind of machine of which no gap is expected."""
    return replace(rift_hvf.rift_plugin()[0].probe(config), machine="hvf-x86_64-other-stand-in")


def plugin_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin, over the framework at ``path``."""
    monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(path))
    backend, *bindings = rift_hvf.rift_plugin()
    module = ModuleType("rift_hvf_over_another_framework")
    vars(module).update({name: value for name, value in vars(rift_hvf).items() if name.startswith("rift_")})
    vars(module)["rift_plugin"] = hookimpl(lambda: (replace(backend, probe=probe), *bindings))
    return module


class TestConformance(BackendConformance):
    @pytest.fixture
    def plugin(self, other_x86_64: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(other_x86_64))
        return "hvf"


class TestBehaviour(X86_64Behaviour):
    @pytest.fixture
    def plugin(self, other_x86_64: Path, monkeypatch: pytest.MonkeyPatch) -> object:
        return plugin_here(other_x86_64, monkeypatch)


class TestBehaviourOfAPoorCpu(X86_64Behaviour):
    """Every exit is shown, first touches of memory too, since there is no `hv_vcpu_run_until`; EFER is not saved."""

    @pytest.fixture
    def plugin(self, poor_x86_64: Path, monkeypatch: pytest.MonkeyPatch) -> object:
        return plugin_here(poor_x86_64, monkeypatch)


@pytest.fixture(params=["usual", "poor"])
def one(request: pytest.FixtureRequest) -> Iterator[life.Life]:
    """A machine's life on either CPU."""
    path: Path = request.getfixturevalue("other_x86_64" if request.param == "usual" else "poor_x86_64")
    with life.Life(path, "x86_64") as one:
        yield one


def vector_of(one: life.Life, exit: Exit) -> int:
    """The vector whose handler has halted, which is where exceptions end here; and what it was called for."""
    assert exit.kind is ExitKind.HALT, exit
    distance = one.register("rip") - 1 - guest.STUBS
    assert distance in range(0, 0x400, 4), f"no handler, but {one.register('rip'):#x}"
    return distance // 4


def pushed_rip(one: life.Life) -> int:
    """How far into the code the handler will go back to, of an exception without an error code."""
    return int(struct.unpack_from("<Q", one.memory, one.register("rsp"))[0]) - guest.CODE


def finish(one: life.Life, code: bytes) -> Exit:
    """Run to the end of an experiment, whatever exits the instruction ``code`` has on the way."""
    exit = one.run()
    while exit.kind in (ExitKind.PORT_IO, ExitKind.MMIO, ExitKind.HYPERCALL):
        exit = one.run(0)
    return exit


EMULATED = {"out": OUT, "in": IN, "cpuid": CPUID, "store": STORE, "load": LOAD, "mov cr3": READ_CR3, "vmcall": VMCALL}


@pytest.mark.parametrize("name", [*EMULATED, "nop"])
def test_trap_flag_of_an_instruction_that_is_carried_out_outside(one: life.Life, name: str) -> None:
    """The guest's own #DB comes right behind it, not an instruction later: Intel SDM volume 3, 18.3.1.4."""
    code = EMULATED.get(name, NOP)
    one.put(code + NOP + NOP, rflags=2 | guest.TRAP_FLAG, dr6=0xFFFF_0FF0)
    assert vector_of(one, finish(one, code)) == STEP
    assert pushed_rip(one) == len(code)
    assert one.register("dr6") >> 14 & 1


@pytest.mark.parametrize("name", EMULATED)
def test_shadow_of_sti_ends_with_an_instruction_that_is_carried_out_outside(one: life.Life, name: str) -> None:
    """STI holds interrupts off for one instruction. CLI behind that one comes too late: SDM volume 3, table 25-3."""
    code = EMULATED[name]
    one.put(STI + code + CLI + NOP)
    one.vcpu.inject_interrupt(INTERRUPT)
    assert vector_of(one, finish(one, code)) == INTERRUPT
    assert pushed_rip(one) == 1 + len(code)


@pytest.mark.parametrize("name", ["store", "load", "out"])
def test_breakpoint_behind_an_instruction_that_is_carried_out_outside(one: life.Life, name: str) -> None:
    """An EPT violation leaves the resume flag set (SDM volume 3, 28.3.3), which would hide the breakpoint."""
    code = EMULATED[name]
    one.put(code + NOP)
    one.vcpu.set_debug(breakpoints=(guest.CODE + len(code),))
    assert one.run().kind in (ExitKind.MMIO, ExitKind.PORT_IO)
    assert not one.register("rflags") >> 16 & 1
    exit = one.run(0)
    assert (exit.kind, exit.info[0], one.register("rip")) == (ExitKind.DEBUG, 3, guest.CODE + len(code))


def test_hit_of_a_watchpoint_that_is_gone(one: life.Life) -> None:
    """A step comes before the watchpoint that its instruction has hit, whose #DB then waits; it is not the guest's."""
    store = b"\x48\xa3" + guest.DATA.to_bytes(8, "little")  # mov [DATA], rax
    watch = (Watchpoint(guest.DATA, 8, "write"),)
    for kept in (True, False):
        one.put(store + NOP)
        one.vcpu.set_debug(single_step=True, watchpoints=watch)
        exit = one.run()
        assert (exit.kind, exit.info[0], one.register("rip")) == (ExitKind.DEBUG, 1, guest.CODE + len(store))
        one.vcpu.set_debug(watchpoints=watch if kept else ())
        exit = one.run()
        if kept:
            assert (exit.kind, *exit.info[:2]) == (ExitKind.DEBUG, 4, guest.DATA)
            one.vcpu.set_debug()
            exit = one.run()
        assert (exit.kind, one.register("rip")) == (ExitKind.HALT, guest.CODE + len(store) + 2)


@pytest.mark.parametrize("how", ["parked", "another on its thread"])
def test_breakpoints_outlive_the_hypervisors_vcpu(one: life.Life, how: str) -> None:
    """It is made anew when a parked one is adopted, or when two take turns on a thread; the guest's own DR0 stays."""
    one.put(NOP * 4, dr0=0x1234)
    one.vcpu.set_debug(breakpoints=(guest.CODE + 2,))
    if how == "parked":
        one.vcpu.park()
        one.vcpu.adopt()
    else:
        one.vm.create_vcpu(1).read_registers(("rip",))
    exit = one.run()
    assert (exit.kind, exit.info[0], one.register("rip")) == (ExitKind.DEBUG, 3, guest.CODE + 2)
    assert (one.register("dr0"), one.register("dr7")) == (0x1234, 0x400)
    one.vcpu.set_debug()
    one.vcpu.park()
    one.vcpu.adopt()
    assert one.run().kind is ExitKind.HALT
    assert (one.register("dr0"), one.register("dr7")) == (0x1234, 0x400)


def test_guest_enters_long_mode_by_itself(one: life.Life) -> None:
    """From protected mode without paging: no exit need tell, and the next entry must still be allowed."""
    far = guest.CODE + 0x80
    code = bytes.fromhex(
        "b830000000 0f22e0"  # mov eax, PAE | PSE; mov cr4, eax
        "b800200000 0f22d8"  # mov eax, PML4; mov cr3, eax
        "b9800000c0 b800010000 31d2 0f30"  # EFER.LME
        "b831000080 0f22c0"  # mov eax, PG | NE | ET | PE; mov cr0, eax
        "ea"  # jmp far
    ) + struct.pack("<IH", far, guest.KERNEL_CODE)
    one.put(code, cr0=0x31, cr4=0, efer=0, **{"cs.attributes": 0xC09B})
    one.memory[far : far + 4] = OUT + NOP + b"\xf4"
    assert one.run().kind is ExitKind.PORT_IO
    assert one.register("efer") == 0x500, "LME, and LMA, which the CPU has set"
    assert one.register("cr0") == 0x8000_0031
    exit = one.run()
    assert (exit.kind, one.register("rip")) == (ExitKind.HALT, far + 4)


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("0f01c2", UNDEFINED),  # vmlaunch
        ("0f01c4", UNDEFINED),  # vmxoff
        ("0f01c8", UNDEFINED),  # monitor
        ("0f01c9", UNDEFINED),  # mwait
        ("66 0f3882042500a00000", UNDEFINED),  # invpcid, which this CPU lacks
        ("0f33", PROTECTION),  # rdpmc
        ("b945230100 0f30", None),  # mov ecx, 0x12345; wrmsr
        ("48b8ffffffffffffff7f 0f22d8", PROTECTION),  # mov rax, ones; mov cr3, rax
    ],
    ids=str,
)
def test_instruction_that_the_guest_does_not_have(one: life.Life, code: str, vector: int | None) -> None:
    one.put(bytes.fromhex(code))
    exit = one.run()
    if vector is None:
        assert (exit.kind, exit.address) == (ExitKind.SYSTEM_REGISTER, 0x12345)
    else:
        assert vector_of(one, exit) == vector


def test_system_instructions_that_always_exit(one: life.Life) -> None:
    """XSETBV, then XGETBV; CPUID leaf 0; INVD; CR3 as it was; the counter goes up."""
    one.put(
        bytes.fromhex(
            "31c9 31d2 b807000000 0f01d1 0f01d0 8907"  # xsetbv of 7; xgetbv; mov [rdi], eax
            "31c0 0fa2 894708"  # cpuid; mov [rdi+8], eax
            "0f08 0f20d8 48894710"  # invd; mov [rdi+16], cr3
            "0f01f9 48c1e220 4809d0 48894718"  # rdtscp; mov [rdi+24], rdx:rax
        ),
        cr4=guest.CR4 | guest.CR4_OSXSAVE,
    )
    before = one.register("tsc")
    exit = one.run()
    assert (exit.kind, one.register("rip") > guest.CODE) == (ExitKind.HALT, True)
    xcr0, leaf, cr3, counter = struct.unpack_from("<4Q", one.memory, guest.DATA)
    assert (xcr0, one.register("xcr0"), cr3) == (7, 7, guest.PML4)
    assert 1 <= leaf <= 0x1F
    assert before < counter < one.register("tsc")


def test_strings_of_ports(one: life.Life) -> None:
    """REP OUTSB, and REP INSW backwards: an exit for each element."""
    one.put(bytes.fromhex("b903000000 ba80000000 f36e"), rsi=guest.DATA)  # mov ecx, 3; mov edx, 0x80; rep outsb
    one.memory[guest.DATA : guest.DATA + 3] = b"abc"
    assert [one.run().value for _ in range(3)] == list(b"abc")
    assert one.run().kind is ExitKind.HALT
    assert (one.register("rsi"), one.register("rcx")) == (guest.DATA + 3, 0)
    one.put(bytes.fromhex("b902000000 ba80000000 fd f3666d"), rdi=guest.DATA + 2)  # std; rep insw
    assert one.run().size == 2
    assert one.run(0x1111).size == 2
    assert one.run(0x2222).kind is ExitKind.HALT
    assert bytes(one.memory[guest.DATA : guest.DATA + 4]) == b"\x22\x22\x11\x11"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_devices(one: life.Life, size: int) -> None:
    """Loads, stores and a read-modify-write of each width, where EPT violations tell the address alone."""
    opcode = {1: ("8a", "88", "0000"), 2: ("668b", "6689", "6601"), 4: ("8b", "89", "01"), 8: ("488b", "4889", "4801")}[
        size
    ]
    load, store, add = (bytes.fromhex(part) + b"\x06" for part in (*opcode[:2], opcode[2] if size > 1 else "00"))
    mask = (1 << 8 * size) - 1
    one.put(load + store + add, rsi=HOLE + 8, rax=0)
    exit = one.run()
    assert (exit.kind, exit.address, exit.size, exit.is_write) == (ExitKind.MMIO, HOLE + 8, size, False)
    exit = one.run(0x1122_3344_5566_7788)
    assert (exit.address, exit.size, exit.is_write, exit.value) == (HOLE + 8, size, True, 0x1122_3344_5566_7788 & mask)
    assert not one.run().is_write
    exit = one.run(1)
    assert (exit.is_write, exit.value) == (True, (0x1122_3344_5566_7789) & mask)
    assert one.run().kind is ExitKind.HALT


def test_what_cannot_be_on_a_device(one: life.Life) -> None:
    """Page tables, the IDT and the stack of an exception."""
    one.put(UD2, **{"idtr.base": HOLE})
    exit = one.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, HOLE + 16 * UNDEFINED)
    one.put(UD2, rsp=HOLE + 0x800)
    assert one.run().kind is ExitKind.MEMORY_FAULT
    struct.pack_into("<Q", one.memory, guest.PDPT, 0x70_0007)
    one.put(NOP)
    exit = one.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, 0x70_0000)
    one.guest.fill(one.memory)
    one.put(NOP)
    assert one.run().kind is ExitKind.HALT


def test_entries_that_the_cpu_refuses(one: life.Life) -> None:
    for registers in ({"tr.attributes": 0x89}, {"rip": 1 << 50}, {"rflags": 0}, {"cr4": guest.CR4 | 1 << 12}):
        one.put(NOP, **registers)
        exit = one.run()
        assert (exit.kind, exit.raw_reason) == (ExitKind.FAIL_ENTRY, 0x8000_0021), registers
    one.put(NOP)
    assert one.run().kind is ExitKind.HALT
    with pytest.raises(HypervisorError, match="21 is not the vector of an exception"):
        one.vcpu.inject_exception(21, 0)
    one.put(UD2, **{"idtr.limit": 0})
    assert one.run().kind is ExitKind.SHUTDOWN


def test_capabilities_that_follow_from_features(other_x86_64: Path) -> None:
    found = probe(rift_hvf.HvfConfig(framework=str(other_x86_64)))
    assert {"syscall", "vector_supervisor", "tsc_offset"} <= found.capabilities
    assert {"breakpoint_vector", "breakpoint_vector_user", "step_vector", "step_vector_user"} <= found.capabilities


def test_state_of_the_host_in_the_shadow_of_sti(one: life.Life) -> None:
    """Who goes on elsewhere, or with interrupts off, is let in: the shadow is that of the instruction behind STI."""
    for registers in ({"rip": guest.CODE + 3}, {"rflags": 2}, {"rflags": 2 | 1 << 9 | guest.TRAP_FLAG}):
        one.put(STI + NOP + NOP + NOP)
        one.vcpu.set_debug(single_step=True)
        assert one.run().kind is ExitKind.DEBUG
        assert one.register("rip") == guest.CODE + 1
        one.vcpu.set_debug()
        one.vcpu.write_registers({**registers})
        exit = one.run()
        assert exit.kind is ExitKind.HALT, registers
        assert (one.register("rip") < guest.CODE) == bool(registers.get("rflags", 0) & guest.TRAP_FLAG)
