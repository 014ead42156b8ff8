"""The bytes of a file: copied into memory, or mapped privately where that pays."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rift_core.errors import BinaryError
from rift_loader_elf._native import ffi

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"\x7fELF"
"""First four bytes of every ELF file (System V gABI, "ELF Identification")."""

MAP_FROM = 1 << 20
"""``map_file = "auto"`` maps files of this many bytes and more."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """A whole file as writable bytes of this process; what is written there never reaches the file.

    ``view`` starts on a page boundary when ``mapped`` is true. ``owner`` is the mapping or the copy, ``data`` its
    ``uint8_t[]`` for native calls. (Native code never gets a memoryview's buffer: when the garbage collector finds
    a memoryview and ``ffi.from_buffer`` of it in one cycle, CPython 3.11 clears the former first and crashes.)
    """

    path: Path
    view: memoryview = field(repr=False)
    mapped: bool
    owner: mmap.mmap | bytearray = field(repr=False)
    data: Any = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.view.nbytes


def _image(path: Path, owner: mmap.mmap | bytearray, *, mapped: bool) -> Image:
    return Image(path, memoryview(owner), mapped, owner, ffi.from_buffer("uint8_t[]", owner))


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise BinaryError(f"{path}: this is {kind}; an executable is a regular file")


def _copy(path: Path, descriptor: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = os.preadv(descriptor, [view[done:]], done)
        if count == 0:
            raise BinaryError(f"{path}: offset {done:#x}: the file ended early; it became shorter while it was read")
        done += count
    return data


def read_image(path: Path, map_file: bool | Literal["auto"]) -> Image | None:
    """Copy or map the file; None if it does not start as an ELF file does.

    A mapped file must not be truncated while the image is in use: touching a page that the file has lost
    ends the process by SIGBUS. The first bytes are read before anything is mapped.

    :raises BinaryError: the file cannot be opened or read, is empty, or is not a regular file.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)  # before opening: opening a device or a FIFO has effects
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            _check_regular(path, status.st_mode)
            size = status.st_size
            magic = os.pread(descriptor, len(MAGIC), 0)
            if not magic:
                raise BinaryError(f"{path}: the file is empty")
            if magic != MAGIC:
                if MAGIC.startswith(magic):
                    raise BinaryError(f"{path}: offset {len(magic):#x}: the file ends within the identification of ELF")
                return None
            if map_file is True or (map_file == "auto" and size >= MAP_FROM):
                return _image(path, mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY), mapped=True)
            return _image(path, _copy(path, descriptor, size), mapped=False)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BinaryError(f"{path}: the file cannot be read: {reason}") from error
    except MemoryError:
        raise BinaryError(f"{path}: the file cannot be read: it does not fit into memory") from None
