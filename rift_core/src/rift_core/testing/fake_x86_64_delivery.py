"""x86-64 for the fake backend: exceptions through the guest's IDT, and the ways back from them.

Rules: Intel SDM volume 3A, chapter 6 (gates, stack switching with TSS and IST, double faults), and
volume 2 under IRET, SYSCALL and SYSRET.
"""

from __future__ import annotations

from rift_core.exits import Exit, ExitKind
from rift_core.testing.fake_x86_64_access import (
    EFER_SCE,
    GENERAL_PROTECTION,
    MASK64,
    PAGE_FAULT,
    READ,
    Access,
    GuestException,
)

TF, IF, DF, NT, RF, AC = 1 << 8, 1 << 9, 1 << 10, 1 << 14, 1 << 16, 1 << 18
_IRET_FLAGS = 0x0024_7FD5  # what IRET and POPF may set at privilege level 0; volume 1, section 3.4.3
_ALWAYS = 2

UNDEFINED, DOUBLE_FAULT, NOT_PRESENT, INVALID_TSS = 6, 8, 11, 10
_CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})
_WITH_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})

_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF

CODE64_ATTRIBUTES, DATA_ATTRIBUTES = 0xA09B, 0xC093
"""Access rights of flat segments of privilege level 0, as in bits 40 to 55 of a descriptor."""


def _canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1FFFF)


class Delivery(Access):
    """Control transfers between privilege levels."""

    @property
    def level(self) -> int:
        """The current privilege level."""
        level: int = self.state["cs.selector"] & 3
        return level

    def deliver(self, fault: GuestException, rip: int) -> Exit | None:
        """Enter the guest's handler; ``rip`` is what it returns to. A triple fault is a SHUTDOWN exit."""
        current = fault
        for _ in range(8):
            try:
                self._enter_gate(current, rip)
                return None
            except GuestException as nested:
                if current.vector == DOUBLE_FAULT:
                    break
                current = _combined(current, nested)
        return Exit(ExitKind.SHUTDOWN)

    def _enter_gate(self, fault: GuestException, rip: int) -> None:
        state, vector = self.state, fault.vector
        if vector == PAGE_FAULT:
            state["cr2"] = fault.address
        gate_code = vector * 8 + 2 + (0 if fault.software else 1)
        if vector * 16 + 15 > state["idtr.limit"]:
            raise GuestException(GENERAL_PROTECTION, gate_code)
        low = self.read(state["idtr.base"] + vector * 16, 8, supervisor=True)
        high = self.read(state["idtr.base"] + vector * 16 + 8, 8, supervisor=True)
        gate_type = low >> 40 & 0x1F
        if gate_type not in (_INTERRUPT_GATE, _TRAP_GATE) or (fault.software and low >> 45 & 3 < self.level):
            raise GuestException(GENERAL_PROTECTION, gate_code)
        if not low >> 47 & 1:
            raise GuestException(NOT_PRESENT, gate_code)
        offset = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        selector = low >> 16 & 0xFFFF
        new_level = self._code_level(selector)
        old_level = self.level
        if new_level > old_level:
            raise GuestException(GENERAL_PROTECTION, selector & ~3)
        interrupt_stack = low >> 32 & 7
        rsp = state["rsp"]
        if interrupt_stack:
            rsp = self._task_stack(0x24 + 8 * (interrupt_stack - 1))
        elif new_level < old_level:
            rsp = self._task_stack(4 + 8 * new_level)
        frame = [state["ss.selector"], state["rsp"], state["rflags"], state["cs.selector"], rip]
        if fault.code is not None:
            frame.append(fault.code)
        rsp &= ~0xF
        for value in frame:
            rsp = rsp - 8 & MASK64
            self.write(rsp, 8, value, supervisor=True)
        state["rsp"] = rsp
        state["rflags"] &= ~(TF | NT | RF | (IF if gate_type == _INTERRUPT_GATE else 0))
        if new_level != old_level:
            self._set_stack_segment(new_level, new_level)
        self._set_code_segment(selector & ~3 | new_level, new_level)
        state["rip"] = offset

    def _code_level(self, selector: int) -> int:
        """Privilege level of a 64-bit code segment in the GDT."""
        state = self.state
        index = selector & ~7
        if index == 0 or selector & 4 or index + 7 > state["gdtr.limit"]:
            raise GuestException(GENERAL_PROTECTION, selector & ~3)
        descriptor = self.read(state["gdtr.base"] + index, 8, supervisor=True)
        if not descriptor >> 47 & 1:
            raise GuestException(NOT_PRESENT, selector & ~3)
        if descriptor >> 43 & 3 != 3 or not descriptor >> 53 & 1:
            raise GuestException(GENERAL_PROTECTION, selector & ~3)
        return descriptor >> 45 & 3

    def _task_stack(self, offset: int) -> int:
        if offset + 7 > self.state["tr.limit"]:
            raise GuestException(INVALID_TSS, self.state["tr.selector"] & ~3)
        rsp = self.read(self.state["tr.base"] + offset, 8, supervisor=True)
        if not _canonical(rsp):
            raise GuestException(12, 0)
        return rsp

    def _set_code_segment(self, selector: int, level: int) -> None:
        state = self.state
        state["cs.selector"] = selector
        state["cs.attributes"] = CODE64_ATTRIBUTES | level << 5
        state["cs.base"], state["cs.limit"] = 0, 0xFFFF_FFFF
        self.user = level == 3

    def _set_stack_segment(self, selector: int, level: int) -> None:
        state = self.state
        state["ss.selector"] = selector
        state["ss.attributes"] = DATA_ATTRIBUTES | level << 5
        state["ss.base"], state["ss.limit"] = 0, 0xFFFF_FFFF

    # -- ways back -------------------------------------------------------------------------------

    def interrupt_return(self) -> int:
        """IRETQ. Returns the new RIP."""
        state = self.state
        rsp = state["rsp"]
        rip, cs, rflags, new_rsp, ss = (self.read(rsp + 8 * n, 8) for n in range(5))
        level = self.level
        new_level = cs & 3
        if new_level < level or self._code_level(cs & 0xFFFF) != new_level:
            raise GuestException(GENERAL_PROTECTION, cs & 0xFFFC)
        if not _canonical(rip) or (new_level == 3 and ss & 3 != 3):
            raise GuestException(GENERAL_PROTECTION, 0)
        state["rflags"] = self.allowed_flags(rflags)
        state["rsp"] = new_rsp
        self._set_stack_segment(ss & 0xFFFF, new_level)
        self._set_code_segment(cs & 0xFFFF, new_level)
        return rip

    def allowed_flags(self, rflags: int) -> int:
        """RFLAGS after IRET or POPF: IOPL and IF only as far as the privilege level may."""
        mask = _IRET_FLAGS
        old: int = self.state["rflags"]
        if self.level > 0:
            mask &= ~0x3000
        if self.level > old >> 12 & 3:
            mask &= ~IF
        return rflags & mask | old & ~mask & _IRET_FLAGS | _ALWAYS

    def system_call(self, behind: int) -> int:
        """SYSCALL. Returns the new RIP."""
        state = self.state
        if not state["efer"] & EFER_SCE:
            raise GuestException(UNDEFINED)
        selector = state["star"] >> 32 & 0xFFFC
        state["rcx"], state["r11"] = behind, state["rflags"]
        state["rflags"] = state["rflags"] & ~state["sfmask"] & ~RF | _ALWAYS
        self._set_code_segment(selector, 0)
        self._set_stack_segment(selector + 8, 0)
        rip: int = state["lstar"]
        return rip

    def system_return(self) -> int:
        """SYSRETQ. Returns the new RIP."""
        state = self.state
        if not state["efer"] & EFER_SCE:
            raise GuestException(UNDEFINED)
        rip: int = state["rcx"]
        if self.level or not _canonical(rip):
            raise GuestException(GENERAL_PROTECTION, 0)
        selector = state["star"] >> 48 & 0xFFFF
        state["rflags"] = state["r11"] & (_IRET_FLAGS & ~RF) | _ALWAYS
        self._set_code_segment(selector + 16 | 3, 3)
        self._set_stack_segment(selector + 8 | 3, 3)
        return rip

    def check_ports(self, port: int, size: int) -> None:
        """I/O permission of user mode: IOPL, else the bitmap in the TSS (volume 1, section 19.5.2)."""
        state = self.state
        if self.level <= state["rflags"] >> 12 & 3:
            return
        limit = state["tr.limit"]
        if limit >= 0x67:
            base = self.memory_word(state["tr.base"] + 0x66)
            at = base + port // 8
            if at + 1 <= limit:
                bits = self.memory_word(state["tr.base"] + at) >> port % 8
                if not bits & (1 << size) - 1:
                    return
        raise GuestException(GENERAL_PROTECTION, 0)

    def memory_word(self, address: int) -> int:
        """Two bytes that the CPU itself reads."""
        self.translate(address & MASK64, READ, supervisor=True)
        return self.read(address, 2, supervisor=True)


def _combined(first: GuestException, second: GuestException) -> GuestException:
    """What two exceptions at once become: volume 3A, table 6-5."""
    both_bad = first.vector in _CONTRIBUTORY and second.vector in _CONTRIBUTORY
    if both_bad or (first.vector == PAGE_FAULT and (second.vector in _CONTRIBUTORY or second.vector == PAGE_FAULT)):
        return GuestException(DOUBLE_FAULT, 0)
    return second


def code_of(vector: int, code: int | None) -> int | None:
    """The error code that an injected exception pushes: the architecture decides whether there is one."""
    return (code or 0) if vector in _WITH_CODE else None
