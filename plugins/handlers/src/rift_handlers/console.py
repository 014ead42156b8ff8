"""A console: bytes of guests, from all vCPUs and handlers that share it, in one order to one stream.

The native half appends to a buffer in C; only Python writes to streams, so that guests print where
``print`` does, in the order of events, into pytest's capture and into notebooks alike. A byte reaches the
stream at a newline on a terminal, when the buffer is full, after :data:`~rift_handlers.flusher.INTERVAL`,
and at the end of each run and call.

The first byte after a quiet time wakes Python, which arms the flusher and opens the C buffer for what
the limit and the buffer's size leave; until the flusher finds it quiet again, bytes stay in C. Taking what
C holds closes it, so that nobody can append, or exceed the limit, while Python counts.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from rift_core.errors import LimitError, RiftError, again
from rift_handlers._native import ffi, lib
from rift_handlers.flusher import FLUSHER
from rift_handlers.output import Output

if TYPE_CHECKING:
    from typing import Any

    from rift_handlers.host import HostMachine

_SIZE: int = lib.RIFT_HANDLERS_CONSOLE_SIZE
_NEWLINE = 0x0A


class Console:
    """One stream's console.

    :param limit: bytes after which it ends its guests; None: none.
    """

    def __init__(self, output: Output, limit: int | None = None) -> None:
        self._output = output
        self._limit = limit
        self._left = _UNLIMITED if limit is None else limit
        self._pending = bytearray()
        self._failure: RiftError | None = None
        self._lock = threading.RLock()  # a stream of the user's may call back into the machine
        self._taken = ffi.new(f"unsigned char[{_SIZE}]")
        self.armed = False
        self.native: Any = ffi.gc(lib.rift_handlers_console_create(), lib.rift_handlers_console_destroy)
        if self.native == ffi.NULL:
            raise MemoryError

    def put(self, byte: int) -> None:
        """One byte that C has passed on.

        :raises LimitError: the limit is used up.  :raises RiftError: the stream refused this or earlier bytes.
        """
        with self._lock:
            self._take()
            if self._left == 0:
                self._emit()
                raise self._limit_error()
            self._left -= 1
            self._pending.append(byte)
            self._settle(byte == _NEWLINE)

    def write(self, data: bytes) -> None:
        """Bytes that stay together. Raises as :meth:`put`; what the limit leaves is written before."""
        with self._lock:
            self._take()
            fitting = data[: self._left]
            self._left -= len(fitting)
            self._pending += fitting
            if len(fitting) < len(data):
                self._emit()
                raise self._limit_error()
            self._settle(b"\n" in fitting)

    def finish(self) -> None:
        """Bring everything to the stream: the end of a run or a call.

        :raises RiftError: the stream refused.
        """
        if not self.armed and self._failure is None:
            return  # nothing has come since the flusher looked last
        with self._lock:
            self._take()
            self._emit(final=True)
            self._open()
            self._raise_failure()

    def tick(self) -> bool:
        """The flusher's look. False: it was quiet and is disarmed now."""
        with self._lock:
            self._take()
            quiet = not self._pending
            try:
                self._emit(final=quiet)
            except RiftError as error:
                self._failure = error  # for the guest's next byte, or the end of its run
            if quiet:
                self.armed = False
            else:
                self._open()
            return not quiet

    def _settle(self, line: bool) -> None:
        """With the lock, after new bytes: write now, or see to it that somebody will."""
        self._raise_failure()
        if not self.armed:
            self.armed = True
            self.armed = FLUSHER.watch(self)
        if len(self._pending) >= _SIZE or (line and self._output.interactive) or not self.armed:
            self._emit()
        self._open()

    def _take(self) -> None:
        """With the lock: what C holds, and close it."""
        count = lib.rift_handlers_console_take(self.native, self._taken)
        if count:
            self._pending += ffi.buffer(self._taken, count)
            self._left -= count

    def _open(self) -> None:
        """With the lock, at the end: let C append again."""
        if self.armed and self._failure is None:
            room = min(_SIZE - len(self._pending), self._left)
            lib.rift_handlers_console_open(self.native, max(room, 0), self._output.interactive)

    def _emit(self, *, final: bool = False) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        self._output.write(data, final=final)

    def _raise_failure(self) -> None:
        failure = self._failure
        if failure is not None:
            raise again(failure)

    def _limit_error(self) -> LimitError:
        return LimitError(
            f"the guest has written limits.console_bytes = {self._limit} bytes to its console and goes on; "
            "raise the limit, or have the guest print less",
            limit="limits.console_bytes",
        )


_UNLIMITED = 1 << 63


def shared_console(machine: HostMachine, stream: str, escape: Literal["auto"] | bool) -> Console:
    """The machine's console for ``stream``: one for all handlers that name it, so that their bytes keep their order.

    :raises ConfigError: ``stream`` is a path that cannot be opened for writing.
    """
    given = machine.console_stream
    key = (Console, stream if given is None else None, escape)
    console: Console | None = machine.shared.get(key)
    if console is None:
        output = Output(stream if given is None else given, escape)
        console = machine.shared[key] = Console(output, machine.limits.console_bytes)
    return console


__all__ = ["Console", "shared_console"]
