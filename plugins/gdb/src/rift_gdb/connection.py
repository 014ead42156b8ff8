"""One client's connection: packets in and out, over the native piece, which also answers the hot ones."""

from __future__ import annotations

import contextlib
import os
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from rift_gdb._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rift_gdb.registers import Image

PACKET_LIMIT = 0x1_0000
"""Bytes of a packet's content at most, either way: what ``PacketSize`` announces."""

_MOST_HELD = 0x4000  # pieces of guest memory; the native side knows half as many pages

SEND_SECONDS = 10.0
"""How long a client may leave a packet unread before it counts as gone."""


class Event(IntEnum):
    """What :meth:`Connection.next` returned for; the numbers of ``enum rift_gdb_event_kind``."""

    TIMEOUT = lib.RIFT_GDB_TIMEOUT
    PACKET = lib.RIFT_GDB_PACKET
    INTERRUPT = lib.RIFT_GDB_INTERRUPT
    DAMAGED = lib.RIFT_GDB_DAMAGED
    OVERSIZED = lib.RIFT_GDB_OVERSIZED
    CLOSED = lib.RIFT_GDB_CLOSED
    READABLE = lib.RIFT_GDB_READABLE


class Incoming(NamedTuple):
    """An event; ``data`` is a packet's content, ``source`` the descriptor that can be read."""

    event: Event
    data: bytes = b""
    source: int = -1


class ClientGoneError(Exception):
    """The connection is of no use any more: closed, broken, or not read from."""


class Connection:
    """Belongs to one thread."""

    def __init__(self, client: socket.socket, limit: int = PACKET_LIMIT) -> None:
        self._socket = client
        self.limit = limit
        native = lib.rift_gdb_connection_create(client.fileno(), limit)
        if native == ffi.NULL:
            raise MemoryError
        self._native = ffi.gc(native, lib.rift_gdb_connection_destroy)
        self._event = ffi.new("struct rift_gdb_event *")
        self._error = ffi.new("struct rift_error *")
        self._held: list[Any] = []  # what the native side points to
        self._images: tuple[Image, ...] = ()

    def next(self, others: Sequence[int] = (), seconds: float | None = None) -> Incoming:
        """Wait for something that cannot be answered natively; ``others`` are descriptors to watch as well.

        :raises ClientGoneError: the connection is broken.
        """
        event = self._event
        milliseconds = -1 if seconds is None else max(0, int(seconds * 1000))
        if lib.rift_gdb_connection_next(self._native, others, len(others), milliseconds, event, self._error) < 0:
            raise ClientGoneError(self._describe())
        kind = Event(event.kind)
        if kind is Event.PACKET:
            return Incoming(kind, bytes(ffi.buffer(event.data, event.size)))
        if kind is Event.READABLE:
            return Incoming(kind, source=others[event.source])
        return Incoming(kind)

    def send(self, content: bytes, seconds: float = SEND_SECONDS) -> None:
        """Send a packet.

        :raises ClientGoneError: the client has gone, or does not read.
        """
        if lib.rift_gdb_connection_send(self._native, content, len(content), int(seconds * 1000), self._error) < 0:
            raise ClientGoneError(self._describe())

    def stop_acknowledging(self) -> None:
        """QStartNoAckMode."""
        lib.rift_gdb_connection_acknowledge(self._native, 0)

    # -- what is answered natively ---------------------------------------------------------------

    def set_images(self, images: tuple[Image, ...], selected: int) -> None:
        """Registers of stopped threads, and the thread that is meant without a word."""
        self._images = images
        array = ffi.new("struct rift_gdb_image *[]", [image.native for image in images] or 1)
        lib.rift_gdb_connection_set_images(self._native, array, len(images), selected)

    def set_binary(self, mode: int) -> None:
        """How ``x`` is answered natively: 0 not at all, 1 with ``b`` before the data, 2 bare."""
        lib.rift_gdb_connection_set_binary(self._native, mode)

    def add_pages(self, address: int, host: memoryview) -> None:
        """Guest memory of whole pages at ``address``; ``host`` is kept until :meth:`forget_pages`."""
        if len(self._held) >= _MOST_HELD:  # more than the native side knows: most have been pushed out by others
            self.forget_pages()
        self._held.append(host)
        where = int(ffi.cast("uintptr_t", ffi.from_buffer(host)))
        lib.rift_gdb_connection_add_pages(self._native, address, where, host.nbytes >> 12)

    def forget_pages(self) -> None:
        """The guest runs, or its page tables have changed."""
        if self._held:
            lib.rift_gdb_connection_forget_pages(self._native)
            self._held.clear()

    @property
    def served(self) -> int:
        """Packets that were answered natively."""
        return int(lib.rift_gdb_connection_served(self._native))

    def hang_up(self) -> None:
        """End the connection, whoever else has its socket: forked children, and the thread that sends. Any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close this process's descriptor; the connection is another process's and goes on."""
        self._socket.close()

    def close(self) -> None:
        """Hang up."""
        self.set_images((), 0)
        self.forget_pages()
        self.hang_up()
        self._socket.close()

    def _describe(self) -> str:
        operation = ffi.string(self._error.operation).decode() if self._error.operation else "?"
        return f"{operation} failed: {os.strerror(self._error.code)}"


def to_hex(data: bytes | memoryview) -> bytes:
    """Two digits a byte."""
    return data.hex().encode()


def from_hex(text: bytes) -> bytes:
    """Bytes of hexadecimal digits, and of nothing else.

    :raises ValueError: something else, or an odd number of them.
    """
    if len(text) % 2:
        raise ValueError("an odd number of hexadecimal digits")
    out = bytearray(len(text) // 2)
    if out and lib.rift_gdb_from_hex(text, len(text), ffi.from_buffer(out)) < 0:
        raise ValueError("something that is no hexadecimal digit")
    return bytes(out)


def frame(content: bytes) -> bytes:
    """The bytes of a packet."""
    out = bytearray(2 * len(content) + 4)
    size = lib.rift_gdb_frame(content, len(content), ffi.from_buffer(out))
    return bytes(out[:size])


def crc(data: bytes | memoryview, start: int = 0xFFFF_FFFF) -> int:
    """The CRC of ``qCRC``, continued from ``start``."""
    return int(lib.rift_gdb_crc(start, ffi.from_buffer(data), len(data)))
