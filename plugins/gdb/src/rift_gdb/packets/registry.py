"""Which function answers which packet.

A packet's name is its first character; for those that begin with ``q``, ``Q``, ``v``, ``j`` or ``_`` it is the word
up to the first character that is no letter, with a ``?`` where there is one. What nobody answers is answered empty:
"not supported". A handler returns the answer's content, or None where it comes later, or never.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_gdb.session import Session

    Handler = Callable[[Session, bytes], bytes | None]

_WORDS = frozenset(b"qQvj_")
_NAME = re.compile(rb"_[A-Za-z]|[A-Za-z]+\??")
_MODULES = ("basics", "threads", "registers", "memory", "breakpoints", "resume", "transfer", "files", "lldb", "monitor")

_handlers: dict[bytes, Handler] = {}
_prefixes: dict[bytes, Handler] = {}


def packet(*names: str, prefix: bool = False) -> Callable[[Handler], Handler]:
    """Register the function that answers these packets; it gets the session and what follows the name.

    :param prefix: arguments that may begin with a letter follow the name without a separator.
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            key = name.encode()
            if key in _handlers or key in _prefixes:
                raise ValueError(f"packet {name} has a handler already")
            (_prefixes if prefix else _handlers)[key] = handler
        return handler

    return register


def find(content: bytes) -> tuple[Handler, bytes] | None:
    """The handler and the arguments of a packet; None: not supported."""
    if not content:
        return None
    if content[0] not in _WORDS:
        handler = _handlers.get(content[:1])
        return (handler, content[1:]) if handler is not None else None
    match = _NAME.match(content)
    if match is None:
        return None
    name = match.group()
    handler = _handlers.get(name)
    if handler is not None:
        return handler, content[len(name) :]
    for start, candidate in _prefixes.items():
        if content.startswith(start):
            return candidate, content[len(start) :]
    return None


def load() -> None:
    """Import all modules of handlers."""
    for module in _MODULES:
        import_module(f"rift_gdb.packets.{module}")


def names() -> list[str]:
    """All packets that are answered."""
    return sorted(name.decode() for name in (*_handlers, *_prefixes))
