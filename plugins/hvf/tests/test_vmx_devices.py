"""Exits of accesses to ports and to guest-physical addresses without memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from vmx_script import (
    CODE,
    CR2,
    DATA,
    DEVICE,
    F_EVENT_CODE,
    F_GPA,
    F_IDT_CODE,
    F_IDT_INFO,
    NO_MORE,
    PF,
    RAM_SIZE,
    RAX,
    RCX,
    RDI,
    RFLAGS,
    RIP,
    RSI,
    START,
    VIRTUAL,
    event,
    mmap,
)

from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission

if TYPE_CHECKING:
    from vmx_script import Script


# -- ports ------------------------------


def test_string_output_comes_from_the_guests_memory(script: Script) -> None:
    script.memory[CODE : CODE + 2] = b"\xf3\x6e"  # rep outsb
    script.memory[DATA : DATA + 3] = b"abc"
    for at in range(3):
        script.exit(30, qualification=0x3F8 << 16 | 3 << 4, rsi=DATA + at, rcx=3 - at)
    for at, letter in enumerate(b"abc"):
        exit = script.run()
        assert exit[:5] == (ExitKind.PORT_IO, 0x3F8, 1, letter, True)
        assert (script.get(RSI), script.get(RCX)) == (DATA + at + 1, 2 - at)
        assert script.get(RIP) == (START + 2 if at == 2 else START)


def test_string_input_goes_to_the_guests_memory(script: Script) -> None:
    script.memory[CODE : CODE + 2] = b"\x66\x6d"  # insw, with the direction flag set
    script.exit(30, qualification=0x60 << 16 | 3 << 3 | 1, rdi=DATA, rflags=0x402)
    exit = script.run()
    assert exit[:5] == (ExitKind.PORT_IO, 0x60, 2, 0, False)
    assert script.get(RIP) == START
    script.run_out(0xBEEF)
    assert (script.number(DATA, 2), script.get(RDI), script.get(RIP)) == (0xBEEF, DATA - 2, START + 2)


def test_string_output_from_nowhere_is_a_page_fault(script: Script) -> None:
    script.memory[CODE : CODE + 1] = b"\x6e"
    script.exit(30, qualification=0x3F8 << 16 | 1 << 4, rsi=0x7F00_0000_0000)
    script.run_out()
    assert (script.delivered, script.get(CR2), script.get(RIP)) == (event(PF, code=True), 0x7F00_0000_0000, START)


def test_in_keeps_the_rest_of_rax(script: Script) -> None:
    script.exit(30, qualification=0x60 << 16 | 1 << 3, length=2, rax=0x1122_3344_5566_7788)
    assert not script.run().is_write
    script.run_out(0xFFFF_FFAA)
    assert (script.get(RAX), script.get(RIP)) == (0x1122_3344_5566_77AA, START + 2)


# -- devices ------------------------------

READ, WRITE, FETCH, LINEAR, TRANSLATED = 1, 2, 4, 1 << 7, 1 << 8


def access(script: Script, code: str, qualification: int, offset: int = 0x10, **registers: int) -> None:
    """An EPT violation of the device by an instruction at RIP; RDI points at it."""
    machine_code = bytes.fromhex(code)
    script.memory[CODE : CODE + 16] = machine_code.ljust(16, b"\x90")
    registers = {"rdi": VIRTUAL + offset, "rflags": 2, **registers}
    script.exit(48, qualification=qualification | LINEAR | TRANSLATED, length=0, gpa=DEVICE + offset, **registers)


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [("8807", 1, 0x88), ("668907", 2, 0x7788), ("8907", 4, 0x5566_7788), ("488907", 8, 0x1122_3344_5566_7788),
     ("8827", 1, 0x77), ("c60742", 1, 0x42), ("66c7074241", 2, 0x4142), ("c70778563412", 4, 0x1234_5678),
     ("48c707ffffffff", 8, (1 << 64) - 1), ("0f9407", 1, 0), ("0f9507", 1, 1), ("480fc307", 8, 0x1122_3344_5566_7788)],
)  # fmt: skip
def test_stores_to_a_device(script: Script, code: str, size: int, value: int) -> None:
    access(script, code, WRITE, rax=0x1122_3344_5566_7788)
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, size, value, True)
    assert script.get(RIP) == START + len(bytes.fromhex(code))
    script.run_out()


@pytest.mark.parametrize(
    ("code", "size", "rax"),
    [("8a07", 1, 0x1122_3344_5566_77FE), ("8a27", 1, 0x1122_3344_5566_FE88), ("668b07", 2, 0x1122_3344_5566_DCFE),
     ("8b07", 4, 0x98BA_DCFE), ("488b07", 8, 0x1032_5476_98BA_DCFE), ("0fb607", 1, 0xFE), ("0fb707", 2, 0xDCFE),
     ("480fbe07", 1, 0xFFFF_FFFF_FFFF_FFFE), ("0fbf07", 2, 0xFFFF_DCFE), ("486307", 4, 0xFFFF_FFFF_98BA_DCFE)],
)  # fmt: skip
def test_loads_from_a_device(script: Script, code: str, size: int, rax: int) -> None:
    access(script, code, READ, rax=0x1122_3344_5566_7788)
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, size, 0, False)
    assert (script.get(RAX), script.get(RIP)) == (0x1122_3344_5566_7788, START), "nothing is done before the answer"
    script.run_out(0x1032_5476_98BA_DCFE)
    assert (script.get(RAX), script.get(RIP)) == (rax, START + len(bytes.fromhex(code)))


def test_read_modify_write_is_two_exits(script: Script) -> None:
    access(script, "f00907", READ | WRITE, rax=0x0F)  # lock or [rdi], eax
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0, False)
    exit = script.run(0x8000_00F0)
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0x8000_00FF, True)
    assert (script.get(RIP), script.get(RFLAGS)) == (START + 3, 0x2 | 0x84)  # sign and parity
    script.run_out()


def test_exchange_and_compare_exchange(script: Script) -> None:
    access(script, "8707", READ | WRITE, rax=7)  # xchg [rdi], eax
    script.run()
    assert script.run(9).value == 7
    assert script.get(RAX) == 9
    access(script, "f00fb10f", READ | WRITE, rax=5, rcx=6)  # lock cmpxchg [rdi], ecx
    script.run()
    assert script.run(5).value == 6
    assert script.get(RFLAGS) >> 6 & 1
    access(script, "f00fb10f", READ | WRITE, rax=5, rcx=6)
    script.run()
    assert script.run(8).value == 8, "the CPU writes back what it has read"
    assert (script.get(RAX), script.get(RFLAGS) >> 6 & 1) == (8, 0)


def test_comparing_with_a_device_writes_nothing(script: Script) -> None:
    access(script, "833f05", READ)  # cmp dword [rdi], 5
    assert not script.run().is_write
    script.run_out(5)
    assert (script.get(RFLAGS), script.get(RIP)) == (0x2 | 0x44, START + 3)


def test_a_kick_in_the_middle_of_a_read_modify_write(script: Script) -> None:
    access(script, "fe07", READ | WRITE)  # inc byte [rdi]
    script.run()
    script.vcpu.kick()
    exit = script.run(0x7F)
    assert (exit.is_write, exit.value) == (True, 0x80), "the store is the rest of the instruction"
    assert script.run().kind is ExitKind.INTERRUPTED


def test_string_store_and_load(script: Script) -> None:
    access(script, "f3ab", WRITE, rax=0x1234, rcx=2)  # rep stosd
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE + 0x10, 4, 0x1234, True)
    assert (script.get(RDI), script.get(RCX), script.get(RIP)) == (VIRTUAL + 0x14, 1, START)
    access(script, "48ad", READ, rsi=VIRTUAL + 0x10)  # lodsq
    script.run()
    script.run_out(77)
    assert (script.get(RAX), script.get(RSI), script.get(RIP)) == (77, VIRTUAL + 0x18, START + 2)


def test_string_move_between_memory_and_a_device(script: Script) -> None:
    script.put(DATA, 0xCAFE_BABE, 4)
    access(script, "a5", WRITE, rsi=DATA)  # movsd
    assert script.run().value == 0xCAFE_BABE
    assert (script.get(RSI), script.get(RDI)) == (DATA + 4, VIRTUAL + 0x14)
    access(script, "a5", READ, rsi=VIRTUAL + 0x10, rdi=DATA + 8)
    assert not script.run().is_write
    script.run_out(0x1111_2222)
    assert script.number(DATA + 8, 4) == 0x1111_2222


def test_addresses_in_all_forms(script: Script) -> None:
    for code, registers in (
        ("8944b308", {"rbx": VIRTUAL, "rsi": 2}),  # mov [rbx + rsi*4 + 8], eax
        ("6467890500000000", {}),  # refused below: FS with a base that does not fit
        ("a31000200000000000", {}),  # mov [0x200010], eax
        ("890509001000", {}),  # mov [rip + 0x100009 + 6 - ...], eax
    ):
        if code == "890509001000":
            code = "8905" + struct.pack("<i", VIRTUAL + 0x10 - (START + 6)).hex()
        access(script, code, WRITE, rax=5, **registers)
        exit = script.run()
        expected = ExitKind.FAIL_ENTRY if code.startswith("64") else ExitKind.MMIO
        assert exit.kind is expected, code


@pytest.mark.parametrize("code", ["0f20c0", "ff37", "c5fc1107", "d907", "9090", "f0488907"])
def test_what_cannot_be_carried_out_is_told_with_its_bytes(script: Script, code: str) -> None:
    access(script, code, WRITE)
    exit = script.run()
    assert (exit.kind, exit.address, exit.size) == (ExitKind.FAIL_ENTRY, START, 15)
    assert b"".join(word.to_bytes(8, "little") for word in exit.info).startswith(bytes.fromhex(code))


def test_an_instruction_that_does_not_go_there_is_not_carried_out(script: Script) -> None:
    access(script, "8907", WRITE, rdi=VIRTUAL + 0x14)  # another thread has changed the code, or a register
    assert script.run().kind is ExitKind.FAIL_ENTRY
    access(script, "488907", WRITE, offset=0xFFC, rdi=VIRTUAL + 0x1FFC)  # over another two pages
    assert script.run().kind is ExitKind.FAIL_ENTRY


# -- accesses over two pages ------------------------------


def parts(script: Script, *replies: int) -> list[tuple[int, int, int, bool]]:
    """Address, size, value and direction of all parts."""
    seen = []
    exit = script.run()
    for reply in (*replies, 0):
        assert exit.kind is ExitKind.MMIO
        seen.append((exit.address, exit.size, exit.value, exit.is_write))
        exit = script.run(reply)
        if exit.kind is not ExitKind.MMIO:
            break
    assert exit.raw_reason == NO_MORE, "the end of the script"
    return seen


def test_a_store_over_two_pages(script: Script) -> None:
    access(script, "488907", WRITE, offset=0xFFD, rax=0x8877_6655_4433_2211)
    assert parts(script, 0) == [
        (DEVICE + 0xFFD, 3, 0x33_2211, True),
        (DEVICE + 0x1000, 5, 0x88_7766_5544, True),
    ]
    assert script.get(RIP) == START + 3


def test_a_load_over_two_pages(script: Script) -> None:
    access(script, "488b07", READ, offset=0xFFD, rax=0)
    assert parts(script, 0xFF33_2211, 0xFFFF_FF88_7766_5544) == [
        (DEVICE + 0xFFD, 3, 0, False),
        (DEVICE + 0x1000, 5, 0, False),
    ]
    assert (script.get(RAX), script.get(RIP)) == (0x8877_6655_4433_2211, START + 3)


def test_sixteen_bytes_over_two_pages(script: Script) -> None:
    script.vcpu.write_registers({"xmm0": int.from_bytes(bytes(range(0x10, 0x20)), "little")})
    access(script, "0f1107", WRITE, offset=0xFF7)
    seen = parts(script, 0, 0)
    assert [(address, size) for address, size, *_ in seen] == [
        (DEVICE + 0xFF7, 8), (DEVICE + 0xFFF, 1), (DEVICE + 0x1000, 7)
    ]  # fmt: skip
    assert b"".join(value.to_bytes(size, "little") for _, size, value, _ in seen) == bytes(range(0x10, 0x20))


def test_the_part_that_is_memory_is_no_exit(script: Script) -> None:
    script.put(RAM_SIZE - 8, 0)
    for offset, gpa in ((RAM_SIZE - 4, DEVICE), (RAM_SIZE - 4, RAM_SIZE - 4)):  # whatever part is told
        access(script, "488907", WRITE, rdi=offset, rax=0x8877_6655_4433_2211)
        script.field(F_GPA, gpa)
        if gpa != DEVICE:
            script.run_out()  # memory that is there: entered again
            continue
        assert parts(script) == [(DEVICE, 4, 0x8877_6655, True)]
        assert script.number(RAM_SIZE - 4, 4) == 0x4433_2211
    access(script, "488b07", READ, rdi=RAM_SIZE - 4, rax=0)
    script.field(F_GPA, DEVICE)
    assert parts(script, 0xDDCC_BBAA) == [(DEVICE, 4, 0, False)]
    assert script.get(RAX) == 0xDDCC_BBAA_4433_2211


def test_read_modify_write_over_two_pages(script: Script) -> None:
    access(script, "48ff07", READ | WRITE, offset=0xFFC, rax=0)  # inc qword [rdi]
    assert parts(script, 0xFFFF_FFFF, 0x41, 0) == [
        (DEVICE + 0xFFC, 4, 0, False),
        (DEVICE + 0x1000, 4, 0, False),
        (DEVICE + 0xFFC, 4, 0, True),
        (DEVICE + 0x1000, 4, 0x42, True),
    ]


@pytest.mark.parametrize(("code", "error"), [("488907", 2), ("488b07", 0), ("48ff07", 2), ("48aa", 2)])
def test_without_a_second_page_nothing_is_accessed(script: Script, code: str, error: int) -> None:
    """A page fault there, by an access that is a write or not; STOSB is one byte, and has none."""
    access(script, code, WRITE if error else READ, rdi=VIRTUAL + 0x1F_FFFD)
    script.field(F_GPA, DEVICE + 0x1F_FFFD)
    if code == "48aa":
        assert script.run().kind is ExitKind.MMIO
        return
    script.run_out()
    assert (script.delivered, script.vmcs(F_EVENT_CODE)) == (event(PF, code=True), error)
    assert (script.get(CR2), script.get(RIP)) == (VIRTUAL + 0x20_0000, START)


def test_code_on_a_device(script: Script) -> None:
    script.exit(48, qualification=FETCH | LINEAR | TRANSLATED, gpa=DEVICE)
    exit = script.run()
    assert (exit.kind, exit.address) == (ExitKind.MEMORY_FAULT, DEVICE)


def test_page_tables_on_a_device(script: Script) -> None:
    script.exit(48, qualification=READ | LINEAR, gpa=DEVICE)
    assert script.run().kind is ExitKind.MEMORY_FAULT


def test_a_device_as_the_stack_of_an_exception(script: Script) -> None:
    access(script, "8907", WRITE)
    script.field(F_IDT_INFO, event(PF, code=True))
    assert script.run().kind is ExitKind.MEMORY_FAULT


def test_a_first_touch_enters_again_and_delivers_again(script: Script) -> None:
    script.exit(48, qualification=WRITE | LINEAR | TRANSLATED, gpa=DATA)
    script.field(F_IDT_INFO, event(PF, code=True) | 1 << 12)
    script.field(F_IDT_CODE, 2)
    script.run_out()
    assert (script.delivered, script.vmcs(F_EVENT_CODE), script.get(RIP)) == (event(PF, code=True), 2, START)


def test_a_first_touch_for_ever_is_told(script: Script) -> None:
    library = script.library
    for _ in range(60):
        script.exit(48, qualification=READ | LINEAR | TRANSLATED, gpa=DATA)
    script.run_out()
    assert library.rift_script_left() == 0


def test_read_only_memory(script: Script) -> None:
    page = mmap.mmap(-1, 4096)
    page[:4] = (40).to_bytes(4, "little")
    script.vm.map_memory(MemoryRegion(Gpa(DEVICE), memoryview(page), Permission.READ))
    access(script, "8307 02".replace(" ", ""), READ | WRITE, offset=0)  # add dword [rdi], 2
    exit = script.run()
    assert exit[:5] == (ExitKind.MMIO, DEVICE, 4, 42, True), "the memory is read where it is"
    assert page[:4] == (40).to_bytes(4, "little")
    assert script.get(RIP) == START + 3
