"""x86-64 for the fake backend: privileged instructions, ports, system calls. Intel SDM volumes 2 and 3A."""

from __future__ import annotations

from rift_core.exits import Exit, ExitKind
from rift_core.testing.fake_x86_64_access import (
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    GENERAL_PROTECTION,
    MASK64,
    GuestException,
)
from rift_core.testing.fake_x86_64_decode import GENERAL
from rift_core.testing.fake_x86_64_delivery import IF, UNDEFINED
from rift_core.testing.fake_x86_64_integer import Integer

FEATURES = frozenset({"syscall", "nx", "smep", "smap", "pdpe1gb"})
"""Names of what the interpreted CPU has, as in ``CpuFeatures.names``."""

MSRS = {
    0x10: "tsc",
    0x1B: "apic_base",
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0x277: "pat",
    0xC000_0080: "efer",
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0084: "sfmask",
    0xC000_0100: "fs.base",
    0xC000_0101: "gs.base",
    0xC000_0102: "kernel_gs_base",
}
"""MSR numbers to register names: Intel SDM volume 4. Others are SYSTEM_REGISTER exits."""

_CR0_KNOWN, _CR4_KNOWN = 0xE005_003F, (1 << 25) - 1
_CR0_PE, _CR0_PG, _CR4_PAE = 1, 1 << 31, 1 << 5
_EFER_KNOWN = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

_CPUID = {
    # Maximum leaf and "RiftFakeCPU ".
    0: (7, 0x74666952, 0x20555043, 0x656B6146),
    # FPU TSC MSR PAE CX8 PGE CMOV PAT FXSR; no SSE
    1: (0x600, 0x800, 0, 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15 | 1 << 16),
    7: (0, 1 << 7 | 1 << 20, 0, 0),  # SMEP, SMAP
    0x8000_0000: (0x8000_0008, 0, 0, 0),
    0x8000_0001: (0, 0, 0, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29),  # SYSCALL, NX, 1 GiB pages, long mode
    0x8000_0008: (48 << 8 | 46, 0, 0, 0),  # virtual, physical address bits
}
"""CPUID leaves: EAX, EBX, ECX, EDX. Intel SDM volume 2, CPUID."""


class System(Integer):
    """What only privilege level 0 may do, and the doors between levels. Methods return False for unknown opcodes."""

    def privileged(self) -> None:
        """#GP(0) outside privilege level 0."""
        if self.state["cs.selector"] & 3:
            raise GuestException(GENERAL_PROTECTION, 0)

    def system(self, op: int) -> bool:
        """One-byte opcodes."""
        if op in (0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF):
            self._port(op)
        elif op in (0x6C, 0x6D, 0x6E, 0x6F):
            self._port_string(op)
        elif op == 0xF4:
            self.privileged()
            self.exit = Exit(ExitKind.HALT)
        elif op in (0xFA, 0xFB):
            if self.level > self.state["rflags"] >> 12 & 3:
                raise GuestException(GENERAL_PROTECTION, 0)
            self.set_flags(IF if op == 0xFB else 0, IF)
        elif op == 0xCC:
            raise GuestException(3, software=True)
        elif op == 0xCD:
            raise GuestException(self.immediate(1), software=True)
        elif op == 0xCF:
            if self.operand != 8:
                raise GuestException(UNDEFINED)
            self.jump(self.interrupt_return())
        elif op == 0xCB:
            self._far_return()
        elif op == 0x8E or op == 0x8C:
            self._segment(op)
        else:
            return False
        return True

    def extended_system(self, op: int) -> bool:
        """Opcodes behind 0F."""
        state = self.state
        if op == 0x01:
            return self._group7()
        if op == 0x05:
            self.jump(self.system_call(self.next))
        elif op == 0x07:
            if self.operand != 8:
                raise GuestException(UNDEFINED)
            self.jump(self.system_return())
        elif op in (0x06, 0x08, 0x09):  # CLTS, INVD, WBINVD
            self.privileged()
            if op == 0x06:
                state["cr0"] &= ~8
        elif op in (0x20, 0x22):
            self._control(op)
        elif op in (0x21, 0x23):
            self.privileged()
            self.modrm()
            name = f"dr{self.reg & 7}"
            if name not in state:
                raise GuestException(UNDEFINED)
            if op == 0x21:
                self.set(self.rm or 0, 8, state[name])
            else:
                state[name] = self.get(self.rm or 0, 8)
        elif op == 0x30:
            self._write_msr()
        elif op == 0x31:
            state["tsc"] = state["tsc"] + 100 & MASK64
            self.set(0, 4, state["tsc"])
            self.set(2, 4, state["tsc"] >> 32)
        elif op == 0x32:
            self.privileged()
            number = self.get(1, 4)
            name = MSRS.get(number, "")
            value = state[name] if name else self.reply_or_exit(Exit(ExitKind.SYSTEM_REGISTER, number, 8))
            self.set(0, 4, value)
            self.set(2, 4, value >> 32)
        elif op == 0xA2:
            leaf = _CPUID.get(self.get(0, 4), (0, 0, 0, 0))
            for number, value in zip((0, 3, 1, 2), leaf, strict=True):
                self.set(number, 4, value)
        else:
            return False
        return True

    # -- ports -----------------------------------------------------------------------------------

    def _port(self, op: int) -> None:
        size = min(self.operand, 4) if op & 1 else 1
        port = self.immediate(1) if op < 0xE8 else self.get(2, 2)
        self.check_ports(port, size)
        if op & 2:
            self.exit = Exit(ExitKind.PORT_IO, port, size, self.get(0, size), True)
        else:
            self.set(0, size, self.reply_or_exit(Exit(ExitKind.PORT_IO, port, size)))

    def _port_string(self, op: int) -> None:
        state = self.state
        size = min(self.operand, 4) if op & 1 else 1
        port = self.get(2, 2)
        self.check_ports(port, size)
        if self.repeat and state["rcx"] == 0:
            return
        step = -size if state["rflags"] & 0x400 else size
        if op & 2:
            base = state[self.segment] if self.segment else 0
            self.exit = Exit(ExitKind.PORT_IO, port, size, self.read(state["rsi"] + base, size), True)
            state["rsi"] = state["rsi"] + step & MASK64
        else:
            self.write(state["rdi"], size, self.reply_or_exit(Exit(ExitKind.PORT_IO, port, size)))
            state["rdi"] = state["rdi"] + step & MASK64
        if self.repeat:
            self.repeated()

    # -- registers -------------------------------------------------------------------------------

    def _control(self, op: int) -> None:
        self.privileged()
        self.modrm()
        number = GENERAL[self.rm or 0]
        name = f"cr{self.reg}"
        if name not in ("cr0", "cr2", "cr3", "cr4", "cr8"):
            raise GuestException(UNDEFINED)
        if op == 0x20:
            self.state[number] = self.state[name]
            return
        value = self.state[number]
        if name == "cr0" and (value & ~_CR0_KNOWN or not value & _CR0_PE or not value & _CR0_PG):
            raise GuestException(GENERAL_PROTECTION, 0)  # leaving long mode is not interpreted
        if name == "cr4" and (value & ~_CR4_KNOWN or not value & _CR4_PAE or value & 1 << 12):
            raise GuestException(GENERAL_PROTECTION, 0)
        if name == "cr3":
            value &= ~(1 << 63)
            if value >> 52:
                raise GuestException(GENERAL_PROTECTION, 0)
        self.state[name] = value & 15 if name == "cr8" else value
        if name in ("cr0", "cr3", "cr4"):
            self.flush_all()

    def _write_msr(self) -> None:
        self.privileged()
        number = self.get(1, 4)
        value = self.get(0, 4) | self.get(2, 4) << 32
        name = MSRS.get(number)
        if name is None:
            self.exit = Exit(ExitKind.SYSTEM_REGISTER, number, 8, value, True)
            return
        if name == "efer":
            if value & ~_EFER_KNOWN or not value & EFER_LME:
                raise GuestException(GENERAL_PROTECTION, 0)
            value |= EFER_LMA
            self.flush_all()
        elif (name.endswith("base") or name in ("lstar", "cstar")) and value >> 47 not in (0, 0x1FFFF):
            raise GuestException(GENERAL_PROTECTION, 0)
        self.state[name] = value

    def _group7(self) -> bool:
        state = self.state
        self.modrm()
        kind = self.reg & 7
        if self.rm is None:
            self.privileged()
            if kind in (0, 1):
                name = "gdtr" if kind == 0 else "idtr"
                address = self.linear()
                self.write(address, 2, state[f"{name}.limit"])
                self.write(address + 2, 8, state[f"{name}.base"])
            elif kind in (2, 3):
                name = "gdtr" if kind == 2 else "idtr"
                address = self.linear()
                limit, base = self.read(address, 2), self.read(address + 2, 8)
                state[f"{name}.limit"], state[f"{name}.base"] = limit, base
            elif kind == 7:
                self.flush_page(self.linear())
            else:
                return False
            return True
        low = self.rm & 7
        if (kind, low) == (0, 1):  # VMCALL
            number = state["rax"]
            arguments = tuple(state[name] for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9"))
            self.set(0, 8, self.reply_or_exit(Exit(ExitKind.HYPERCALL, number, info=arguments)))
        elif (kind, low) == (7, 0):  # SWAPGS
            self.privileged()
            state["gs.base"], state["kernel_gs_base"] = state["kernel_gs_base"], state["gs.base"]
        elif kind == 1 and low in (2, 3):  # CLAC, STAC
            self.privileged()
            self.set_flags(1 << 18 if low == 3 else 0, 1 << 18)
            self.flush_all()
        else:
            return False
        return True

    def _segment(self, op: int) -> None:
        """MOV from and to segment registers. Bases of the flat ones stay 0: enough for 64-bit code."""
        self.modrm()
        if self.reg > 5 or (op == 0x8E and self.reg == 1):
            raise GuestException(UNDEFINED)
        name = ("es", "cs", "ss", "ds", "fs", "gs")[self.reg]
        if op == 0x8C:
            self.set_rm(self.operand if self.rm is not None else 2, self.state[f"{name}.selector"])
            return
        selector = self.get_rm(2)
        if selector & ~3:
            index = selector & ~7
            if selector & 4 or index + 7 > self.state["gdtr.limit"]:
                raise GuestException(GENERAL_PROTECTION, selector & ~3)
            descriptor = self.read(self.state["gdtr.base"] + index, 8, supervisor=True)
            if not descriptor >> 47 & 1 or not descriptor >> 44 & 1:
                raise GuestException(GENERAL_PROTECTION, selector & ~3)
        elif name == "ss" and self.level == 3:
            raise GuestException(GENERAL_PROTECTION, 0)
        self.state[f"{name}.selector"] = selector
        if name in ("fs", "gs"):
            self.state[f"{name}.base"] = 0

    def _far_return(self) -> None:
        """RETFQ at one privilege level: how CS is loaded in 64-bit code."""
        if self.operand != 8:
            raise GuestException(UNDEFINED)
        rsp = self.state["rsp"]
        rip, cs = self.read(rsp, 8), self.read(rsp + 8, 8) & 0xFFFF
        if cs & 3 != self.level or self._code_level(cs) != self.level:
            raise GuestException(GENERAL_PROTECTION, cs & ~3)
        self.state["rsp"] = rsp + 16 & MASK64
        self._set_code_segment(cs, self.level)
        self.jump(rip)
