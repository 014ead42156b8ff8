"""x86-64 for the fake backend: virtual memory. Walks the guest's own page tables, checks every permission.

Rules: Intel SDM volume 3A, chapter 4 (4-level paging, access rights, accessed and dirty flags).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.exits import Exit, ExitKind

if TYPE_CHECKING:
    from rift_core.testing.fake_memory import PhysicalMemory

READ, WRITE, FETCH = 0, 1, 2

CR0_WP = 1 << 16
CR4_SMEP, CR4_SMAP = 1 << 20, 1 << 21
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
RFLAGS_AC = 1 << 18

_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE, _NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000

_ERROR_PRESENT, _ERROR_WRITE, _ERROR_USER, _ERROR_RESERVED, _ERROR_FETCH = 1, 2, 4, 8, 16

MASK64 = (1 << 64) - 1

STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 12, 13, 14


class GuestException(Exception):  # an exception of the guest, not of this program
    """The instruction faults; ``address`` goes to CR2. A trap (``resume`` set) returns behind the instruction."""

    def __init__(self, vector: int, code: int | None = None, address: int = 0, *, software: bool = False) -> None:
        super().__init__(vector)
        self.vector = vector
        self.code = code
        self.address = address
        self.software = software


class ExitRequest(Exception):
    """The instruction stops before its end: an open read, or something that cannot be interpreted."""

    def __init__(self, exit: Exit) -> None:
        super().__init__(exit)
        self.exit = exit


class Access:
    """One instruction's view of memory, as the current privilege level sees it."""

    def __init__(self, state: dict[str, Any], memory: PhysicalMemory) -> None:
        self.state = state
        self.memory = memory
        self.rip: int = state["rip"]
        self.user = state["cs.selector"] & 3 == 3
        self.exit: Exit | None = None  # of a write
        self._replies_used = 0
        tlb = state.get("_tlb")
        if tlb is None:
            tlb = state["_tlb"] = {}
        self._tlb: dict[int, int] = tlb

    # -- numbers in memory -----------------------------------------------------------------------

    def read(self, address: int, size: int, supervisor: bool = False) -> int:
        """A number at a virtual address; ``supervisor``: an access that the CPU itself makes."""
        address &= MASK64
        if (address & 0xFFF) + size > 0x1000:
            return self._read_split(address, size, supervisor)
        return self.read_physical(self.translate(address, READ, supervisor), size)

    def write(self, address: int, size: int, value: int, supervisor: bool = False) -> None:
        """Store a number; where no memory is, the instruction ends with an MMIO exit."""
        address &= MASK64
        if (address & 0xFFF) + size > 0x1000:
            self._write_split(address, size, value, supervisor)
            return
        physical = self.translate(address, WRITE, supervisor)
        if not self.memory.write(physical, size, value):
            self._write_exit(physical, size, value)

    def fetch(self, address: int, size: int) -> int:
        """Instruction bytes as a number."""
        address &= MASK64
        first = 0x1000 - (address & 0xFFF)
        if first < size:
            return self.fetch(address, first) | self.fetch(address + first, size - first) << 8 * first
        value = self.memory.read(self.translate(address, FETCH), size)
        if value is None:
            raise self.cannot_run()
        return value

    def read_physical(self, physical: int, size: int) -> int:
        """Memory, or the host's reply to an MMIO read."""
        value = self.memory.read(physical, size)
        if value is None:
            return self.reply_or_exit(Exit(ExitKind.MMIO, physical, size))
        return value

    def reply_or_exit(self, exit: Exit) -> int:
        """The reply to this read if the host has given it, else the exit."""
        replies: list[int] = self.state.get("_replies", [])
        if self._replies_used < len(replies):
            self._replies_used += 1
            return replies[self._replies_used - 1]
        raise ExitRequest(exit)

    def cannot_run(self) -> ExitRequest:
        """An instruction outside memory: hypervisors that emulate give up at this point too."""
        return ExitRequest(Exit(ExitKind.FAIL_ENTRY, self.rip))

    def _write_exit(self, physical: int, size: int, value: int) -> None:
        if self.exit is not None:
            raise self.cannot_run()  # two device writes in one instruction
        self.exit = Exit(ExitKind.MMIO, physical, size, value, True)

    def _read_split(self, address: int, size: int, supervisor: bool) -> int:
        first = 0x1000 - (address & 0xFFF)
        low = self.translate(address, READ, supervisor)
        high = self.translate(address + first & MASK64, READ, supervisor)
        return self.read_physical(low, first) | self.read_physical(high, size - first) << 8 * first

    def _write_split(self, address: int, size: int, value: int, supervisor: bool) -> None:
        first = 0x1000 - (address & 0xFFF)
        parts = (
            (self.translate(address, WRITE, supervisor), first, value & (1 << 8 * first) - 1),
            (self.translate(address + first & MASK64, WRITE, supervisor), size - first, value >> 8 * first),
        )
        for physical, part, number in parts:  # both translated before either is written
            if not self.memory.write(physical, part, number):
                self._write_exit(physical, part, number)

    # -- translation -----------------------------------------------------------------------------

    def translate(self, address: int, access: int, supervisor: bool = False) -> int:
        """The guest-physical address.

        :raises GuestException: #PF, or #GP where the address is not canonical.
        """
        user = self.user and not supervisor
        page = self._tlb.get((address >> 12) << 3 | access << 1 | user)
        if page is None:
            page = self._walk(address, access, user)
        return page | address & 0xFFF

    def flush_all(self) -> None:
        """Forget all translations."""
        self._tlb.clear()

    def flush_page(self, address: int) -> None:
        """INVLPG."""
        for low in range(8):
            self._tlb.pop((address >> 12) << 3 | low, None)

    def _walk(self, address: int, access: int, user: bool) -> int:
        state, memory = self.state, self.memory
        if address >> 47 not in (0, 0x1FFFF):
            raise GuestException(GENERAL_PROTECTION, 0)
        code = (_ERROR_WRITE if access == WRITE else 0) | (_ERROR_USER if user else 0)
        nxe = state["efer"] & EFER_NXE
        if access == FETCH and (nxe or state["cr4"] & CR4_SMEP):
            code |= _ERROR_FETCH
        table = state["cr3"] & _ADDRESS
        writable = is_user = True
        no_execute = False
        used: list[tuple[int, int]] = []
        shift = entry = 0
        for shift in (39, 30, 21, 12):
            entry_address = table + (address >> shift & 0x1FF) * 8
            entry = memory.read(entry_address, 8) or 0  # a table outside memory: nothing is present
            if not entry & _PRESENT:
                raise GuestException(PAGE_FAULT, code, address)
            large = shift == 12 or bool(entry & _LARGE)
            if (entry & _NO_EXECUTE and not nxe) or (shift == 39 and large) or entry & _ADDRESS >= 1 << memory.gpa_bits:
                raise GuestException(PAGE_FAULT, code | _ERROR_PRESENT | _ERROR_RESERVED, address)
            writable &= bool(entry & _WRITABLE)
            is_user &= bool(entry & _USER)
            no_execute |= bool(entry & _NO_EXECUTE)
            used.append((entry_address, entry))
            if large:
                break
            table = entry & _ADDRESS
        offset_mask = (1 << shift) - 1
        if shift > 12 and entry & offset_mask & ~0x1FFF:
            raise GuestException(PAGE_FAULT, code | _ERROR_PRESENT | _ERROR_RESERVED, address)
        smap = not user and is_user and state["cr4"] & CR4_SMAP
        if (
            (user and not is_user)
            or (access == WRITE and not writable and (user or state["cr0"] & CR0_WP))
            or (access == FETCH and (no_execute or (not user and is_user and state["cr4"] & CR4_SMEP)))
            or (access != FETCH and smap and not state["rflags"] & RFLAGS_AC)
        ):
            raise GuestException(PAGE_FAULT, code | _ERROR_PRESENT, address)
        for entry_address, old in used:
            new = old | _ACCESSED
            if access == WRITE and entry_address == used[-1][0]:
                new |= _DIRTY
            if new != old:
                memory.write(entry_address, 8, new)
        page = (entry & _ADDRESS & ~offset_mask | address & offset_mask) & ~0xFFF
        if not smap:
            self._tlb[(address >> 12) << 3 | access << 1 | user] = page
        return page
