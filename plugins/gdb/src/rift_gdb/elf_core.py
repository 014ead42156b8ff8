"""ELF core files as Linux writes them, which GDB opens beside the payload: notes with registers, then memory.

``struct elf_prstatus`` and ``elf_prpsinfo`` of Linux (include/linux/elfcore.h) on machines with 64 bits; the ELF
specification for the rest.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from rift_core.errors import AddressError, RiftError
from rift_core.host_memory import touched
from rift_core.memory import Permission

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rift_core.engine import Engine
    from rift_core.isa_debug import CoreNote, IsaDebug
    from rift_core.memory import MemoryRegion
    from rift_gdb.address_map import MappedRun

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_IDENTITY = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little-endian, System V
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_PF = {Permission.EXECUTE: 1, Permission.WRITE: 2, Permission.READ: 4}
_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV = 1, 3, 6
_AT_NULL, _AT_ENTRY = 0, 9
_STATUS_HEAD = struct.Struct("<iiih2xQQiiii64x")
_PROCESS = struct.Struct("<bbbb4xQIIiiii16s80s")
_PAGE = 0x1000
_PIECE = 0x10_0000
_LONGEST_NAME = 16  # GDB takes a file for the wrong one if its name is not all in the note
_MOST_SEGMENTS = 60_000  # 16 bits hold their number


@dataclass(frozen=True, slots=True)
class CoreThread:
    """A thread as it goes into the file. ``signal`` is Linux's number; 0: it was merely stopped."""

    number: int
    registers: Mapping[str, int]
    signal: int = 0


class CoreError(RiftError):
    """The core file cannot be written."""


def _note(owner: str, kind: int, content: bytes) -> bytes:
    name = owner.encode() + b"\0"
    head = _NOTE.pack(len(name), len(content), kind)
    return head + name.ljust(-(-len(name) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0")


def _status(debug: IsaDebug, thread: CoreThread) -> bytes:
    head = _STATUS_HEAD.pack(thread.signal, 0, 0, thread.signal, 0, 0, thread.number, 0, 1, 1)
    return head + debug.core_registers(thread.registers) + bytes(8)


def _notes(debug: IsaDebug, threads: Sequence[CoreThread], name: str, entry: int) -> bytes:
    """The first thread is the one that the debugger shows."""
    data = b""
    for position, thread in enumerate(threads):
        data += _note("CORE", _NT_PRSTATUS, _status(debug, thread))
        if position == 0:
            if len(name.encode()) <= _LONGEST_NAME:
                process = _PROCESS.pack(0, ord("R"), 0, 0, 0, 0, 0, 1, 0, 1, 1, name.encode(), name.encode())
                data += _note("CORE", _NT_PRPSINFO, process)
            data += _note("CORE", _NT_AUXV, struct.pack("<4Q", _AT_ENTRY, entry, _AT_NULL, 0))
        notes: Sequence[CoreNote] = debug.core_notes(thread.registers)
        data += b"".join(_note(note.owner, note.kind, note.content) for note in notes)
    return data


def _flags(permissions: Permission) -> int:
    return sum(bit for flag, bit in _PF.items() if permissions & flag)


def write_core(file: BinaryIO, engine: Engine, threads: Sequence[CoreThread], runs: Sequence[MappedRun]) -> None:
    """Write the file; pages of zeros become holes.

    :raises CoreError: too many mappings, or no thread.
    """
    debug = engine.isa.debug
    if debug is None or not threads:
        raise CoreError("no core file can be written: no thread's registers are known")
    if len(runs) > _MOST_SEGMENTS:
        raise CoreError(f"no core file can be written: {len(runs)} mappings are more than it has room for")
    binary = engine.plan.binary
    name = binary.path.name if binary.path is not None else "guest"
    notes = _notes(debug, threads, name, binary.entry or 0)
    table = _HEADER.size + _PROGRAM_HEADER.size * (len(runs) + 1)
    offset = -(-(table + len(notes)) // _PAGE) * _PAGE
    headers = [_PROGRAM_HEADER.pack(_PT_NOTE, 0, table, 0, 0, len(notes), 0, 4)]
    for run in runs:
        size = run.end - run.start
        flags = _flags(run.permissions)
        headers.append(_PROGRAM_HEADER.pack(_PT_LOAD, flags, offset, run.start, 0, size, size, _PAGE))
        offset += size
    file.write(
        _HEADER.pack(
            _IDENTITY, _ET_CORE, debug.core_machine, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _PROGRAM_HEADER.size,
            len(headers), 0, 0, 0,
        )
    )  # fmt: skip
    file.write(b"".join(headers))
    file.write(notes)
    at = -(-(table + len(notes)) // _PAGE) * _PAGE
    places = _Touched()
    for run in runs:
        _write_run(file, at, engine, run, places)
        at += run.end - run.start
    file.truncate(at)


class _Touched:
    """Which parts of each region hold anything; asked once."""

    def __init__(self) -> None:
        self._known: dict[int, list[range]] = {}

    def inside(self, region: MemoryRegion, first: int, last: int) -> Iterator[range]:
        """Guest-physical addresses, whole pages, of those in [first, last)."""
        parts = self._known.get(region.guest_address)
        if parts is None:
            parts = self._known[region.guest_address] = touched(region.host)
        base = region.guest_address
        for part in parts[max(bisect_right(parts, first - base, key=lambda part: part.start) - 1, 0) :]:
            start, stop = max(base + part.start, first), min(base + part.stop, last)
            if base + part.start >= last:
                return
            if start < stop:
                yield range(start, stop)


def _write_run(file: BinaryIO, offset: int, engine: Engine, run: MappedRun, places: _Touched) -> None:
    physical, end = int(run.physical), run.physical + run.end - run.start
    while physical < end:
        region = engine.memory.find(physical)
        if region is None:  # taken away meanwhile
            return
        last = min(end, region.end)
        for part in places.inside(region, physical, last):
            for first in range(part.start, part.stop, _PIECE):
                try:
                    piece = bytes(engine.memory.view(first, min(_PIECE, part.stop - first)))
                except AddressError:
                    return
                _write_pages(file, offset + first - run.physical, piece)
        physical = last


def _write_pages(file: BinaryIO, offset: int, piece: bytes) -> None:
    for start in range(0, len(piece), _PAGE):
        page = piece[start : start + _PAGE]
        if page.count(0) != len(page):
            file.seek(offset + start)
            file.write(page)
