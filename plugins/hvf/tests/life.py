"""A machine's whole life in a few lines, for tests that disturb it: on either ISA, over a stand-in."""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
from typing import TYPE_CHECKING

from rift_core.exits import ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_hvf import HvfConfig
from rift_hvf.framework import open_framework
from rift_hvf.guest_aarch64 import Aarch64Guest
from rift_hvf.guest_x86_64 import X86Guest
from rift_hvf.measure import MEMORY_SIZE, PAGE, aligned
from rift_hvf.vm import HvfVm

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.exits import Exit
    from rift_hvf.measure import Guest
    from rift_hvf.vcpu import HvfVCpu

DEVICE = 0x40_0000
"""Guest-physical address where nothing is; both guests reach it (on x86-64 as ring 0)."""

EXTRA = 0x20_0000

CAPABILITIES = frozenset(
    {"inject_exception", "inject_interrupt", "readonly_memory", "user_msr_exit", "hypercall_exit",
     "debug_single_step", "debug_hw_breakpoint", "debug_sw_breakpoint", "debug_watchpoint"}
)  # fmt: skip
SUM = {
    # mov ecx, 1000; xor eax, eax; again: add rax, rcx; loop again; out 0x80, al
    "x86_64": bytes.fromhex("b9e8030000 31c0 4801c8 e2fb e680"),
    # mov x1, 1000; mov x0, 0; again: add x0, x0, x1; subs x1, x1, 1; b.ne again; str x0, [x26]
    "aarch64": struct.pack("<6I", 0xD2807D01, 0xD2800000, 0x8B010000, 0xF1000421, 0x54FFFFC1, 0xF9000340),
}
FOREVER = {"x86_64": b"\xeb\xfe", "aarch64": struct.pack("<I", 0x14000000)}


def guest_of(isa: str) -> Guest:
    """The guest of the backend's own experiments, which maps memory one to one."""
    return X86Guest() if isa == "x86_64" else Aarch64Guest()


def new_vm(path: Path, isa: str) -> HvfVm:
    """A VM as the backend makes it, without a probe before."""
    return HvfVm(
        HvfConfig(framework=str(path)),
        open_framework(str(path)),
        page_size=PAGE if isa == "aarch64" else 4096,
        gpa_bits=36,
        capabilities=CAPABILITIES,
        exit_kinds=frozenset(ExitKind),
    )


def new_memory(size: int = MEMORY_SIZE) -> memoryview:
    """Page-aligned bytes, as either framework wants them."""
    return aligned(mmap.mmap(-1, size + PAGE), PAGE)[:size]


def region(address: int, memory: memoryview, permissions: str = "rwx") -> MemoryRegion:
    """A region of the guest's memory."""
    flags = {"r": Permission.READ, "w": Permission.WRITE, "x": Permission.EXECUTE}
    total = Permission(0)
    for letter in permissions:
        total |= flags[letter]
    return MemoryRegion(Gpa(address), memory, total)


class Life:
    """A VM with one vCPU and a guest in front of its code."""

    def __init__(self, path: Path, isa: str) -> None:
        self.isa, self.guest = isa, guest_of(isa)
        self.vm = new_vm(path, isa)
        try:
            self.memory = new_memory()
            self.guest.fill(self.memory)
            self.vm.map_memory(region(0, self.memory))
            self.vcpu: HvfVCpu = self.vm.create_vcpu(0)
        except BaseException:
            self.vm.close()
            raise

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *raised: object) -> None:
        self.vm.close()

    def put(self, code: bytes, **registers: int) -> None:
        """Code, and the vCPU in front of it."""
        whole = code + self.guest.end()
        self.memory[self.guest.code : self.guest.code + len(whole)] = whole
        self.vm.code_changed(Gpa(self.guest.code), len(whole))
        self.vcpu.write_registers({**self.guest.registers(), **registers})

    def run(self, reply: int | None = None) -> Exit:
        """Up to an exit that is not INTERRUPTED."""
        while True:
            exit = self.vcpu.run(reply)
            if exit.kind is not ExitKind.INTERRUPTED:
                return exit

    def register(self, name: str) -> int:
        return self.vcpu.read_registers((name,))[name]

    def sum(self) -> int:
        """A loop of 1000 rounds, whose sum comes with an exit; then the guest's end."""
        self.put(SUM[self.isa])
        exit = self.run()
        value = exit.value if self.isa == "aarch64" else self.register("rax")
        assert exit.kind in (ExitKind.PORT_IO, ExitKind.MMIO)
        exit = self.run()
        assert exit.kind in (ExitKind.HALT, ExitKind.MMIO)
        return value


TOTAL = 1000 * 1001 // 2


def whole(path: Path, isa: str) -> int:
    """From creation to the end, with everything that calls the framework in between; what the guest computed."""
    with Life(path, isa) as life:
        value = life.sum()
        extra = new_memory(PAGE)
        life.vm.map_memory(region(EXTRA, extra, "r"))
        life.vm.flush_translations()
        life.vcpu.set_debug(single_step=True)
        life.put(SUM[isa])
        assert life.run().kind is ExitKind.DEBUG
        life.vcpu.set_debug()
        state = life.vcpu.save()
        life.vcpu.restore(state)
        life.vcpu.inject_exception(6 if isa == "x86_64" else 0)
        assert life.run().kind in (ExitKind.HALT, ExitKind.MMIO)
        life.vcpu.park()
        life.vcpu.adopt()
        value += life.sum()
        life.vm.unmap_memory(Gpa(EXTRA))
        return value


def functions(path: Path) -> list[str]:
    """What a stand-in exports of the framework."""
    listing = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    return sorted(set(re.findall(r" T (hv_\w+)", listing.stdout)))
