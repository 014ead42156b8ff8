"""A client of the remote serial protocol, for tests: it says what it is told to, and checks what frames look like."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rift_gdb.address import Address

SECONDS = 20.0


class Client:
    """A connection. ``ask`` sends a packet and returns the answer's content."""

    def __init__(self, address: Address, *, acknowledge: bool = False, features: str = "") -> None:
        if address.path is not None:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(str(address.path))
        else:
            self.socket = socket.create_connection((address.hosts[0], address.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(SECONDS)
        self.acknowledge = True
        self.console = ""
        self._data = b""
        if not acknowledge:
            assert self.ask("QStartNoAckMode") == b"OK"
            self.acknowledge = False
        self.supported = self.ask(f"qSupported:{features or 'swbreak+;hwbreak+;no-resumed+;error-message+'}").decode()

    def send(self, content: str | bytes) -> None:
        """A packet, its special bytes escaped."""
        data = content.encode("latin-1") if isinstance(content, str) else content
        data = re.sub(rb"[#$}*]", lambda m: b"}" + bytes([m.group()[0] ^ 0x20]), data)
        self.socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))

    def receive(self, seconds: float = SECONDS) -> bytes:
        """The next packet's content; console text is gathered on the way."""
        while True:
            content = self._receive(seconds)
            if content[:1] == b"O" and content != b"OK":
                self.console += bytes.fromhex(content[1:].decode()).decode()
                continue
            return content

    def ask(self, content: str | bytes, seconds: float = SECONDS) -> bytes:
        """A packet's answer."""
        self.send(content)
        return self.receive(seconds)

    def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(rb"\$([^#]*)#([0-9a-f]{2})", self._data, re.DOTALL)
            if match is not None:
                self._data = self._data[match.end() :]
                content = match.group(1)
                assert sum(content) & 0xFF == int(match.group(2), 16), "checksum"
                if self.acknowledge:
                    self.socket.sendall(b"+")
                return re.sub(rb"}(.)", lambda m: bytes([m.group(1)[0] ^ 0x20]), content, flags=re.DOTALL)
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            got = self.socket.recv(1 << 16)
            if not got:
                raise EOFError("the server has closed the connection")
            self._data += got

    # -- what tests want often -------------------------------------------------------------------

    def stop(self, content: str | bytes | None = None, seconds: float = SECONDS) -> dict[str, Any]:
        """The next stop reply, or that to ``content``, in parts: ``signal``, ``thread`` as numbers, others as text."""
        if content is not None:
            self.send(content)
        reply = self.receive(seconds).decode("latin-1")
        assert reply[:1] == "T", reply
        parts: dict[str, Any] = {"signal": int(reply[1:3], 16)}
        for word in reply[3:].rstrip(";").split(";"):
            key, _, value = word.partition(":")
            parts[key] = value
        parts["thread"] = int(parts["thread"], 16)
        return parts

    def read(self, address: int, size: int) -> bytes:
        """Memory."""
        answer = self.ask(f"m{address:x},{size:x}")
        assert not answer.startswith(b"E"), answer
        return bytes.fromhex(answer.decode())

    def write(self, address: int, data: bytes) -> None:
        """Memory."""
        assert self.ask(f"M{address:x},{len(data):x}:{data.hex()}") == b"OK"

    def register(self, number: int) -> int:
        """A register by its number."""
        answer = self.ask(f"p{number:x}")
        assert not answer.startswith(b"E"), answer
        return int.from_bytes(bytes.fromhex(answer.decode()), "little")

    def document(self, kind: str, annex: str = "") -> str:
        """A qXfer document."""
        text = b""
        while True:
            answer = self.ask(f"qXfer:{kind}:read:{annex}:{len(text):x},400")
            assert answer[:1] in (b"m", b"l"), answer
            text += answer[1:]
            if answer[:1] == b"l":
                return text.decode()

    def monitor(self, line: str) -> str:
        """A monitor command's text."""
        self.console = ""
        answer = self.ask(f"qRcmd,{line.encode().hex()}")
        rest = "" if answer == b"OK" else bytes.fromhex(answer.decode()).decode()
        return self.console + rest

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.socket.sendall(b"\x03")

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.receive(seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
