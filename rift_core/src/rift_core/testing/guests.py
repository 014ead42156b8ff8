"""Tiny guests in machine code, for conformance tests: no compiler, no image, no runtime.

A guest is a sequence of position-independent fragments: ``g.store(address, 4, 7) + g.end()``. Every
fragment may use the scratch registers. The doorbell serves as a device: no memory is behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rift_core import doorbell

if TYPE_CHECKING:
    from collections.abc import Mapping

DEVICE = doorbell.DEFAULT_ADDRESS + doorbell.USER_FIRST
"""A device register: stores and loads here are MMIO exits."""

DONE = doorbell.DEFAULT_ADDRESS + doorbell.USER_LAST - 7
"""Where :meth:`Guests.end` stores: the guest has done its work."""


class Guests(Protocol):
    """The fragments of one ISA. Addresses are guest-virtual. ``port_*`` exist where the ISA has ports."""

    isa: str
    result: str  # the register that load, port_read and the like fill
    argument_registers: tuple[str, ...]  # integer arguments of a C function
    crash_registers: Mapping[str, int]  # with these set, `invalid` ends in SHUTDOWN
    invalid_vector: int
    page_fault_vectors: frozenset[int]  # what an access that the page tables do not allow may be called
    stack_fault_vector: int  # of `use_stack` without a stack
    injected: tuple[int, int | None]  # an exception with its code that a test may inject
    system_register: int  # one that no CPU and no hypervisor knows
    has_ports: bool

    def store(self, address: int, size: int, value: int) -> bytes:
        """Store a constant."""

    def store_result(self, address: int) -> bytes:
        """Store all of the result register."""

    def load(self, address: int, size: int) -> bytes:
        """Load into the result register, zero-extended."""

    def copy(self, source: int, target: int) -> bytes:
        """8 bytes from memory to memory, once round a loop that never ends: see :meth:`forever`."""

    def forever(self, body: bytes) -> bytes:
        """The body again and again."""

    def add(self, address: int, times: int) -> bytes:
        """Add 1 to 8 bytes atomically, ``times`` times."""

    def wait_for(self, address: int, value: int) -> bytes:
        """Spin until 4 bytes of memory hold a value."""

    def spin(self) -> bytes:
        """Jump to itself."""

    def halt(self) -> bytes:
        """Wait for an interrupt."""

    def invalid(self) -> bytes:
        """An undefined instruction."""

    def privileged(self) -> bytes:
        """Read the root of the page tables into the result register, and write it back."""

    def jump(self, address: int) -> bytes:
        """Go there."""

    def use_stack(self, address: int) -> bytes:
        """Push with the stack pointer at an address."""

    def nop(self) -> bytes:
        """One instruction without effect."""

    def breakpoint(self) -> bytes:
        """The breakpoint instruction."""

    def hypercall(self, number: int, arguments: tuple[int, ...]) -> bytes:
        """The ISA's hypercall instruction, by the convention of ``rift_hypercall`` in its guest runtime; the
        result comes into the result register."""

    def read_system_register(self, number: int) -> bytes:
        """8 bytes into the result register."""

    def write_system_register(self, number: int, value: int) -> bytes:
        """8 bytes."""

    def user_call(self, number: int, arguments: tuple[int, ...]) -> bytes:
        """A system call from user mode; its result comes into the result register."""

    def port_read(self, port: int, size: int) -> bytes:
        """Into the result register, zero-extended."""

    def port_write(self, port: int, size: int, value: int) -> bytes:
        """A constant."""

    def port_write_string(self, port: int, address: int, count: int) -> bytes:
        """``count`` bytes of memory, by one instruction."""

    def add_function(self) -> bytes:
        """A C function of two 64-bit integers that returns their sum."""

    def end(self) -> bytes:
        """Store 0 to :data:`DONE`, for ever."""


def guests_for(isa: str) -> Guests:
    """The fragments of an ISA.

    :raises LookupError: none are built in; a conformance test then overrides its fixture ``guests``.
    """
    if isa == "x86_64":
        from rift_core.testing.guests_x86_64 import X86_64Guests

        return X86_64Guests()
    if isa == "aarch64":
        from rift_core.testing.guests_aarch64 import Aarch64Guests

        return Aarch64Guests()
    raise LookupError(
        f"no machine-code guests for {isa} are built in (aarch64, x86_64 are): "
        "give the conformance test a fixture `guests`, see rift_core.testing.guests.Guests"
    )
