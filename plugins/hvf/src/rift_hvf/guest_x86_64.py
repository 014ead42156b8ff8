"""The x86-64 guest of the experiments: long mode, one large page for both rings, one HLT for each exception.

Layouts: Intel SDM volume 3, 3.4.5 (segment descriptors), 4.5 (paging), 6.14.1 (64-bit IDT), 7.7 (64-bit TSS).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rift_core.backend import Watchpoint
from rift_core.errors import HypervisorError
from rift_core.exits import Exit, ExitKind
from rift_hvf.measure import READ_ONLY, Laboratory, Measured

if TYPE_CHECKING:
    from collections.abc import Callable

PML4, PDPT, PD, GDT, TSS, IDT, STUBS, CODE, SYSCALL_CODE, DATA = (
    0x2000, 0x3000, 0x4000, 0x5000, 0x5800, 0x6000, 0x7000, 0x8000, 0x9000, 0xA000
)  # fmt: skip
STACK, USER_STACK = 0xC000, 0xE000
HIGH = 0x20_0000 * 2
"""The third 2 MiB are the first once more, for ring 0 only."""

PRESENT, WRITABLE, USER, LARGE = 1, 2, 4, 0x80
NO_EXECUTE = 1 << 63
CR0, CR4 = 0x8005_0033, 0x6A0
CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP = (1 << bit for bit in (16, 17, 18, 20, 21))
EFER = 0xD01  # NXE, LMA, LME, SCE
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28
_DESCRIPTORS = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF)
_HLT = b"\xf4"
STEP, BREAKPOINT, UNDEFINED, PAGE_FAULT = 1, 3, 6, 14
TRAP_FLAG = 1 << 8  # of RFLAGS

INSTRUCTIONS = {
    # movups xmm0,[rdi]; addps xmm0,xmm0; pxor xmm1,xmm1; cvtsi2sd xmm1,rax; movups [rdi],xmm0
    "sse": ("0f1007 0f58c0 660fefc9 f2480f2ac8 0f1107", 0),
    # vmovups ymm0,[rdi]; vaddps ymm0,ymm0,ymm0; vmovups [rdi],ymm0; vzeroupper
    "avx": ("c5fc1007 c5fc58c0 c5fc1107 c5f877", CR4_OSXSAVE),
    "x87": ("d9e8 d8c0 dd1f", 0),  # fld1; fadd st0,st0; fstp qword [rdi]
    "popcnt": ("f3480fb8c0", 0),  # popcnt rax,rax
    "bmi": ("c4e2f8f2c0", 0),  # andn rax,rax,rax
    "cmpxchg16b": ("480fc70f", 0),  # [rdi]
    "rdtscp": ("0f01f9", 0),
    "xsave": ("31c9 0f01d0", CR4_OSXSAVE),  # xor ecx,ecx; xgetbv
    "fsgsbase": ("f3480faec0", CR4_FSGSBASE),  # rdfsbase rax
    "pcid": ("", CR4_PCIDE),
}
"""Feature name -> code that must run through in ring 0, and the bits of CR4 that it needs."""


CAPABILITY_OF = {"syscall": "syscall", "sse": "vector_supervisor"}
"""Feature name -> what Rift calls it where it works in a guest."""


class X86Guest:
    """See ``rift_hvf.measure.Guest``."""

    code = CODE
    program_counter = "rip"

    def __init__(self) -> None:
        self.capabilities = CAPABILITIES

    def fill(self, memory: memoryview) -> None:
        """Page tables, GDT, TSS and an IDT whose handlers halt."""
        flags = PRESENT | WRITABLE | USER
        for at, entry in ((PML4, PDPT | flags), (PDPT, PD | flags), (PD, LARGE | flags)):
            struct.pack_into("<Q", memory, at, entry)
        struct.pack_into("<Q", memory, PD + 8, READ_ONLY | LARGE | flags)
        struct.pack_into("<Q", memory, PD + 16, LARGE | PRESENT | WRITABLE)
        tss = (0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16, 0)
        struct.pack_into("<7Q", memory, GDT, *_DESCRIPTORS, *tss)
        struct.pack_into("<Q", memory, TSS + 4, STACK)  # RSP0
        struct.pack_into("<H", memory, TSS + 0x66, 0x68)  # the I/O map lies beyond the limit: ring 3 has no port
        memory[STUBS : STUBS + 1024] = _HLT * 1024
        memory[SYSCALL_CODE : SYSCALL_CODE + 1] = _HLT
        self.gates(memory, STUBS, 0xEE00)

    def gates(self, memory: memoryview, stubs: int, attributes: int) -> None:
        """The IDT: handlers 4 bytes apart from ``stubs`` on."""
        for vector in range(256):
            stub = stubs + 4 * vector
            gate = (stub & 0xFFFF) | KERNEL_CODE << 16 | attributes << 32 | (stub >> 16 & 0xFFFF) << 48
            struct.pack_into("<QQ", memory, IDT + 16 * vector, gate, 0)

    def registers(self) -> dict[str, int]:
        """Ring 0, in front of the code."""
        values = {
            "rip": CODE, "rsp": STACK, "rflags": 2, "rdi": DATA, "cr0": CR0, "cr3": PML4, "cr4": CR4, "efer": EFER,
            "gdtr.base": GDT, "gdtr.limit": 8 * 7 - 1, "idtr.base": IDT, "idtr.limit": 0xFFF,
            "tr.selector": TASK, "tr.base": TSS, "tr.limit": 0x67, "tr.attributes": 0x8B,
            "ldtr.selector": 0, "ldtr.attributes": 0,
        }  # fmt: skip
        return values | self.ring(0)

    def ring(self, level: int) -> dict[str, int]:
        """Segments and stack of ring 0 or 3."""
        code, data, dpl = (USER_CODE, USER_DATA, 0x60) if level else (KERNEL_CODE, KERNEL_DATA, 0)
        values = {"rsp": USER_STACK if level else STACK}
        for name in ("cs", "ds", "es", "ss", "fs", "gs"):
            values[f"{name}.selector"] = code if name == "cs" else data
            values[f"{name}.base"] = 0
            values[f"{name}.limit"] = 0xFFFF_FFFF
            values[f"{name}.attributes"] = (0xA09B if name == "cs" else 0xC093) | dpl
        return values

    def halts(self, laboratory: Laboratory, exit: Exit | None, address: int) -> bool:
        """Whether the HLT at ``address`` was executed."""
        return exit is not None and exit.kind is ExitKind.HALT and laboratory.pc() == address + 1

    def end(self) -> bytes:
        """HLT."""
        return _HLT

    def cpu(self, laboratory: Laboratory) -> Measured:
        """Features, page sizes and XCR0, each by an experiment."""
        xcr0 = _xcr0(laboratory)
        experiments = {name: _instructions(*row) for name, row in INSTRUCTIONS.items()}
        experiments |= {"syscall": _syscall, "nx": _no_execute, "smep": _smep, "smap": _smap}
        names = frozenset(name for name, experiment in experiments.items() if laboratory.holds(experiment))
        more = (0x4000_0000,) if laboratory.holds(_gigabyte_pages) else ()
        capabilities = frozenset(capability for name, capability in CAPABILITY_OF.items() if name in names)
        return Measured(names, capabilities, (0x1000, 0x20_0000, *more), xcr0)


def _xcr0(laboratory: Laboratory) -> int:
    """The largest set of x87, SSE, AVX and AVX-512 state that XCR0 takes (SDM volume 1, 13.3)."""
    for mask in (0xE7, 0x7, 0x3):
        laboratory.prepare(b"", cr4=CR4 | CR4_OSXSAVE)
        try:
            laboratory.vcpu.write_registers({"xcr0": mask})
        except HypervisorError:
            continue
        if laboratory.guest.halts(laboratory, laboratory.go_on(), CODE):
            return mask
    return 1


def _faulted(laboratory: Laboratory, exit: Exit | None, vector: int, stubs: int = STUBS) -> bool:
    """Whether exception ``vector`` arrived through the guest's IDT."""
    return laboratory.guest.halts(laboratory, exit, stubs + 4 * vector)


def _instructions(code: str, cr4: int) -> Callable[[Laboratory], bool]:
    return lambda laboratory: laboratory.runs(bytes.fromhex(code), cr4=CR4 | cr4)


def _syscall(laboratory: Laboratory) -> bool:
    """SYSCALL in ring 3 reaches ring 0: the HLT at LSTAR is executed there."""
    star = 0x10 << 48 | KERNEL_CODE << 32
    laboratory.prepare(b"\x0f\x05", **X86Guest().ring(3), star=star, lstar=SYSCALL_CODE, sfmask=0x200)
    return laboratory.guest.halts(laboratory, laboratory.go_on(), SYSCALL_CODE)


def _jump(target: int) -> bytes:
    return b"\xb8" + struct.pack("<I", target) + b"\xff\xe0"  # mov eax, target; jmp rax


def _no_execute(laboratory: Laboratory) -> bool:
    """A page with bit 63 set cannot be executed."""
    laboratory.store(PD + 16, struct.pack("<Q", NO_EXECUTE | LARGE | PRESENT | WRITABLE | USER))
    laboratory.store(DATA, _HLT)
    return _faulted(laboratory, laboratory.attempt(_jump(HIGH + DATA)), PAGE_FAULT)


def _supervisor(laboratory: Laboratory, code: bytes, cr4: int) -> bool:
    """``code`` in ring 0, with everything that it stands on in the page of ring 0, is a page fault."""
    guest = X86Guest()
    guest.gates(laboratory.memory, HIGH + STUBS, 0x8E00)
    places = {"gdtr.base": HIGH + GDT, "idtr.base": HIGH + IDT, "tr.base": HIGH + TSS}
    laboratory.prepare(code, cr4=CR4 | cr4, rip=HIGH + CODE, rsp=HIGH + STACK, **places)
    return _faulted(laboratory, laboratory.go_on(), PAGE_FAULT, HIGH + STUBS)


def _smep(laboratory: Laboratory) -> bool:
    """Ring 0 cannot execute a user page."""
    return _supervisor(laboratory, _jump(CODE + 16), CR4_SMEP)


def _smap(laboratory: Laboratory) -> bool:
    """Ring 0 cannot read a user page: mov eax, [rdi]."""
    return _supervisor(laboratory, b"\x8b\x07", CR4_SMAP)


def _gigabyte_pages(laboratory: Laboratory) -> bool:
    laboratory.store(PDPT, struct.pack("<Q", LARGE | PRESENT | WRITABLE | USER))
    laboratory.vm.flush_translations()
    return laboratory.runs(b"\x8b\x07")


def _inject(laboratory: Laboratory) -> bool:
    laboratory.prepare(b"")
    laboratory.vcpu.inject_exception(UNDEFINED)
    return _faulted(laboratory, laboratory.go_on(), UNDEFINED)


def _interrupt(laboratory: Laboratory) -> bool:
    """An interrupt that was injected while they were off arrives when they are on: sti; nop; jmp $."""
    laboratory.prepare(b"\xfb\x90\xeb\xfe")
    laboratory.vcpu.inject_interrupt(0x40)
    return _faulted(laboratory, laboratory.go_on(), 0x40)


def _read_only(laboratory: Laboratory) -> bool:
    """A store to a read-only region is an exit, and changes nothing: mov dword [READ_ONLY], 0x1234."""
    return laboratory.is_read_only(b"\xc7\x04\x25" + struct.pack("<II", READ_ONLY, 0x1234), 0x1234, 4)


def _msr_exit(laboratory: Laboratory) -> bool:
    exit = laboratory.attempt(b"\xb9\x45\x23\x01\x00\x0f\x32")  # mov ecx, 0x12345; rdmsr
    return exit is not None and exit.kind is ExitKind.SYSTEM_REGISTER and exit.address == 0x12345


def _hypercall(laboratory: Laboratory) -> bool:
    exit = laboratory.attempt(b"\x0f\x01\xc1", rax=0x77)  # vmcall
    return exit is not None and exit.kind is ExitKind.HYPERCALL and exit.address == 0x77


def _tsc_offset(laboratory: Laboratory) -> bool:
    """A time-stamp counter that the host has set goes on from there once the guest runs."""
    laboratory.prepare(b"", tsc=_START)
    return laboratory.go_on() is not None and laboratory.register("tsc") >= _START


def _breakpoint_vector(user: bool) -> Callable[[Laboratory], bool]:
    return lambda laboratory: _faulted(
        laboratory, laboratory.attempt(b"\xcc", **X86Guest().ring(3 if user else 0)), BREAKPOINT
    )


def _step_vector(user: bool) -> Callable[[Laboratory], bool]:
    return lambda laboratory: _faulted(
        laboratory, laboratory.attempt(b"\x90\x90", **X86Guest().ring(3 if user else 0), rflags=2 | TRAP_FLAG), STEP
    )


def _debug(code: bytes, what: int, at: int, user: bool, **choice: object) -> Callable[[Laboratory], bool]:
    """A DEBUG exit of kind ``what`` (``rift_abi.h``) with RIP at ``at`` bytes of the code."""

    def experiment(laboratory: Laboratory) -> bool:
        laboratory.prepare(code, **X86Guest().ring(3 if user else 0))
        laboratory.vcpu.set_debug(**choice)  # type: ignore[arg-type]
        exit = laboratory.go_on()
        return (
            exit is not None and exit.kind is ExitKind.DEBUG and exit.info[0] == what and laboratory.pc() == CODE + at
        )

    return experiment


def _software_interrupt(user: bool) -> Callable[[Laboratory], bool]:
    def experiment(laboratory: Laboratory) -> bool:
        return _faulted(laboratory, laboratory.attempt(b"\xcd\x80", **X86Guest().ring(3 if user else 0)), 0x80)

    return experiment


_START = 1 << 60  # no host's counter comes there: twelve years at 3 GHz
_STORE = b"\x48\xa3" + DATA.to_bytes(8, "little")  # mov [DATA], rax
CAPABILITIES: dict[str, Callable[[Laboratory], bool]] = {
    "inject_exception": _inject,
    "inject_interrupt": _interrupt,
    "readonly_memory": _read_only,
    "user_msr_exit": _msr_exit,
    "hypercall_exit": _hypercall,
    "tsc_offset": _tsc_offset,
    "software_interrupts": _software_interrupt(False),
    "software_interrupts_user": _software_interrupt(True),
}
for _suffix, _user in (("", False), ("_user", True)):
    CAPABILITIES |= {
        f"breakpoint_vector{_suffix}": _breakpoint_vector(_user),
        f"step_vector{_suffix}": _step_vector(_user),
        f"debug_single_step{_suffix}": _debug(b"\x90\x90", 1, 1, _user, single_step=True),
        f"debug_hw_breakpoint{_suffix}": _debug(b"\x90\x90\x90", 3, 2, _user, breakpoints=(CODE + 2,)),
        f"debug_sw_breakpoint{_suffix}": _debug(b"\x90\xcc\x90", 2, 1, _user, software=True),
        f"debug_watchpoint{_suffix}": _debug(
            b"\x90" + _STORE + b"\x90\x90", 4, 11, _user, watchpoints=(Watchpoint(DATA, 8, "write"),)
        ),
    }
