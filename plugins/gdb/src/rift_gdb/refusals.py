"""Clients that come while another one is served: told why in answer to their first packet, whatever that is.

Nobody waits for them: they are looked at when something comes from them, and the one that is served comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.connection import ClientGoneError, Connection, Event

if TYPE_CHECKING:
    import socket

_MOST = 8
"""Who says nothing may stay until so many others have come."""

_MOST_LOOKS = 64
"""How often something may come from one that is no whole packet."""

_LIMIT = 0x1000  # bytes of a first packet


class Refusals:
    """Those that have not been answered yet. The server's thread."""

    def __init__(self) -> None:
        self._waiting: dict[int, Connection] = {}  # by descriptor, in the order in which they came
        self._looks: dict[int, int] = {}

    @property
    def descriptors(self) -> list[int]:
        """What to wait for."""
        return list(self._waiting)

    def add(self, client: socket.socket) -> None:
        """One more."""
        if len(self._waiting) >= _MOST:
            self._drop(next(iter(self._waiting)))
        descriptor = client.fileno()
        self._waiting[descriptor] = Connection(client, _LIMIT)
        self._looks[descriptor] = 0

    def answer(self, descriptor: int, text: str) -> None:
        """Something has come from one of them."""
        connection = self._waiting[descriptor]
        self._looks[descriptor] += 1
        try:
            event = connection.next((), 0).event
            if event is Event.TIMEOUT and self._looks[descriptor] < _MOST_LOOKS:
                return  # more must come
            if event is Event.PACKET:
                connection.send(f"E.{text}".encode(), 0)
        except ClientGoneError:
            pass
        self._drop(descriptor)

    def close(self) -> None:
        """Hang up on all."""
        for descriptor in self.descriptors:
            self._drop(descriptor)

    def abandon(self) -> None:
        """In a forked child: they are the parent's."""
        for connection in self._waiting.values():
            connection.abandon()
        self._waiting.clear()

    def _drop(self, descriptor: int) -> None:
        del self._looks[descriptor]
        self._waiting.pop(descriptor).close()
