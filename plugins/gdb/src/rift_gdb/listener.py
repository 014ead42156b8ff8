"""The sockets that debuggers connect to."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rift_core.errors import RiftError

if TYPE_CHECKING:
    from pathlib import Path

    from rift_gdb.address import Address

LOG = logging.getLogger("rift.gdb")

_BACKLOG = 4

_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why a client that waits cannot be accepted: it goes on waiting, and its socket can be read at any look."""

_REST_SECONDS = 0.2
"""How long nobody looks at it then."""


class ListenError(RiftError):
    """The address cannot be listened on."""


class Listener:
    """Listening sockets of one address: several where it means both of the machine's own.

    :raises ListenError: it is taken, or not possible.
    """

    def __init__(self, address: Address) -> None:
        self.sockets: list[socket.socket] = []
        self._path: Path | None = None
        self._rests_until = 0.0
        self._failing = False  # and that has been logged
        self.address = address
        try:
            if address.path is not None:
                self._listen_on_path(address.path)
            else:
                self._listen_on_hosts(address)
        except BaseException:
            self.close()
            raise
        for server in self.sockets:
            server.setblocking(False)  # who has come may have gone, or be refused, before it is accepted

    def _listen_on_path(self, path: Path) -> None:
        _remove_stale(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(server)
        before = os.umask(0o177)  # mode 0600 from the first moment on
        try:
            server.bind(str(path))
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        self._path = path
        server.listen(_BACKLOG)

    def _listen_on_hosts(self, address: Address) -> None:
        failure: OSError | None = None
        for host in address.hosts:
            try:
                found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
                server = socket.socket(found[0], found[1])
            except OSError as error:  # a machine without IPv6, a name that nobody knows
                failure = failure or error
                continue
            self.sockets.append(server)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if found[0] == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                server.bind((host, address.port))
                server.listen(_BACKLOG)
            except OSError as error:
                self.sockets.remove(server)
                server.close()
                if error.errno == errno.EADDRINUSE:
                    raise ListenError(
                        f"port {address.port} of {host} is in use: choose another one, or 0 for any that is free"
                    ) from None
                failure = failure or error
                continue
            if address.port == 0:  # the other address gets the same one
                address = replace(address, port=server.getsockname()[1])
        if not self.sockets:
            why = failure.strerror or failure if failure is not None else "no such address"
            raise ListenError(f"cannot listen on {address}: {why}")
        self.address = address

    def descriptors(self) -> tuple[list[int], float | None]:
        """What to wait for, and how many seconds at most, if these are not all."""
        rest = self._rests_until - time.monotonic()
        if rest > 0:
            return [], rest
        return [server.fileno() for server in self.sockets], None

    def accept(self, descriptor: int) -> tuple[socket.socket, str] | None:
        """The client that has come, and who it is; None: it has gone again, or must wait: the process has no file
        descriptor left for it."""
        for server in self.sockets:
            if server.fileno() != descriptor:
                continue
            try:
                client, peer = server.accept()
            except OSError as error:
                if error.errno in _NOTHING_LEFT:
                    self._rest(error)
                return None
            self._failing = False
            client.setblocking(False)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _notice_silence(client)
            return client, str(peer[0]) if peer and client.family != socket.AF_UNIX else "this machine"
        return None

    def _rest(self, error: OSError) -> None:
        self._rests_until = time.monotonic() + _REST_SECONDS
        if not self._failing:
            self._failing = True
            LOG.warning("a debugger that has come waits until it can be accepted: %s", error.strerror)

    def abandon(self) -> None:
        """Close this process's descriptors; another process goes on listening."""
        self._path = None
        self.close()

    def close(self) -> None:
        """Stop listening; a socket's path goes."""
        for server in self.sockets:
            server.close()
        self.sockets.clear()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None


def _notice_silence(client: socket.socket) -> None:
    """A client whose machine or network has gone without a word is found out in a minute and a half, not in hours: it
    would keep the guest stopped, and others away."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # the second is the first's name on macOS
            client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on is left over from a process that was killed.

    :raises ListenError: somebody listens, or it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on {path}: there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            return
    raise ListenError(f"cannot listen on {path}: somebody listens there already")
