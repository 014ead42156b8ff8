"""A machine over the scripted framework of Intel Macs: exits that KVM never shows, written down one by one.

RIP stands at ``START`` at each exit, the instruction is ``LENGTH`` bytes long.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_hvf import HvfConfig
from rift_hvf.framework import open_framework
from rift_hvf.vm import HvfVm

if TYPE_CHECKING:
    from pathlib import Path

    from vmx_script import Script

    from rift_core.exits import Exit
    from rift_hvf.vcpu import HvfVCpu

RIP, RFLAGS, RAX, RCX, RDX, RBX, RSI, RDI, RSP = range(9)
R8, R9, R10, R11 = 10, 11, 12, 13
CR2, DR0, DR6, XCR0 = 38, 41, 47, 50
F_GPA, F_CPU, F_EXC_BITMAP, F_ENTRY, F_EVENT, F_EVENT_CODE = 0x2400, 0x4002, 0x4004, 0x4012, 0x4016, 0x4018
F_IRQ_INFO, F_IDT_INFO, F_IDT_CODE, F_LENGTH, F_QUALIFICATION = 0x4404, 0x4408, 0x440A, 0x440C, 0x6400
F_SS_AR, F_INTERRUPTIBILITY, F_CR0_SHADOW, F_CR4_SHADOW = 0x4818, 0x4824, 0x6004, 0x6006
F_CR0, F_CR3, F_CR4, F_EFER, F_DR7 = 0x6800, 0x6802, 0x6804, 0x2806, 0x681A
F_FS_BASE = 0x680E
NO_MORE = 999
START, LENGTH = 0x10_0000, 3
UD, GP, PF = 6, 13, 14
RAM_SIZE = 0x20_0000
DEVICE = 0x4000_0000
VIRTUAL = 0x20_0000  # where the guest has the device
TABLES, CODE, DATA = 0x1000, START, 0x18_0000


def event(vector: int, code: bool = False) -> int:
    """A hardware exception in VMENTRY_IRQ_INFO."""
    return 1 << 31 | 3 << 8 | vector | (1 << 11 if code else 0)


NUMBERS = {
    "rip": RIP, "rflags": RFLAGS, "rax": RAX, "rcx": RCX, "rdx": RDX, "rbx": RBX, "rsi": RSI, "rdi": RDI,
    "rsp": RSP, "r8": R8, "r9": R9, "r10": R10, "xcr0": XCR0,
}  # fmt: skip


class Script:
    """The scripted framework, a VM on it with one vCPU in long mode, and its memory."""

    def __init__(self, path: Path, capabilities: frozenset[str]) -> None:
        self.library = ctypes.CDLL(str(path))
        for name in ("get_field", "get_register", "delivered"):
            getattr(self.library, f"rift_script_{name}").restype = ctypes.c_uint64
        self.library.rift_stand_in_control(b"reset")
        self.library.rift_script_reset()
        self.vm = HvfVm(
            HvfConfig(framework=str(path)),
            open_framework(str(path)),
            page_size=4096,
            gpa_bits=39,
            capabilities=capabilities,
            exit_kinds=frozenset(ExitKind),
        )
        self.memory = mmap.mmap(-1, RAM_SIZE)
        everything = Permission.READ | Permission.WRITE | Permission.EXECUTE
        self.vm.map_memory(MemoryRegion(Gpa(0), memoryview(self.memory), everything))
        for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87), (0x3008, DEVICE | 0x87)):
            self.put(at, entry)  # 2 MiB of memory, then 2 MiB of device at 0x200000
        self.vcpu: HvfVCpu = self.vm.create_vcpu(0)
        self.vcpu.write_registers(
            {"cr0": 0x8005_0033, "cr3": TABLES, "cr4": 0x6A0, "efer": 0xD01, "cs.attributes": 0xA09B,
             "ss.attributes": 0xC093, "rip": START}
        )  # fmt: skip

    def put(self, address: int, value: int, size: int = 8) -> None:
        self.memory[address : address + size] = value.to_bytes(size, "little")

    def number(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.memory[address : address + size], "little")

    def exit(self, reason: int, *, qualification: int = 0, length: int = LENGTH, gpa: int = 0, **values: int) -> None:
        """Write one exit down."""
        self.library.rift_script_exit(ctypes.c_uint32(reason))
        for field, value in ((F_QUALIFICATION, qualification), (F_LENGTH, length), (F_GPA, gpa)):
            self.library.rift_script_field(field, ctypes.c_uint64(value))
        for name, value in {"rip": START, **values}.items():
            self.library.rift_script_register(NUMBERS[name], ctypes.c_uint64(value))

    def field(self, field: int, value: int) -> None:
        """Another field of the exit written down last."""
        self.library.rift_script_field(field, ctypes.c_uint64(value))

    def get(self, number: int) -> int:
        return int(self.library.rift_script_get_register(number))

    def vmcs(self, field: int) -> int:
        return int(self.library.rift_script_get_field(field))

    @property
    def delivered(self) -> int:
        """The event of the last entry that had one."""
        return int(self.library.rift_script_delivered())

    def run(self, reply: int | None = None) -> Exit:
        return self.vcpu.run(reply)

    def run_out(self, reply: int | None = None) -> None:
        """To the end of the script, without an exit before."""
        exit = self.vcpu.run(reply)
        assert (exit.kind, exit.raw_reason) == (ExitKind.UNKNOWN, NO_MORE), exit

    def as_user(self) -> None:
        self.vcpu.write_registers({"ss.attributes": 0xC0F3, "cs.attributes": 0xA0FB})
