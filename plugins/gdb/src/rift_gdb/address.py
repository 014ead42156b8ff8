"""Where the server listens, in the forms that people write."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 1234
"""What QEMU and others use, and debuggers' manuals show."""

_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket's path, or a host and port. ``host`` "": both of this machine's own addresses."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: Path | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """What to bind to."""
        return _LOOPBACK if self.host in ("", "localhost") else (self.host,)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path is not None or self.host in ("", "localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """``9999``, ``:9999``, ``host:9999``, ``[::1]:9999``, ``unix:PATH``, or a path with a slash.

    :raises ValueError: it is none of these.
    """
    text = text.strip()
    if text.startswith(("unix:", "/", "./", "~/")):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("unix: wants the path of a socket behind it")
        return Address(path=Path(path).expanduser())
    text = text.removeprefix("tcp:")
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = "", text
    elif host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, [{host}]:{port}")
    if not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise ValueError(f'{text!r} is no address: write "9999", ":9999", "host:9999" or "unix:PATH"')
    return Address(host, int(port))
