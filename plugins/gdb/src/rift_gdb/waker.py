"""What wakes the server's thread out of its wait, from any other thread."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """A descriptor that can be read after :meth:`wake`, until :meth:`rest`."""

    def __init__(self) -> None:
        self.descriptor, self._writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()  # else its number may be another file's by the time that it is written to

    def wake(self) -> None:
        """Any thread; harmless when it is closed."""
        with self._lock:
            if self._writer >= 0:
                with contextlib.suppress(OSError):  # full: it wakes anyway
                    os.write(self._writer, b"!")

    def rest(self) -> None:
        """All that has come so far is going to be dealt with."""
        with contextlib.suppress(OSError):
            while len(os.read(self.descriptor, 4096)) == 4096:
                pass

    def close(self) -> None:
        """The owner waits no more."""
        with self._lock:
            self._close()

    def abandon(self) -> None:
        """In a forked child, where nobody is left who could hold the lock, and give it back."""
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            os.close(self.descriptor)
            self._writer = self.descriptor = -1
