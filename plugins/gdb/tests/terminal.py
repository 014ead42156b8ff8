"""A terminal for programs that want one."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 90.0
TYPE_AGAIN_SECONDS = 2.0


class Terminal:
    """A program that somebody types at: its controlling terminal is ours."""

    def __init__(self, line: list[str], folder: Path | None = None, environment: dict[str, str] | None = None) -> None:
        variables = {**os.environ, **(environment or {}), "TERM": "dumb"}
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            try:
                if folder is not None:
                    os.chdir(folder)
                os.execvpe(line[0], line, variables)
            finally:
                os._exit(127)
        self.text = ""
        self._status: int | None = None

    def until(self, text: str, typing: str = "") -> str:
        """Reads until the text has come since what was read last; what it was.

        ``typing`` is typed, and once more every other second: a debugger that is about to wait for the guest drops a
        Ctrl-C.
        """
        start, deadline = len(self.text), time.monotonic() + SECONDS
        typed = -TYPE_AGAIN_SECONDS
        while text not in self.text[start:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text}"
            if typing and time.monotonic() - typed > TYPE_AGAIN_SECONDS:
                typed = time.monotonic()
                self.type(typing)
            if select.select([self.descriptor], [], [], 0.5)[0]:
                try:
                    self.text += os.read(self.descriptor, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    assert text in self.text[start:], self.text
        return self.text[start:]

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait(self) -> int:
        """Until it has ended; its status, as ``os.waitpid`` has it."""
        deadline = time.monotonic() + SECONDS
        while self._status is None:
            assert time.monotonic() < deadline, f"it does not end: {self.text}"
            with contextlib.suppress(OSError):
                if select.select([self.descriptor], [], [], 0.05)[0]:
                    self.text += os.read(self.descriptor, 65536).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status

    def close(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)
