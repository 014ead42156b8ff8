"""What the handlers need of their machine: a part of ``rift_core.handler_machine.HandlerMachine``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

if TYPE_CHECKING:
    from rift_core.memory import Gpa, Walk


class Bytes(Protocol):
    """Guest-physical memory."""

    def view(self, guest_address: int, size: int) -> memoryview:
        """:raises AddressError: not inside one region."""


class Limits(Protocol):
    """The ``[limits]``."""

    @property
    def console_bytes(self) -> int | None:
        """What a console takes at most, bytes; None: no limit."""


class HostMachine(Protocol):
    """The machine, as exit handlers see it."""

    @property
    def doorbell(self) -> Gpa:
        """Guest-physical address of the doorbell page."""

    @property
    def limits(self) -> Limits:
        """The ``[limits]``."""

    @property
    def memory(self) -> Bytes:
        """Guest-physical memory."""

    @property
    def shared(self) -> dict[object, Any]:
        """What handlers of different tables have in common."""

    @property
    def console_stream(self) -> TextIO | BinaryIO | None:
        """The stream given to ``open_machine(console=...)``."""

    def translate(self, address: int) -> Walk:
        """What the page tables say of a guest-virtual address."""
