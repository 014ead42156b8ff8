"""One client: what it can do, which threads it has selected, and its packets answered one after another."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from rift_core.errors import AddressError, RiftError
from rift_gdb.connection import ClientGoneError, Connection, to_hex
from rift_gdb.errors import INVALID, NOT_MAPPED, PacketError
from rift_gdb.packets import registry

if TYPE_CHECKING:
    from rift_gdb.guest_thread import GuestThread
    from rift_gdb.memory import View
    from rift_gdb.payloads import Payload
    from rift_gdb.server import Server
    from rift_gdb.target import Target

LOG = logging.getLogger("rift.gdb")


class Session:
    """A client's conversation. The server's thread owns it."""

    def __init__(self, server: Server, connection: Connection, peer: str) -> None:
        registry.load()
        self.server = server
        self.connection = connection
        self.peer = peer
        self.features: frozenset[str] = frozenset()  # what the client announces in qSupported
        self.error_strings = False  # LLDB's way to be told the text of an error
        self.lists_threads = False  # LLDB wants all threads in stop replies
        self.bare_binary = False  # x is answered without the b
        self.physical = False
        self.selected = 0  # thread of registers and memory; 0: any
        self.resumed = 0  # thread of c and s; 0: any, -1: all
        self.over = False  # detached, killed, or gone
        self.after: str = ""  # what is to become of the guest: "", "detached", "killed", "stopped"
        self.awaiting = False  # the client waits for a stop
        self.files: dict[int, int] = {}  # descriptors of payloads' files that it has opened
        self.known_payloads: tuple[Payload, ...] | None = None  # as the client has read them last; None: not yet
        self.states: dict[int, dict[str, int]] = {}  # saved registers

    @property
    def target(self) -> Target:
        """The machine."""
        return self.server.target

    @property
    def is_lldb(self) -> bool:
        """Whether it has asked for something that only LLDB knows."""
        return self.lists_threads or self.error_strings

    @property
    def has_news(self) -> bool:
        """Whether payloads have come since the client has read the list: GDB wants to hear of it, LLDB does not."""
        known = self.known_payloads
        return known is not None and known != self.server.payloads.added and not self.is_lldb

    def check(self) -> None:
        """Long answers look in between whether anybody wants them still.

        :raises ClientGoneError: the machine is being closed.
        """
        if self.server.closing:
            raise ClientGoneError("the machine is being closed")

    def close(self) -> None:
        """Give back what the client has left."""
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()
        self.target.allocations.release_all()

    # -- threads and memory ----------------------------------------------------------------------

    def thread(self, number: int | None = None) -> GuestThread:
        """The thread that packets mean: the given one, the selected one, or the first.

        :raises PacketError: there is none.
        """
        wanted = self.selected if number is None else number
        if wanted > 0:
            return self.target.find(wanted)
        threads = self.target.threads
        if not threads:
            raise PacketError("no thread is running", 3)
        return next((t for t in threads if t.held), threads[0])

    def select(self, number: int) -> None:
        """Another thread for registers and memory."""
        if number != self.selected:
            self.selected = number
            self.connection.forget_pages()
        self.show_images()

    def show_images(self) -> None:
        """Have the native side answer for the threads whose registers are known."""
        images = tuple(t.image for t in self.target.threads if t.image is not None)
        try:
            selected = self.thread().number
        except PacketError:
            selected = 0
        self.connection.set_images(images, selected)

    def hide_images(self) -> None:
        """The guest goes on: nothing is known any more."""
        self.connection.set_images((), 0)
        self.connection.forget_pages()

    def view(self) -> View:
        """Memory as the client has chosen to see it."""
        if self.physical:
            return self.target.view(None, physical=True)
        try:
            return self.target.view(self.thread())
        except PacketError:
            return self.target.view(None)

    # -- packets ---------------------------------------------------------------------------------

    def handle(self, content: bytes) -> None:
        """Answer a packet.

        :raises ClientGoneError: the answer cannot be sent.
        """
        answer = self.answer(content)
        if answer is not None:
            LOG.debug("%s <- %r", content[:120], answer[:120])
            self.connection.send(answer)

    def answer(self, content: bytes) -> bytes | None:
        """The answer to a packet; None: it comes later, or never."""
        found = registry.find(content)
        if found is None:
            return b""
        handler, arguments = found
        try:
            return handler(self, arguments)
        except PacketError as error:
            return self.error(error)
        except AddressError as error:
            return self.error(PacketError(str(error), NOT_MAPPED))
        except RiftError as error:
            return self.error(PacketError(str(error), INVALID))
        except ClientGoneError:
            raise
        except Exception as error:  # a bug of a handler's: the guest must not be lost for it
            LOG.exception("packet %r", content[:120])
            return self.error(PacketError(f"internal error: {type(error).__name__}: {error}"))

    def error(self, error: PacketError) -> bytes:
        """An error in the form that this client shows."""
        if "error-message" in self.features:
            return f"E.{_plain(error.text)}".encode("ascii", "replace")
        if self.error_strings:
            return f"E{error.code:02x};".encode() + to_hex(error.text.encode())
        return f"E{error.code:02x}".encode()

    def say(self, text: str) -> None:
        """Text for the client's console; only while it waits for a stop."""
        for start in range(0, len(text), 1024):
            self.connection.send(b"O" + to_hex(text[start : start + 1024].encode()))


def _plain(text: str) -> str:
    return " ".join(text.split())
