"""The doorbell: the one page through which any guest reaches its host, on every backend and ISA.

Core reserves the page in each layout, maps it as device memory at the same guest-virtual address, and
gives it no host memory behind: a store of at most 8 bytes to it is an MMIO exit everywhere. A guest
finds the numbers in ``rift_guest.h``; a test compares the two.

The upper half belongs to the ISA's own code in the guest (vectors, call return, user-call entry).
"""

from __future__ import annotations

from rift_core.memory import Gpa, Gva

DEFAULT_ADDRESS = 0x7000_0000
"""Guest-physical and guest-virtual alike: below 2 GiB, so that one x86-64 instruction can name it."""

SIZE = 0x1000

EXIT = 0x000
"""Store: end the thread with this status."""

CONSOLE = 0x008
"""Store: one byte to the console."""

USER_FIRST = 0x100
"""First offset that is free for exit handlers of third parties ..."""

USER_LAST = 0x7FF
"""... and the last one."""

RETURN = 0x800
"""Store of 8 bytes by the ISA's return stub: the entry function returned this value."""

FAULT = 0x808
"""Store by the vectors: an exception that nothing in the guest handled; the ISA reads its frame."""

USER_CALL = 0x810
"""Store by the companion: a system call arrived from user mode; the ISA reads its registers."""


def default_gpa() -> Gpa:
    """Where the doorbell stands, guest-physical, unless the configuration moves it."""
    return Gpa(DEFAULT_ADDRESS)


def default_gva() -> Gva:
    """Where the doorbell stands, guest-virtual, unless the configuration moves it."""
    return Gva(DEFAULT_ADDRESS)
