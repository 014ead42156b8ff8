"""Where a console's bytes go: terminals, files, pipes, and whatever a Python program put into ``sys.stdout``.

A terminal gets text in which nothing is left that it would obey. Everything else gets the guest's bytes
unchanged, or, where a stream takes only text, their reading as UTF-8.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
import weakref
from typing import Any, Literal

from rift_core.errors import ConfigError, RiftError

_UNSAFE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys: C0 but tab, newline and return, DEL, and C1 (ECMA-48); and the separators and
bidirectional controls that reorder what a person reads (Unicode UAX #9)."""

_NAMES = {"stdout": "standard output", "stderr": "standard error"}


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Decoder:
    """Guest bytes to text, in pieces cut anywhere; invalid UTF-8 becomes ``\\xff`` and the like."""

    def __init__(self, escape: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._escape = escape

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text of ``data``; an unfinished character at its end waits for the next piece unless ``final``."""
        text = self._decoder.decode(data, final)
        return _UNSAFE.sub(_escape, text) if self._escape else text


class Output:
    """One stream; for one thread at a time.

    :param target: ``stdout``, ``stderr``, the path of a file, or a file object.
    :raises ConfigError: the path cannot be opened for writing.
    """

    def __init__(self, target: Any, escape: Literal["auto"] | bool = "auto") -> None:
        self.name = "the given stream"
        self._interactive = False
        self._escape = escape
        if isinstance(target, str):
            self.name = _NAMES.get(target, target)
            if target not in _NAMES:
                target = _open_file(target)
                weakref.finalize(self, target.close)
        self._target = target
        self._stream: Any = None  # what target is at present
        self._sink: Any = None  # what is written to: the stream, or the binary one inside it
        self._decoder: Decoder | None = None  # None: bytes pass as they are
        self._takes_text = False

    @property
    def interactive(self) -> bool:
        """Whether somebody looks at it on a terminal."""
        if self._stream is None:
            self._refresh()
        return self._interactive

    def write(self, data: bytes, *, final: bool = False) -> None:
        """Write and flush. ``final``: an unfinished character at the end does not wait for the rest of it.

        :raises RiftError: the stream refuses.
        """
        try:
            self._refresh()
            if self._sink is None:
                return  # a process without standard output
            if self._decoder is not None:
                text = self._decoder.feed(data, final=final)
                if not text:
                    return
                if self._takes_text:
                    encoding = getattr(self._sink, "encoding", None)
                    if isinstance(encoding, str):
                        text = text.encode(encoding, "backslashreplace").decode(encoding)
                    self._sink.write(text)
                else:
                    _write_all(self._sink, text.encode())
            elif data:
                if self._sink is not self._stream:
                    self._stream.flush()  # what Python has printed so far comes first
                _write_all(self._sink, data)
            flush = getattr(self._sink, "flush", None)
            if flush is not None:
                flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise RiftError(f"the guest's console cannot be written to {self.name}: {reason}") from error

    def _refresh(self) -> None:
        """Look what ``sys.stdout`` is now: pytest, Jupyter and ``redirect_stdout`` replace it."""
        stream = getattr(sys, self._target) if isinstance(self._target, str) else self._target
        if stream is self._stream:
            return
        self._stream = stream
        self._interactive = _is_terminal(stream)
        escape = self._interactive if self._escape == "auto" else self._escape
        self._takes_text = stream is not None and _takes_text(stream)
        self._sink = stream
        if self._takes_text and not escape and hasattr(stream, "buffer"):
            self._sink = stream.buffer
            self._takes_text = False
        self._decoder = Decoder(escape) if escape or self._takes_text else None


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def _takes_text(stream: Any) -> bool:
    if isinstance(stream, io.TextIOBase):
        return True
    if isinstance(stream, io.RawIOBase | io.BufferedIOBase):
        return False
    try:
        stream.write(b"")
    except TypeError:
        return True
    return False


def _write_all(stream: Any, data: bytes) -> None:
    """A raw stream may take less than it is given."""
    while data:
        count = stream.write(data)
        if not isinstance(count, int) or count >= len(data):
            return
        data = data[count:]


def _open_file(path: str) -> io.FileIO:
    try:
        # O_NONBLOCK: a FIFO that nobody reads is an error at once and no endless wait.
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.ENXIO:
            reason = "nobody reads from it"
        raise ConfigError(f"exit_handlers: stream {path!r} cannot be opened for writing: {reason}") from error
    os.set_blocking(descriptor, True)
    return io.FileIO(descriptor, "w")
