"""Entry state: control registers, descriptor tables, MSRs; the layouts are decoded here a second time."""

from __future__ import annotations

import struct
from typing import Any

import pytest

import rift_x86_64
from rift_core.backend import CpuFeatures
from rift_x86_64 import X86_64Config, descriptors
from rift_x86_64.instruction_set import X86_64
from rift_x86_64.registers import REGISTERS


def segment(gdt: bytes, selector: int) -> dict[str, int]:
    """A descriptor, decoded as in SDM volume 3, figure "Segment Descriptor"."""
    low, high = struct.unpack_from("<II", gdt, selector & ~7)
    limit = (low & 0xFFFF) | (high & 0xF0000)
    if high >> 23 & 1:
        limit = (limit << 12) | 0xFFF
    return {
        "base": (low >> 16) | (high & 0xFF) << 16 | (high & 0xFF00_0000),
        "limit": limit,
        "type": high >> 8 & 0xF,
        "s": high >> 12 & 1,
        "dpl": high >> 13 & 3,
        "present": high >> 15 & 1,
        "l": high >> 21 & 1,
        "db": high >> 22 & 1,
        "attributes": (high >> 8 & 0xFF) | (high >> 20 & 0xF) << 12,
    }


def tables_of(guest: Any, registers: dict[str, int]) -> tuple[bytes, bytes, bytes]:
    gdt = guest.read_virtual(registers["gdtr.base"], registers["gdtr.limit"] + 1)
    idt = guest.read_virtual(registers["idtr.base"], registers["idtr.limit"] + 1)
    tss = guest.read_virtual(registers["tr.base"], registers["tr.limit"] + 1)
    return gdt, idt, tss


def test_control_registers(guest: Any) -> None:
    registers = guest.start()
    assert registers["cr0"] == 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1  # PG WP NE ET MP PE
    assert registers["cr4"] == 1 << 18 | 1 << 10 | 1 << 9 | 1 << 7 | 1 << 5
    assert registers["efer"] == 1 << 11 | 1 << 10 | 1 << 8 | 1
    assert registers["cr3"] == 0x8000_0000
    assert registers["xcr0"] == 7
    assert registers["rflags"] == 2
    assert (registers["mxcsr"], registers["fctrl"]) == (0x1F80, 0x37F)


def test_control_registers_follow_features_and_settings(make_guest: Any) -> None:
    plain = make_guest(X86_64Config(smap=True), CpuFeatures()).start()
    assert plain["cr4"] == 1 << 10 | 1 << 9 | 1 << 7 | 1 << 5
    assert "xcr0" not in plain
    assert make_guest(X86_64Config(smap=True)).start("user")["cr4"] >> 20 & 3 == 3
    assert make_guest(X86_64Config()).start("user")["cr4"] >> 20 & 3 == 1
    # A supervisor thread may run an image that user threads share.
    assert make_guest(X86_64Config(smap=True)).start("supervisor")["cr4"] >> 20 & 3 == 0


def test_segments_agree_with_the_gdt(guest: Any) -> None:
    for privilege, level in (("supervisor", 0), ("user", 3)):
        registers = guest.start(privilege)
        gdt, _, _ = tables_of(guest, registers)
        assert gdt[:8] == bytes(8)
        for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
            described = segment(gdt, registers[f"{name}.selector"])
            assert described["present"] == 1
            assert described["attributes"] == registers[f"{name}.attributes"], name
            assert described["limit"] == registers[f"{name}.limit"], name
            if name != "tr":
                assert described["base"] == registers[f"{name}.base"] == 0
                assert described["type"] & 1, "accessed: the CPU need not write the table"
        code, stack = segment(gdt, registers["cs.selector"]), segment(gdt, registers["ss.selector"])
        assert (code["dpl"], code["l"], code["db"], code["type"]) == (level, 1, 0, 0xB)
        assert (stack["dpl"], stack["type"]) == (level, 3)
        assert registers["cs.selector"] & 3 == registers["ss.selector"] & 3 == level
        assert registers["ldtr.attributes"] == 0


def test_syscall_and_sysret_find_their_selectors(guest: Any) -> None:
    registers = guest.start()
    gdt, _, _ = tables_of(guest, registers)
    star = registers["star"]
    assert segment(gdt, star >> 32 & 0xFFFF)["attributes"] == descriptors.KERNEL_CODE_ATTRIBUTES
    assert segment(gdt, (star >> 32 & 0xFFFF) + 8)["attributes"] == descriptors.KERNEL_DATA_ATTRIBUTES
    assert (star >> 48) + 16 == descriptors.USER_CODE
    assert (star >> 48) + 8 == descriptors.USER_DATA
    assert segment(gdt, descriptors.USER_CODE)["attributes"] == descriptors.USER_CODE_ATTRIBUTES
    assert segment(gdt, descriptors.USER_DATA)["attributes"] == descriptors.USER_DATA_ATTRIBUTES
    for flag in (8, 9, 10, 12, 13, 14, 18):  # TF IF DF IOPL NT AC
        assert registers["sfmask"] >> flag & 1


def test_syscall_enters_a_page_that_user_mode_cannot_touch(guest: Any) -> None:
    registers = guest.start("user")
    code = guest.system_areas["code"]
    assert code.virtual <= registers["lstar"] < code.end
    requests = {request.name: request for request in guest.isa.system_areas()}
    assert str(requests["code"].permissions) == "r-x-"
    assert str(requests["user-code"].permissions) == "r-xu"
    for request in guest.isa.thread_areas("user"):
        assert str(request.permissions) == "rw--"


def test_task_state_segment(guest: Any) -> None:
    registers = guest.start()
    gdt, _, tss = tables_of(guest, registers)
    described = segment(gdt, registers["tr.selector"])
    high = struct.unpack_from("<Q", gdt, registers["tr.selector"] + 8)[0]
    assert described["base"] | high << 32 == registers["tr.base"]
    assert (described["type"], described["s"]) == (0xB, 0)  # busy 64-bit TSS
    assert len(tss) == 0x68
    assert struct.unpack_from("<Q", tss, 4)[0] == guest.areas["kernel-stack"].end
    stacks = struct.unpack_from("<7Q", tss, 36)
    names = ("double-fault-stack", "nmi-stack", "machine-check-stack")
    assert stacks == (*(guest.areas[name].end for name in names), 0, 0, 0, 0)
    assert all(stack % 16 == 0 for stack in stacks)
    io_map = struct.unpack_from("<H", tss, 102)[0]
    assert io_map > registers["tr.limit"], "IN and OUT from user mode must be #GP"
    assert registers["tr.base"] // 0x1000 == (registers["tr.base"] + 0x67) // 0x1000


def test_interrupt_descriptor_table(guest: Any) -> None:
    registers = guest.start()
    _, idt, _ = tables_of(guest, registers)
    assert len(idt) == 4096
    for vector in range(256):
        low, selector, stack, attributes, middle, high, zero = struct.unpack_from("<HHBBHII", idt, 16 * vector)
        assert low | middle << 16 | high << 32 == guest.system_areas["code"].virtual + 16 * vector
        assert selector == registers["cs.selector"]
        assert attributes == (0xEE if vector in (3, 4) else 0x8E)
        assert stack == {8: 1, 2: 2, 18: 3}.get(vector, 0)
        assert zero == 0


def test_addresses_above_4_gib_survive() -> None:
    address = 0xFFFF_8123_4567_89A0
    assert struct.unpack("<HHBBHII", descriptors.gate(14, address))[0] == 0x89A0
    low, _, _, _, middle, high, _ = struct.unpack("<HHBBHII", descriptors.gate(14, address))
    assert low | middle << 16 | high << 32 == address
    gdt = descriptors.gdt(address)
    assert segment(gdt, 0x28)["base"] | struct.unpack_from("<Q", gdt, 0x30)[0] << 32 == address


def test_register_widths() -> None:
    widths = {register.name: register.bits for register in REGISTERS}
    assert widths["rax"] == widths["cr8"] == widths["star"] == 64
    assert (widths["cs.selector"], widths["cs.limit"], widths["gdtr.limit"]) == (16, 32, 16)
    assert (widths["xmm15"], widths["ymm0"], widths["st7"], widths["mxcsr"]) == (128, 256, 80, 32)


def test_settings(make_guest: Any) -> None:
    assert X86_64(X86_64Config(largest_page="2MiB"), CpuFeatures((0x1000, 0x20_0000, 0x4000_0000))).page_sizes == (
        0x1000,
        0x20_0000,
    )
    assert X86_64(X86_64Config(), CpuFeatures((0x1000,))).page_sizes == (0x1000,)
    with pytest.raises(ValueError, match="largest_page"):
        X86_64Config(largest_page="3MiB")  # type: ignore[arg-type]
    info = rift_x86_64.rift_plugin()
    assert (info.kind, info.name, info.config) == ("isa", "x86_64", X86_64Config)
