"""Writes an initramfs: a cpio archive of format newc (Linux: driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

_CONSOLE = (5, 1)
"""Major and minor number of /dev/console (Linux: Documentation/admin-guide/devices.txt)."""


@dataclass(slots=True)
class Initramfs:
    """Files to be; :meth:`pack` gives the archive."""

    _entries: list[tuple[str, int, bytes, tuple[int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("dev", "proc", "sys", "bin"):
            self.add_folder(name)
        self._entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", _CONSOLE))

    def add_folder(self, name: str) -> None:
        """A folder; its parent must be there."""
        self._entries.append((name, stat.S_IFDIR | 0o755, b"", (0, 0)))

    def add_file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A file; its folder must be there."""
        self._entries.append((name, stat.S_IFREG | mode, data, (0, 0)))

    def pack(self) -> bytes:
        """The archive."""
        out = bytearray()
        for number, (name, mode, data, device) in enumerate([*self._entries, ("TRAILER!!!", 0, b"", (0, 0))], 1):
            path = name.encode() + b"\0"
            # inode, mode, uid, gid, links, mtime, size, numbers of the file's device and of the node, name, sum
            numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
            out += b"070701" + b"".join(b"%08X" % value for value in numbers) + path
            out += bytes(-len(out) % 4) + data
            out += bytes(-len(out) % 4)
        return bytes(out)
