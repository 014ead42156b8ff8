"""The experiments on x86-64: CPU flags say what the CPU has, not what this KVM carries out in ring 0."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Permission
from rift_kvm import guest_x86_64 as g
from rift_kvm.guest_x86_64 import Guest
from rift_kvm.measure import Laboratory, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_kvm.vm import KvmVm

    Experiment: TypeAlias = "Callable[[X86Laboratory], bool]"

_HLT = b"\xf4"
_READ_ONLY, _UNBACKED = 0x10_0000, 0x11_0000
_SYSCALL = b"\x0f\x05"
_TRAP_FLAG = 1 << 8  # RFLAGS.TF

INSTRUCTIONS: dict[str, tuple[bytes, int]] = {
    # movups xmm0,[rdi]; addps xmm0,xmm0; pxor xmm1,xmm1; cvtsi2sd xmm1,rax; movups [rdi],xmm0
    "sse": (bytes.fromhex("0f1007 0f58c0 660fefc9 f2480f2ac8 0f1107"), 0),
    # vmovups ymm0,[rdi]; vaddps ymm0,ymm0,ymm0; vmovups [rdi],ymm0; vzeroupper
    "avx": (bytes.fromhex("c5fc1007 c5fc58c0 c5fc1107 c5f877"), g.CR4_OSXSAVE),
    # fld1; fadd st0,st0; fstp qword [rdi]
    "x87": (bytes.fromhex("d9e8 d8c0 dd1f"), 0),
    "popcnt": (bytes.fromhex("f3480fb8c0"), 0),  # popcnt rax,rax
    "bmi": (bytes.fromhex("c4e2f8f2c0"), 0),  # andn rax,rax,rax
    "cmpxchg16b": (bytes.fromhex("480fc70f"), 0),  # [rdi]
    "rdtscp": (bytes.fromhex("0f01f9"), 0),
    "xsave": (bytes.fromhex("31c9 0f01d0"), g.CR4_OSXSAVE),  # xor ecx,ecx; xgetbv
    "fsgsbase": (bytes.fromhex("f3480faec0"), g.CR4_FSGSBASE),  # rdfsbase rax
}
"""Feature name -> code that must run through in ring 0, and the bits of CR4 that it needs."""


class X86Laboratory(Laboratory):
    """With a long-mode guest in it."""

    def __init__(self, vm: KvmVm) -> None:
        self.guest = Guest()
        super().__init__(vm, self.guest.memory, self.guest.reset)

    def attempt(self, code: bytes, *, user: bool = False, cr4: int = 0, efer: int = 0) -> Exit | None:
        """Run ``code`` from the start; the exit, or None when KVM refuses or time is over."""
        self.prepare(code, user=user, cr4=cr4, efer=efer)
        return self.go_on()

    def prepare(self, code: bytes, *, user: bool = False, cr4: int = 0, efer: int = 0) -> None:
        """Put ``code`` in place and the vCPU in front of it."""
        self.guest.store(g.CODE, code + _HLT)
        self.vcpu.write_registers(self.guest.registers(user=user, cr4=cr4, efer=efer))

    def rip(self) -> int:
        """Where the guest stands."""
        return self.vcpu.read_registers(("rip",))["rip"]

    def halted_at(self, exit: Exit | None, address: int) -> bool:
        """Whether the guest came to the HLT at ``address``."""
        return exit is not None and exit.kind is ExitKind.HALT and self.rip() == address + 1

    def faulted(self, exit: Exit | None, vector: int) -> bool:
        """Whether exception ``vector`` arrived through the guest's IDT."""
        return self.halted_at(exit, g.STUBS + 4 * vector)

    def runs(self, code: bytes, *, user: bool = False, cr4: int = 0, efer: int = 0) -> bool:
        """Whether ``code`` runs through, to the HLT behind it."""
        try:
            return self.halted_at(self.attempt(code, user=user, cr4=cr4, efer=efer), g.CODE + len(code))
        except HypervisorError:
            return False


def measure(vm: KvmVm) -> Measured | None:
    """All experiments, or None when not even a HLT in ring 0 works.

    ``vm`` is empty, and of no use afterwards.
    """
    laboratory = X86Laboratory(vm)
    with laboratory.timed():
        if not laboratory.runs(b""):
            return None
        xcr0 = _xcr0(laboratory)
        names = _those_that_hold(_FEATURES, laboratory)
        for name, (code, cr4) in INSTRUCTIONS.items():
            if laboratory.runs(code, cr4=cr4):
                names.add(name)
        capabilities = _those_that_hold(_CAPABILITIES, laboratory)
        page_sizes: tuple[int, ...] = (0x1000, 0x20_0000)
        if laboratory.holds(lambda: _gigabyte_pages(laboratory)):
            page_sizes += (0x4000_0000,)
        if "syscall" in names:
            capabilities.add("syscall")
        if "sse" in names:
            capabilities.add("vector_supervisor")
        return Measured(frozenset(names), frozenset(capabilities), page_sizes, xcr0)


def _those_that_hold(experiments: dict[str, Experiment], laboratory: X86Laboratory) -> set[str]:
    def holds(experiment: Experiment) -> bool:
        return laboratory.holds(lambda: experiment(laboratory))

    return {name for name, experiment in experiments.items() if holds(experiment)}


def _xcr0(laboratory: X86Laboratory) -> int:
    """The largest set of x87, SSE, AVX and AVX-512 state that KVM_SET_XCRS takes (Intel SDM volume 1, 13.3)."""
    laboratory.prepare(b"", cr4=g.CR4_OSXSAVE)
    for mask in (0xE7, 0x7, 0x3):
        try:
            laboratory.vcpu.write_registers({"xcr0": mask})
            return mask
        except HypervisorError:
            continue
    return 1


def _syscall(laboratory: X86Laboratory) -> bool:
    """SYSCALL in ring 3 reaches ring 0: the HLT at LSTAR is executed there."""
    laboratory.prepare(_SYSCALL, user=True)
    laboratory.vcpu.write_registers(
        {"star": (0x10 << 48 | g.KERNEL_CODE << 32), "lstar": g.SYSCALL_CODE, "sfmask": 0x200}
    )
    return laboratory.halted_at(laboratory.go_on(), g.SYSCALL_CODE)


def _no_execute(laboratory: X86Laboratory) -> bool:
    """A page with bit 63 set cannot be executed."""
    entry = g.PD + 8  # the second 2 MiB are the first once more, without execution
    laboratory.guest.store(entry, struct.pack("<Q", 1 << 63 | g.LARGE | g.PRESENT | g.WRITABLE | g.USER))
    # mov eax, 0x200000 + CODE; jmp rax
    target = 0x20_0000 + g.DATA
    laboratory.guest.store(g.DATA, _HLT)
    exit = laboratory.attempt(b"\xb8" + struct.pack("<I", target) + b"\xff\xe0", efer=g.EFER_NXE)
    return laboratory.faulted(exit, 14)


def _kernel_only_code(laboratory: X86Laboratory) -> None:
    """The second 2 MiB are the first once more, for ring 0 only, and code there goes on in the first."""
    laboratory.guest.store(g.PD + 8, struct.pack("<Q", g.LARGE | g.PRESENT | g.WRITABLE))


def _supervisor(laboratory: X86Laboratory, code: bytes, cr4: int) -> Exit | None:
    """Run ``code`` in ring 0 from a page, and with descriptors and a stack, that only ring 0 may use."""
    _kernel_only_code(laboratory)
    laboratory.prepare(code, cr4=cr4)
    high = 0x20_0000
    for vector in range(256):
        stub = high + g.STUBS + 4 * vector
        gate = (stub & 0xFFFF) | g.KERNEL_CODE << 16 | 0x8E00 << 32 | (stub >> 16 & 0xFFFF) << 48
        laboratory.guest.store(g.IDT + 16 * vector, struct.pack("<QQ", gate, 0))
    laboratory.vcpu.write_registers(
        {
            "rip": high + g.CODE,
            "rsp": high + g.STACK,
            "gdtr.base": high + g.GDT,
            "idtr.base": high + g.IDT,
            "tr.base": high + g.TSS,
        }
    )
    return laboratory.go_on()


def _smep(laboratory: X86Laboratory) -> bool:
    """Ring 0 cannot execute a user page: mov eax, CODE + 16; jmp rax."""
    code = b"\xb8" + struct.pack("<I", g.CODE + 16) + b"\xff\xe0"
    return laboratory.halted_at(_supervisor(laboratory, code, g.CR4_SMEP), 0x20_0000 + g.STUBS + 4 * 14)


def _smap(laboratory: X86Laboratory) -> bool:
    """Ring 0 cannot read a user page: mov eax, [rdi]."""
    return laboratory.halted_at(_supervisor(laboratory, b"\x8b\x07", g.CR4_SMAP), 0x20_0000 + g.STUBS + 4 * 14)


def _gigabyte_pages(laboratory: X86Laboratory) -> bool:
    entry = g.LARGE | g.PRESENT | g.WRITABLE | g.USER
    laboratory.guest.store(g.PDPT, struct.pack("<Q", entry))
    laboratory.vm.flush_translations()
    try:
        return laboratory.runs(b"\x8b\x07")
    finally:
        laboratory.guest.reset()
        laboratory.vm.flush_translations()


def _inject(laboratory: X86Laboratory) -> bool:
    laboratory.prepare(b"")
    laboratory.vcpu.inject_exception(6)
    return laboratory.faulted(laboratory.go_on(), 6)


def _read_only(laboratory: X86Laboratory) -> bool:
    with laboratory.page(_READ_ONLY, Permission.READ) as page:
        exit = laboratory.attempt(b"\xc7\x04\x25" + struct.pack("<II", _READ_ONLY, 0x1234))  # mov dword [..], 0x1234
        return (
            exit is not None
            and exit.kind is ExitKind.MMIO
            and exit.is_write
            and (exit.address, exit.size, exit.value) == (_READ_ONLY, 4, 0x1234)
            and page[:4] == bytes(4)
        )


def _memory_fault(laboratory: X86Laboratory) -> bool:
    """Memory that the host has taken away gives an exit of its own, not MMIO."""
    with laboratory.unbacked_page(_UNBACKED):
        exit = laboratory.attempt(b"\x8b\x04\x25" + struct.pack("<I", _UNBACKED))  # mov eax, [..]
        return exit is not None and exit.kind is ExitKind.MEMORY_FAULT


def _msr_exit(laboratory: X86Laboratory) -> bool:
    exit = laboratory.attempt(b"\xb9\x45\x23\x01\x00\x0f\x32")  # mov ecx, 0x12345; rdmsr
    return exit is not None and exit.kind is ExitKind.SYSTEM_REGISTER and exit.address == 0x12345


def _tsc_offset(laboratory: X86Laboratory) -> bool:
    """A time-stamp counter that the host has set goes on from there once the guest runs."""
    laboratory.renew()
    laboratory.prepare(b"")
    start = 1 << 60  # no host's counter comes there: twelve years at 3 GHz
    laboratory.vcpu.write_registers({"tsc": start})
    exit = laboratory.go_on()
    return exit is not None and laboratory.vcpu.read_registers(("tsc",))["tsc"] >= start


def _step(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(b"\x90\x90", user=user)
        laboratory.vcpu.set_debug(single_step=True)
        exit = laboratory.go_on()
        return exit is not None and exit.kind is ExitKind.DEBUG and exit.info[0] == 1 and laboratory.rip() == g.CODE + 1

    return experiment


def _hardware_breakpoint(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(b"\x90\x90\x90", user=user)
        laboratory.vcpu.set_debug(breakpoints=(g.CODE + 2,))
        exit = laboratory.go_on()
        return exit is not None and exit.kind is ExitKind.DEBUG and laboratory.rip() == g.CODE + 2

    return experiment


def _software_breakpoint(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        laboratory.renew()
        laboratory.prepare(b"\x90\xcc\x90", user=user)
        laboratory.vcpu.set_debug(software=True)
        exit = laboratory.go_on()
        return exit is not None and exit.kind is ExitKind.DEBUG and exit.info[0] == 2

    return experiment


def _watchpoint(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        laboratory.renew()
        store = b"\x48\xa3" + g.DATA.to_bytes(8, "little")  # mov [DATA], rax
        laboratory.prepare(b"\x90" + store + b"\x90\x90", user=user)
        laboratory.vcpu.set_debug(watchpoints=(Watchpoint(g.DATA, 8, "write"),))
        exit = laboratory.go_on()
        return exit is not None and exit.kind is ExitKind.DEBUG and exit.info[:2] == (4, g.DATA)

    return experiment


def _breakpoint_failure(laboratory: X86Laboratory) -> bool:
    exit = laboratory.attempt(b"\x90\xcc")
    return (
        exit is not None
        and exit.kind is ExitKind.FAIL_ENTRY
        and exit.size > 0
        and exit.info[0] & 0xFF == 0xCC
        and laboratory.rip() == g.CODE + 1
    )


def _breakpoint_vector(user: bool) -> Experiment:
    return lambda laboratory: laboratory.faulted(laboratory.attempt(b"\x90\xcc\x90", user=user), 3)


def _step_vector(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        laboratory.prepare(b"\x90\x90", user=user)
        laboratory.vcpu.write_registers({"rflags": 2 | _TRAP_FLAG})
        return laboratory.faulted(laboratory.go_on(), 1)

    return experiment


def _software_interrupt(user: bool) -> Experiment:
    def experiment(laboratory: X86Laboratory) -> bool:
        return laboratory.faulted(laboratory.attempt(b"\xcd\x80", user=user), 0x80)  # int 0x80

    return experiment


_FEATURES: dict[str, Experiment] = {
    "syscall": _syscall,
    "nx": _no_execute,
    "smep": _smep,
    "smap": _smap,
    "pcid": lambda laboratory: laboratory.runs(b"", cr4=g.CR4_PCIDE),
    "la57": lambda laboratory: laboratory.runs(b"", cr4=g.CR4_LA57),
}

_CAPABILITIES: dict[str, Experiment] = {
    "inject_exception": _inject,
    "readonly_memory": _read_only,
    "memory_fault_exit": _memory_fault,
    "user_msr_exit": _msr_exit,
    "tsc_offset": _tsc_offset,
    "software_interrupts": _software_interrupt(False),
    "software_interrupts_user": _software_interrupt(True),
    "breakpoint_failure": _breakpoint_failure,
    "breakpoint_vector": _breakpoint_vector(False),
    "breakpoint_vector_user": _breakpoint_vector(True),
    "step_vector": _step_vector(False),
    "step_vector_user": _step_vector(True),
    "debug_single_step": _step(False),
    "debug_single_step_user": _step(True),
    "debug_hw_breakpoint": _hardware_breakpoint(False),
    "debug_hw_breakpoint_user": _hardware_breakpoint(True),
    "debug_sw_breakpoint": _software_breakpoint(False),
    "debug_sw_breakpoint_user": _software_breakpoint(True),
    "debug_watchpoint": _watchpoint(False),
    "debug_watchpoint_user": _watchpoint(True),
}
