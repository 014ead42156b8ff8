"""The bytes of an executable file, for loaders: copied into memory, or mapped privately where that pays."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rift_core.errors import BinaryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

HEAD = 64
"""How many bytes of a file its format is told by."""

MAP_FROM = 1 << 20
"""``map_file = "auto"`` maps files of this many bytes and more."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0x40
"""``MAP_NORESERVE``, which mmap(3) of Python 3.11 does not name: Linux, include/uapi/asm-generic/mman.h; macOS,
sys/mman.h."""


@dataclass(frozen=True, slots=True)
class FileImage:
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

    def can_show(self, address: int, offset: int, size: int) -> bool:
        """Whether whole pages of ``size`` bytes from ``offset`` on can appear at a guest address without a copy."""
        first_page = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        congruent = address % mmap.PAGESIZE == offset % mmap.PAGESIZE
        return self.mapped and congruent and address + size >= first_page + mmap.PAGESIZE


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise BinaryError(f"{path}: this is {kind}; an executable is a regular file")


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A private mapping: few of its pages will be written, and memory is not set aside for all of them."""
    return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)


def _copy(path: Path, descriptor: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        while done < size:
            count = file.readinto(view[done:])
            if not count:
                raise BinaryError(
                    f"{path}: offset {done:#x}: the file ended early; it became shorter while it was read"
                )
            done += count
    return data


def read_image(
    path: Path, map_file: bool | Literal["auto"], ffi: Any, is_ours: Callable[[Path, bytes], bool]
) -> FileImage | None:
    """Copy or map the file; None if it is of another format.

    A mapped file must not be truncated while the image is in use: touching a page that the file has lost
    ends the process by SIGBUS. The first bytes are read before anything is mapped.

    :param ffi: the loader's, for ``data``.
    :param is_ours: tells by the first :data:`HEAD` bytes, at least one, whether the file is the loader's; it may
        raise BinaryError.
    :raises BinaryError: the file cannot be opened or read, is empty, or is not a regular file.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)  # before opening: opening a device or a FIFO has effects
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            _check_regular(path, status.st_mode)
            size = status.st_size
            head = os.pread(descriptor, HEAD, 0)
            if not head:
                raise BinaryError(f"{path}: the file is empty")
            if not is_ours(path, head):
                return None
            mapped = map_file is True or (map_file == "auto" and size >= MAP_FROM)
            owner: mmap.mmap | bytearray
            owner = _map(descriptor, size) if mapped else _copy(path, descriptor, size)
            return FileImage(path, memoryview(owner), mapped, owner, ffi.from_buffer("uint8_t[]", owner))
        finally:
            os.close(descriptor)
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BinaryError(f"{path}: the file cannot be read: {reason}") from error
    except MemoryError:
        raise BinaryError(f"{path}: the file cannot be read: it does not fit into memory") from None


def check_unshared(path: Path, parts: Iterable[tuple[int, int, bool]]) -> None:
    """A segment whose bytes are changed must not share them with another, which would see them change too.

    :param parts: offset in the file, size, and whether the bytes are changed.
    :raises BinaryError: it does.
    """
    end, changed = 0, False
    for start, size, hit in sorted(part for part in parts if part[1]):
        if start < end and (hit or changed):
            raise BinaryError(
                f"{path}: offset {start:#x}: a segment that is relocated shares its bytes with another one"
            )
        if start + size > end:
            end, changed = start + size, hit
