"""The machine as its exit handlers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from rift_core.engine import Engine, GuestLimits
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa
    from rift_core.memory import Gpa, Walk


class HandlerMachine:
    """What an exit handler gets of its machine: it refers to the internals only, so that a handler does not
    keep a dropped :class:`Machine` alive."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.shared: dict[object, Any] = {}
        """What handlers of different tables have in common, by keys of their own; it goes with the machine."""

    @property
    def doorbell(self) -> Gpa:
        """Guest-physical address of the doorbell page."""
        return self._engine.doorbell

    @property
    def limits(self) -> GuestLimits:
        """The ``[limits]``."""
        return self._engine.limits

    @property
    def memory(self) -> GuestMemory:
        """Guest-physical memory."""
        self._engine.pristine = False
        return self._engine.memory

    @property
    def console_stream(self) -> TextIO | BinaryIO | None:
        """The stream given to ``open_machine(console=...)``."""
        return self._engine.console_stream

    @property
    def isa(self) -> Isa:
        """The ISA object."""
        return self._engine.isa

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes. :raises AddressError: not mapped."""
        return self._engine.read_virtual(address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes. :raises AddressError: not mapped."""
        self._engine.write_virtual(address, data)

    def read_user(self, address: int, size: int) -> bytes:
        """A copy of bytes at a pointer that user mode has given. :raises AddressError: it may not read them itself."""
        return self._engine.read_user(address, size)

    def write_user(self, address: int, data: bytes) -> None:
        """Write to a pointer that user mode has given. :raises AddressError: it may not write there itself."""
        self._engine.write_user(address, data)

    def translate(self, address: int) -> Walk:
        """What the page tables say of a guest-virtual address."""
        return self._engine.translate(address)
