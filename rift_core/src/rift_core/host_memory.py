"""Host pages that back guest memory, and what becomes of them at fork.

Memory is a shared mapping of a memfd (an anonymous shared mapping where there is none), page-aligned.
The pages live until the last memoryview of them dies, also after the machine has closed.

A forked child must neither see nor change the parent's guest memory: right after fork the child puts
empty private pages in its place, so that a stale view reads zeros.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

import _cffi_backend

from rift_core.errors import MappingError
from rift_core.forks import WHOLE
from rift_core.interrupts import HELD

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_SIZE = mmap.PAGESIZE
ALIGNMENT = max(PAGE_SIZE, 0x4000)
"""Of guest memory in this process: the granularity of the most demanding hypervisor, HVF on Apple silicon."""

_NAME = "rift:"  # of the memfds
_MAP_FIXED = 0x10  # the same value on Linux and macOS
_MAP_FAILED = ctypes.c_void_p(-1).value


_ffi = _cffi_backend.FFI()  # what cffi.FFI() wraps in a parser of declarations


def buffer_address(buffer: Any) -> int:
    """Address of a contiguous buffer's first byte, read-only ones included. The caller keeps it alive."""
    return int(_ffi.cast("uintptr_t", _ffi.from_buffer(buffer)))


class HostMemory:
    """``size`` bytes (a multiple of the page size) of zeroed, shared memory at a multiple of :data:`ALIGNMENT`.

    :raises MappingError: the process cannot have that much.
    """

    def __init__(self, size: int, name: str = "ram") -> None:
        try:
            with HELD, WHOLE:
                self._map = _shared_map(size + ALIGNMENT - PAGE_SIZE, name)
                _inherited.add(self._map)
        except (OSError, ValueError, OverflowError) as error:
            raise MappingError(f"cannot get {size:#x} bytes of host memory for {name}: {error}") from error
        address = buffer_address(self._map)
        start = -address % ALIGNMENT
        self.view = memoryview(self._map)[start : start + size]
        self.address = address + start
        self.size = size


def _shared_map(size: int, name: str) -> mmap.mmap:
    if not hasattr(os, "memfd_create"):
        return mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    descriptor = os.memfd_create(f"{_NAME}{name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(descriptor)


_inherited: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def _empty_in_child() -> None:
    """Replace every guest memory by empty private pages: runs in a forked child, before any other code."""
    if not _inherited:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    for memory in list(_inherited):
        libc.mmap(
            buffer_address(memory),
            len(memory),
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED,
            -1,
            0,
        )
    _inherited.clear()
    _give_up_descriptors()


def touched(host: memoryview) -> list[range]:
    """Where there are pages behind a region's bytes, as offsets into ``host``; all between them reads as zeros, and
    reading it would make pages. Where nothing is known of it (other memory than :class:`HostMemory`; not Linux) that is
    all of it.
    """
    whole = [range(host.nbytes)]
    address = buffer_address(host)
    try:
        found = _memfd_behind(address, host.nbytes)
        return whole if found is None else [part for part in _data(*found, host.nbytes) if part]
    except OSError:
        return whole


def _memfd_behind(address: int, size: int) -> tuple[int, int] | None:
    """The descriptor, which an mmap object keeps, and the place in its file: proc(5), /proc/pid/maps."""
    if not hasattr(os, "SEEK_DATA") or not os.path.exists("/proc/self/maps"):
        return None
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split(maxsplit=5)
            first, last = (int(word, 16) for word in words[0].split("-"))
            if first <= address and address + size <= last:
                if len(words) < 6 or not words[5].startswith(f"/memfd:{_NAME}"):
                    return None
                offset, inode = int(words[2], 16) + address - first, int(words[4])
                return next(((number, offset) for number in _memfds() if os.fstat(number).st_ino == inode), None)
    return None


def _data(descriptor: int, start: int, size: int) -> Iterator[range]:
    """lseek(2): SEEK_DATA and SEEK_HOLE; nobody uses the descriptor's own position."""
    at, end = start, start + size
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no more
                return
            raise
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        yield range(min(at, end) - start, min(hole, end) - start)
        at = hole


def _memfds() -> Iterator[int]:
    """Descriptors of guest memory."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if os.readlink(f"/proc/self/fd/{number}").startswith(f"/memfd:{_NAME}"):
                yield number


def _give_up_descriptors() -> None:
    """In a forked child: the descriptors that mmap objects keep would lead to the parent's guest memory.

    The number stays taken, since the object closes it when it dies.
    """
    if not os.path.isdir("/proc/self/fd"):
        return
    for number in _memfds():
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, number, inheritable=False)
            os.close(nothing)


os.register_at_fork(after_in_child=_empty_in_child)


def aligned_buffer(size: int) -> memoryview:
    """A zeroed, writable buffer of whole pages, at least ``size`` bytes, fit for ``Machine.share``.

    ``numpy.frombuffer(rift_core.aligned_buffer(n), dtype=...)`` gives an array on it.
    """
    if size <= 0:
        raise MappingError("an aligned buffer needs at least one byte")
    pages = -(-size // PAGE_SIZE) * PAGE_SIZE
    return memoryview(mmap.mmap(-1, pages, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
