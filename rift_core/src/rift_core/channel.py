"""A stream of bytes between the guest and the host in shared memory: the host's side of ``struct rift_channel``.

One writer and one reader; neither ever waits. The guest defines it (``RIFT_CHANNEL`` in ``rift_guest.h``)
and the host finds it by its symbol::

    channel = Channel(machine.symbol("log").view())
    channel.read()

The counters are the guest's to forge: what does not make sense is an error, and no byte outside the view is
touched.
"""

from __future__ import annotations

from typing import Final

from rift_core.errors import AddressError

_SIZE, _WRITTEN, _READ = 0, 8, 16  # indices of 8 bytes: each counter has a cache line of its own
_BYTES: Final = 192  # offset of the bytes
_WRAP = (1 << 64) - 1


class Channel:
    """One channel; either end of it.

    :param view: the bytes of the struct and of the ring behind it.
    :raises AddressError: the view is too small for a channel, or what stands there is none.
    """

    def __init__(self, view: memoryview) -> None:
        data = view.cast("B")
        if data.nbytes <= _BYTES:
            raise AddressError(f"a channel of {data.nbytes} bytes has no room for its {_BYTES} bytes of header")
        self._words = data[:_BYTES].cast("Q")
        size = self._words[_SIZE]
        if size == 0 or size & (size - 1) or _BYTES + size > data.nbytes:
            raise AddressError(f"no channel stands here: its size is given as {size}, in {data.nbytes} bytes")
        self._bytes = data[_BYTES : _BYTES + size]
        self.size: int = size
        """Bytes that the ring holds. Read once: the guest may overwrite its own copy as it likes."""

    def __len__(self) -> int:
        """Bytes that can be read now.

        :raises AddressError: the counters are not those of a channel.
        """
        # Both counters are aligned words, each read in one piece; the reader reads the writer's before the bytes.
        used = (self._words[_WRITTEN] - self._words[_READ]) & _WRAP
        if used > self.size:
            raise AddressError(f"the channel's counters are damaged: {used} bytes in a ring of {self.size}")
        return used

    def read(self, limit: int | None = None) -> bytes:
        """Take what is there, at most ``limit`` bytes; ``b""`` when it is empty.

        :raises AddressError: the counters are not those of a channel.
        """
        count = len(self)
        if limit is not None:
            count = min(count, max(limit, 0))
        read = self._words[_READ]
        at = read & (self.size - 1)
        first = min(count, self.size - at)
        data = bytes(self._bytes[at : at + first]) + bytes(self._bytes[: count - first])
        self._words[_READ] = (read + count) & _WRAP
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put in as much as fits, and return how many bytes that was.

        :raises AddressError: the counters are not those of a channel.
        """
        view = memoryview(data).cast("B")
        count = min(view.nbytes, self.size - len(self))
        written = self._words[_WRITTEN]
        at = written & (self.size - 1)
        first = min(count, self.size - at)
        self._bytes[at : at + first] = view[:first]
        self._bytes[: count - first] = view[first:count]
        self._words[_WRITTEN] = (written + count) & _WRAP
        return count
