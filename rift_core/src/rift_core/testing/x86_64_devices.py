"""Behaviour of x86-64 instructions that reach devices: MMIO of every width and alignment, ports, strings."""

from __future__ import annotations

import pytest

from rift_core.exits import Exit, ExitKind
from rift_core.testing.requirements import requires
from rift_core.testing.tools import skip_here
from rift_core.testing.x86_64_machine import CODE, DATA, DEVICE, DEVICE_GPA, FLAG_DF, Machine

VALUE = 0x8877_6655_4433_2211
STORE = {1: b"\x88\x07", 2: b"\x66\x89\x07", 4: b"\x89\x07", 8: b"\x48\x89\x07"}  # mov [rdi], rax
LOAD = {1: b"\x8a\x07", 2: b"\x66\x8b\x07", 4: b"\x8b\x07", 8: b"\x48\x8b\x07"}  # mov rax, [rdi]
OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
OUTS = {1: b"\x6e", 2: b"\x66\x6f", 4: b"\x6f"}
INS = {1: b"\x6c", 2: b"\x66\x6d", 4: b"\x6d"}
PORT = 0x5A0
PLACES = [(size, offset) for size in STORE for offset in range(8)]


def cut(value: int, size: int) -> int:
    """The low ``size`` bytes."""
    return value & (1 << 8 * size) - 1


def merged(size: int, old: int, new: int) -> int:
    """RAX after a load of ``size`` bytes: 4 zero-extend, 1 and 2 leave the rest."""
    return cut(new, size) if size >= 4 else old & ~((1 << 8 * size) - 1) | cut(new, size)


def access(exit: Exit) -> tuple[ExitKind, int, int, int, bool]:
    """What a device sees."""
    return exit.kind, exit.address, exit.size, exit.value, exit.is_write


class MmioTests:
    """Each access is one exit, whatever its width and alignment."""

    @pytest.mark.parametrize(("size", "offset"), PLACES)
    def test_store(self, machine: Machine, size: int, offset: int) -> None:
        machine.start(STORE[size] + b"\xf4", rdi=DEVICE + 0x40 + offset, rax=VALUE)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 0x40 + offset, size, cut(VALUE, size), True)
        machine.halt(machine.go(), CODE + len(STORE[size]))

    @pytest.mark.parametrize(("size", "offset"), PLACES)
    def test_load(self, machine: Machine, size: int, offset: int) -> None:
        machine.start(LOAD[size] + b"\xf4", rdi=DEVICE + 0x40 + offset, rax=0x1111_2222_3333_4444)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 0x40 + offset, size, 0, False)
        machine.halt(machine.go(VALUE), CODE + len(LOAD[size]))
        assert machine.register("rax") == merged(size, 0x1111_2222_3333_4444, VALUE)

    @pytest.mark.parametrize(
        ("code", "size", "reply", "result"),
        [
            pytest.param(b"\x0f\xb6\x07", 1, 0xF1, 0xF1, id="movzx"),
            pytest.param(b"\x48\x0f\xbe\x07", 1, 0xF1, (1 << 64) - 0xF, id="movsx"),
            pytest.param(b"\x48\x63\x07", 4, 0x8000_0000, (1 << 64) - 0x8000_0000, id="movsxd"),
        ],
    )
    def test_extending_load(self, machine: Machine, code: bytes, size: int, reply: int, result: int) -> None:
        machine.start(code + b"\xf4", rdi=DEVICE)
        assert machine.go().size == size
        machine.halt(machine.go(reply), CODE + len(code))
        assert machine.register("rax") == result

    def test_store_across_pages_comes_in_two(self, machine: Machine) -> None:
        machine.start(STORE[8] + b"\xf4", rdi=DEVICE + 0xFFD, rax=VALUE)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 0xFFD, 3, cut(VALUE, 3), True)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 0x1000, 5, VALUE >> 24, True)
        machine.halt(machine.go(), CODE + 3)

    def test_load_across_pages_comes_in_two(self, machine: Machine) -> None:
        machine.start(LOAD[8] + b"\xf4", rdi=DEVICE + 0xFFD)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 0xFFD, 3, 0, False)
        assert access(machine.go(cut(VALUE, 3))) == (ExitKind.MMIO, DEVICE_GPA + 0x1000, 5, 0, False)
        machine.halt(machine.go(VALUE >> 24), CODE + 3)
        assert machine.register("rax") == VALUE

    @pytest.mark.parametrize("offset", [0, 3])
    def test_read_modify_write(self, machine: Machine, offset: int) -> None:
        machine.start(b"\x01\x07\xf4", rdi=DEVICE + offset, rax=5)  # add [rdi], eax
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + offset, 4, 0, False)
        assert access(machine.go(0x30)) == (ExitKind.MMIO, DEVICE_GPA + offset, 4, 0x35, True)
        machine.halt(machine.go(), CODE + 2)

    def test_exchange(self, machine: Machine) -> None:
        machine.start(b"\x87\x07\xf4", rdi=DEVICE, rax=5)  # xchg [rdi], eax
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA, 4, 0, False)
        assert access(machine.go(0x30)) == (ExitKind.MMIO, DEVICE_GPA, 4, 5, True)
        machine.halt(machine.go(), CODE + 2)
        assert machine.register("rax") == 0x30

    def test_loop_of_stores(self, machine: Machine) -> None:
        """The same instruction with the same registers again and again: each is an exit."""
        machine.start(STORE[4] + b"\xeb\xfc", rdi=DEVICE, rax=9)
        for _ in range(5):
            assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA, 4, 9, True)

    def test_loop_of_loads(self, machine: Machine) -> None:
        machine.start(b"\x8b\x07\x89\x06\xeb\xfa", rdi=DEVICE, rsi=DATA)  # mov eax, [rdi]; mov [rsi], eax; jmp
        machine.go()
        for reply in (3, 4, 5):
            assert access(machine.go(reply)) == (ExitKind.MMIO, DEVICE_GPA, 4, 0, False)
            assert machine.get(DATA, 4) == reply

    def test_string_from_a_device(self, machine: Machine) -> None:
        machine.start(b"\xf3\xa4\xf4", rsi=DEVICE, rdi=DATA, rcx=3)  # rep movsb
        reply = None
        for number in range(3):
            assert access(machine.go(reply)) == (ExitKind.MMIO, DEVICE_GPA + number, 1, 0, False)
            reply = 0x41 + number
        machine.halt(machine.go(reply), CODE + 2)
        assert machine.get(DATA, 3) == 0x43_42_41
        assert machine.register("rcx") == 0

    def test_string_to_a_device(self, machine: Machine) -> None:
        machine.start(b"\xf3\xab\xf4", rdi=DEVICE, rax=0x1234, rcx=3)  # rep stosd
        for number in range(3):
            assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 4 * number, 4, 0x1234, True)
        machine.halt(machine.go(), CODE + 2)
        assert machine.register("rdi") == DEVICE + 12

    def test_sixteen_bytes_come_in_two(self, machine: Machine) -> None:
        if "sse" not in machine.probe.features.names:
            skip_here("vector instructions do not work in ring 0 here")
        machine.start(b"\x0f\x11\x07\xf4", rdi=DEVICE, xmm0=VALUE << 64 | 0x1122)  # movups [rdi], xmm0
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA, 8, 0x1122, True)
        assert access(machine.go()) == (ExitKind.MMIO, DEVICE_GPA + 8, 8, VALUE, True)
        machine.halt(machine.go(), CODE + 3)

    def test_flags_survive(self, machine: Machine) -> None:
        """Flags of the instruction before, which an emulator computes late: cmp eax, ebx; mov [rdi], eax; setc al."""
        machine.start(b"\x39\xd8\x89\x07\x0f\x92\xc0\xf4", rdi=DEVICE, rax=1, rbx=2)
        assert machine.go().value == 1
        machine.halt(machine.go(), CODE + 7)
        assert machine.register("rax") == 1


class PortTests:
    """IN, OUT and their string forms; repeated ones come one access at a time."""

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", OUT)
    def test_out(self, machine: Machine, size: int) -> None:
        machine.start(OUT[size] + b"\xf4", rdx=PORT, rax=VALUE)
        assert access(machine.go()) == (ExitKind.PORT_IO, PORT, size, cut(VALUE, size), True)
        machine.halt(machine.go(), CODE + len(OUT[size]))

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", IN)
    def test_in(self, machine: Machine, size: int) -> None:
        machine.start(IN[size] + b"\xf4", rdx=PORT, rax=VALUE)
        assert access(machine.go()) == (ExitKind.PORT_IO, PORT, size, 0, False)
        machine.halt(machine.go(0xAABB_CCDD), CODE + len(IN[size]))
        assert machine.register("rax") == merged(size, VALUE, 0xAABB_CCDD)

    @requires(ExitKind.PORT_IO)
    def test_immediate_port(self, machine: Machine) -> None:
        machine.start(b"\xe6\x80\xe4\x81\xf4", rax=0x5C)  # out 0x80, al; in al, 0x81
        assert access(machine.go()) == (ExitKind.PORT_IO, 0x80, 1, 0x5C, True)
        assert access(machine.go()) == (ExitKind.PORT_IO, 0x81, 1, 0, False)
        machine.halt(machine.go(0x21), CODE + 4)
        assert machine.register("rax") == 0x21

    @requires(ExitKind.PORT_IO)
    def test_nothing_behind_an_out_has_happened(self, machine: Machine) -> None:
        machine.start(b"\xee\xff\xc0\xf4", rdx=PORT, rax=1)  # out dx, al; inc eax
        assert machine.go().kind is ExitKind.PORT_IO
        assert machine.vcpu.read_registers(["rip", "rax"]) == {"rip": CODE + 1, "rax": 1}
        machine.halt(machine.go(), CODE + 3)
        assert machine.register("rax") == 2

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", OUTS)
    @pytest.mark.parametrize("step", [1, -1])
    def test_rep_outs(self, machine: Machine, size: int, step: int) -> None:
        data = bytes(range(0x10, 0x10 + 3 * size))
        machine.put(DATA, data)
        items = [int.from_bytes(data[at : at + size], "little") for at in range(0, 3 * size, size)][::step]
        start = DATA if step == 1 else DATA + 2 * size
        code = b"\xf3" + OUTS[size] + b"\xf4"
        machine.start(code, rdx=PORT, rsi=start, rcx=3, rflags=2 if step == 1 else 2 | FLAG_DF)
        for item in items:
            assert access(machine.go()) == (ExitKind.PORT_IO, PORT, size, item, True)
        machine.halt(machine.go(), CODE + len(code) - 1)
        assert machine.vcpu.read_registers(["rcx", "rsi"]) == {"rcx": 0, "rsi": start + 3 * size * step}

    @requires(ExitKind.PORT_IO)
    @pytest.mark.parametrize("size", INS)
    def test_rep_ins(self, machine: Machine, size: int) -> None:
        code = b"\xf3" + INS[size] + b"\xf4"
        machine.start(code, rdx=PORT, rdi=DATA + 1, rcx=3)
        reply = None
        for number in range(3):
            assert access(machine.go(reply)) == (ExitKind.PORT_IO, PORT, size, 0, False)
            reply = cut(VALUE, size) + number
        machine.halt(machine.go(reply), CODE + len(code) - 1)
        for number in range(3):
            assert machine.get(DATA + 1 + number * size, size) == cut(VALUE, size) + number
        assert machine.vcpu.read_registers(["rcx", "rdi"]) == {"rcx": 0, "rdi": DATA + 1 + 3 * size}

    @requires(ExitKind.PORT_IO)
    def test_outs_of_an_unmapped_page_faults_first(self, machine: Machine) -> None:
        from rift_core.testing.x86_64_machine import PLAYGROUND

        frame = machine.fault(b"\x6e", rdx=PORT, rsi=PLAYGROUND)
        assert (frame.vector, frame.code, frame.rip) == (14, 0, CODE)
        assert machine.register("rsi") == PLAYGROUND
